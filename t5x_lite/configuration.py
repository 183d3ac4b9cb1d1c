"""Gin as this project uses it: files are found, bindings are applied, and every mistake is one line.

What differs from bare gin-config, and why:

* **The order of files does not matter.** gin lets the last statement win, so a run file included late would undo a
  user's choice. Here bindings have a rank: shipped models, meshes, runs, objectives, ways of finetuning, examples < a
  recorded configuration < the user's files < the command line; only within one rank does the last one win. A file that
  is included twice is read once, and all imports run before any name is looked up.
* **Every binding knows where it comes from** (gin 0.5.0 does not keep that), so that an error names file and line, and
  a binding that nothing reads can be told from a shipped default that this job has no use for.
* **Nothing stops at the first problem** where a list would serve better: all missing values are named at once.

TensorFlow and JAX are not imported here. The names with a leading underscore that are taken from `gin.config`, here and
in `gin_statements`, are those of gin-config 0.5.0.

    parse(["models/t5_1_1/small.gin", "my_run.gin"], ["BATCH_SIZE=8"], root="train")   # UserError, or gin is set up
    train()                     # constructs every configurable, and before it compiles calls
    check_all_read()            # UserError for bindings that had no effect
    operative_config()          # the text for MODEL_DIR/config.gin
"""

import contextlib
import dataclasses
import inspect
import shlex
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import gin
from gin import config as gin_config
from t5x_lite import value_types
from t5x_lite.errors import UserError, did_you_mean, first_line, nearest
from t5x_lite.gin_files import FLAG, RECORDED, RECORDED_HEADER, USER, GinFile, as_path, find_file
from t5x_lite.gin_statements import Binding, Later, Reader, Statement

# The macros of the shipped files: what each means, and a value to show in help and in errors.
MACROS: dict[str, tuple[str, str]] = {
    "MIXTURE_OR_TASK_NAME": (
        "a task or mixture, files of yours (tsv:, jsonl: or text:), or several with rates",
        "tsv:/data/train.tsv",
    ),
    "TASK_FEATURE_LENGTHS": ("longest input and target, in tokens", '{"inputs": 512, "targets": 114}'),
    "TRAIN_STEPS": ("the step at which training ends", "1000"),
    "MODEL_DIR": ("folder for checkpoints, metrics and config.gin (a local path, gs://, s3://)", "/tmp/t5x_lite/run"),
    "BATCH_SIZE": ("rows of the global batch, over all devices", "128"),
    "DROPOUT_RATE": ("dropout: 0.0 for pretraining T5 1.1, 0.1 for T5 1.0 and for finetuning", "0.1"),
    "INITIAL_CHECKPOINT_PATH": ("the checkpoint that finetuning starts from", "/tmp/t5x_lite/pretrained"),
    "RANDOM_SEED": ("one integer from which every random choice follows", "0"),
    "BAD_WORDS": (
        "a list of words whose pages a corpus leaves out, one a line (several languages: a folder of such "
        "files, named en, fr, …); None for no such rule",
        "words/en",
    ),
    "NEWS_DOMAINS": (
        "a JSON file {domain: [subdomains] or true} of the news that a corpus keeps, as Grover's",
        "domain_to_allowed_subdomains.json",
    ),
    "URL_LIST": ("files of the addresses that a corpus keeps, one a line, as OpenWebText's", "openwebtext/*.txt"),
    "WRITERS": ("where metrics go besides metrics.jsonl and TensorBoard: @WandB(), @MLflow()", "[@WandB()]"),
    "MESH": ("devices along each axis; -1 takes the rest", '{"data": -1, "fsdp": 1, "tensor": 1}'),
}

# What the command line itself reads, whichever job runs.
ALWAYS = ("t5x_lite.compilation_cache", "t5x_lite.device_flags", "t5x_lite.Processes")


# ----------------------------------------------------------------------------------------------------------------------
# Records
# ----------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What `parse` did: the files in the order they were read, and notes worth a warning line each."""

    files: tuple[GinFile, ...]
    notes: tuple[str, ...]


_read = Reader()  # everything that was read, its statements in the order applied
_skipped: list[Statement] = []  # recorded bindings whose names this job does not know
_elsewhere: dict[str, str] = {}  # configurables of other jobs -> what to say of their bindings


# ----------------------------------------------------------------------------------------------------------------------
# The public five
# ----------------------------------------------------------------------------------------------------------------------


def clear() -> None:
    """Forget all files and bindings (the registry of configurables stays)."""
    global _read
    gin.clear_config()
    _read = Reader()
    _skipped.clear()
    _elsewhere.clear()


def parse(
    files: Sequence[str] = (),
    bindings: Sequence[str | Binding] = (),
    search_paths: Sequence[str] = (),
    root: str | None = None,
    flags: Mapping[str, str] | None = None,
    unneeded: Sequence[str] = (),
    incomplete: bool = False,
    also: Sequence[str] = (),
    elsewhere: Mapping[str, str] | None = None,
) -> Configuration:
    """Read gin files, then bindings, into gin; earlier configuration is dropped.

    Args:
      files: names as a user writes them, see `find_file`.
      bindings: `NAME=VALUE`, as after `--gin.`, or `Binding`.
      search_paths: folders in which `files` and their includes are looked up too.
      root: the configurable that will be called with no arguments. When given, parameters that it, or anything it
        is bound to call, needs and nobody set are reported together with missing macros.
      flags: short forms of the command line to name in that report, e.g. `{"MODEL_DIR": "--model_dir"}`.
      unneeded: macros that may be missing: nothing comes of their values.
      incomplete: any may be missing, since the configuration is only looked at.
      also: further configurables whose bindings the job reads.
      elsewhere: configurables of other jobs, and what to say of a binding of theirs.

    Returns:
      the files read and notes for the user.

    Raises:
      UserError: a file not found or found twice, bad syntax, an unknown name, a missing value, a macro that
        nothing refers to, or a binding of something that the job has no use for.
    """
    clear()
    _elsewhere.update(elsewhere or {})
    try:
        return _parse(files, bindings, search_paths, root, flags or {}, unneeded, incomplete, also)
    except BaseException:
        clear()  # half a configuration must not leak into the next call
        raise


def check_all_read() -> None:
    """Raise UserError if a binding from the command line or a user's file had no effect so far.

    Call it when every configurable has been constructed and before anything compiles. Bindings from shipped files may
    stay unread, and so may those of a recorded configuration (it may belong to another job).
    """
    unread = []
    live = _live_statements()
    with _operative() as operative:
        read = _read_keys(live, operative)
        calls = set(operative)
    replaced = _referenced(s for s in _read.statements + _skipped if live.get(s.key) is not s)
    for key, statement in live.items():
        is_macro = key[1] == _MACRO
        if key in read or statement.rank <= RECORDED:
            continue
        if key[2] not in gin_config._CONFIG.get(key[:2], {}):
            continue  # gin was cleared since
        if is_macro and statement.rank < FLAG and key[0] in replaced:
            continue  # what read it was replaced by a stronger binding: no mistake
        unread.append((statement, is_macro))
    if not unread:
        return
    names = [_display(key) for key in read]
    parts = []
    for statement, is_macro in unread:
        near = nearest(statement.written, names)
        why = "" if is_macro else _why_unread(statement.key, calls)
        parts.append(f"{statement.at} was read by nothing{why}{did_you_mean(near)}")
    raise UserError("; ".join(parts) + "; correct the name, or remove the binding")


def values_in_force() -> list[Any]:
    """Of all bindings but addresses of servers (`…_uri`); references in them are unresolved."""
    return [s.value for key, s in _live_statements().items() if not key[2].endswith("_uri")]


def written() -> dict[str, list[Statement]]:
    """Name of each binding or macro -> what was said of it: the last is in force, the others gave way to it."""
    found: dict[str, list[Statement]] = {}
    for statement in _read.statements:
        found.setdefault(_display(statement.key), []).append(statement)
    return found


def value_text(statement: Statement) -> str:
    """The value as a gin file has it; references are not resolved."""
    return gin_config._format_value(statement.value) or repr(statement.value)


def referenced_macros() -> set[str]:
    """The macros that the configuration has a use for: a binding refers to them, set or not."""
    return _referenced(_live_statements().values())


def bound_values() -> dict[str, str]:
    """Return what is bound, used or not: name of the binding or macro -> text of its value."""
    return {
        _display((scope, selector, argument)): gin_config._format_value(value) or repr(value)
        for (scope, selector), arguments in gin_config._CONFIG.items()
        for argument, value in arguments.items()
    }


def operative_config(job: str = "JOB") -> str:
    """Return what the run so far has used, defaults included, as the text of a gin file that can be run again.

    Args:
      job: the command to name in the header.
    """
    header = [f"{RECORDED_HEADER}: every value that this run used. Run it again: t5x-lite {job} --gin_file=THIS_FILE"]
    header += [f"# from {file.name}" for file in _read.files]
    return "\n".join(header) + "\n\n" + gin.operative_config_str(max_line_length=118).rstrip() + "\n"


def operative_values() -> dict[str, str]:
    """Return what the run so far has used, defaults included: name of the binding or macro -> text of its value."""
    with _operative() as operative:
        values = {
            _display((scope, selector, argument)): gin_config._format_value(value)
            for (scope, selector), arguments in operative.items()
            if selector != _CONSTANT
            for argument, value in arguments.items()
        }
    return {name: text for name, text in values.items() if text is not None}


# ----------------------------------------------------------------------------------------------------------------------
# Reading
# ----------------------------------------------------------------------------------------------------------------------


def _parse(files, bindings, search_paths, root, flags, unneeded, incomplete, also) -> Configuration:
    for folder in search_paths:
        if not as_path(folder).is_dir():
            raise UserError(f"--gin_search_paths: no folder '{folder}'")
    for name in files:
        _read.file(find_file(name, search_paths), search_paths)
    for binding in bindings:
        _read.flag(binding)
    # Python's sort is stable: within a rank the order of reading stays.
    _read.statements.sort(key=lambda statement: statement.rank)
    for statement in list(_read.statements):
        _apply(statement)
    _no_rivals()
    _check_kinds()
    missing = "" if incomplete else _missing(root, flags, unneeded)
    unreferenced = _unreferenced_macros()
    # A misspelt macro is both: the wrong name that nothing reads and the right one that is missing. Say the cause.
    if unreferenced:
        raise UserError(unreferenced)
    if root is not None and not incomplete and (useless := _useless([root, *also])):
        raise UserError(useless)
    if missing:
        raise UserError(missing)
    for name in referenced_macros() if incomplete else unneeded:
        if (name, _MACRO) not in gin_config._CONFIG:
            gin.bind_parameter(f"{name}/{_MACRO}.value", "not needed")  # gin itself wants them all
    gin.finalize()  # runs hooks that users' modules may have registered
    # Left unlocked: a task module imported later may still register configurables of its own.
    gin_config._set_config_is_locked(False)
    notes = _overruled()
    skipped = {file.name: [s.written for s in _skipped if s.file == file.path] for file in _read.files}
    return Configuration(
        tuple(_read.files),
        tuple(
            f"{name}: skipped what this job does not know: {_list(bindings)}"
            for name, bindings in skipped.items()
            if bindings
        )
        + notes,
    )


# ----------------------------------------------------------------------------------------------------------------------
# Applying
# ----------------------------------------------------------------------------------------------------------------------


def _apply(statement: Statement) -> None:
    """Bind one statement in gin, or move it to `_skipped` when it is a recorded one of names unknown to this job."""
    with _context(statement.context):
        try:
            statement.value = _resolve(statement.value, statement)
            if statement.argument:
                key = (statement.scope, statement.selector, statement.argument)
                _known_parameter(statement)
            else:
                name = f"{statement.scope}/{statement.selector}" if statement.scope else statement.selector
                key = (name, _MACRO, "value")
        except _Unknown as e:
            if statement.rank == RECORDED:
                # Recorded by a job with other configurables, or by another version; what matters is asked for below.
                _read.statements.remove(statement)
                _skipped.append(statement)
                return
            raise UserError(str(e)) from e
        gin_config.bind_parameter(key, statement.value)
        statement.key = gin_config.ParsedBindingKey.parse(key).scope_selector_arg


class _Unknown(Exception):
    """A name that the registry does not have; the message is complete."""


def _resolve(value: Any, statement: Statement) -> Any:
    """Replace `Later` anywhere in `value` by gin's references."""
    match value:
        case dict():
            return {_resolve(k, statement): _resolve(v, statement) for k, v in value.items()}
        case list() | tuple():
            return type(value)(_resolve(v, statement) for v in value)
        case Later(name, evaluate, is_macro):
            delegate = gin_config.ParserDelegate()
            if is_macro:
                return _ask(lambda: delegate.macro(name), name, statement)
            return _ask(lambda: delegate.configurable_reference(name, evaluate), name.split("/")[-1], statement)
    return value


def _known_parameter(statement: Statement) -> None:
    lookup = gin_config._parse_context().get_configurable
    found = _ask(lambda: lookup(statement.selector), statement.selector, statement)
    if found is None:
        raise _Unknown(_unknown_configurable(statement.selector, statement))
    try:
        gin_config.ParsedBindingKey.parse((statement.scope, statement.selector, statement.argument))
    except ValueError as e:
        names = _parameters(found)
        if statement.argument in names:  # a parameter closed to gin, or a method named without its class
            raise _Unknown(f"{statement.at}: {first_line(e)}") from e
        hint = did_you_mean(nearest(statement.argument, names)) or f"; it has {_list(names) or 'none'}"
        raise _Unknown(f"{statement.at}: {statement.selector} has no parameter '{statement.argument}'{hint}") from e


def _ask(lookup, selector: str, statement: Statement):
    """Call gin's `lookup`, and turn what it raises for unknown and ambiguous names into our line."""
    try:
        return lookup()
    except KeyError as e:
        raise _Unknown(f"{statement.at}: {first_line(e.args[0])}") from e
    except (NameError, AttributeError, ValueError) as e:
        raise _Unknown(_unknown_configurable(selector, statement)) from e


def _unknown_configurable(selector: str, statement: Statement) -> str:
    if selector.removeprefix(_OURS) in _elsewhere:
        return f"{statement.at}: {_elsewhere[selector.removeprefix(_OURS)]}; remove the binding"
    names = [_short(s) for s, _ in gin_config._REGISTRY.items() if not s.startswith("gin.")]
    return (
        f"{statement.at}: no configurable '{selector}'{did_you_mean(nearest(selector, names))}; one of a "
        "module of yours needs `import that.module` in a gin file"
    )


def _parameters(configurable) -> list[str]:
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [p.name for p in inspect.signature(configurable.wrapped).parameters.values() if p.kind not in kinds]


# ----------------------------------------------------------------------------------------------------------------------
# Checks before the run
# ----------------------------------------------------------------------------------------------------------------------


def _no_rivals() -> None:
    """Raise UserError if two shipped files of one rank, neither including the other, set a name differently.

    Two sizes at once, say: which one wins would depend on their order.
    """
    by_key: dict[tuple[str, str, str], Statement] = {}
    for statement in _read.statements:
        other = by_key.get(statement.key)
        by_key[statement.key] = statement
        if other is None or statement.rank >= RECORDED or other.rank != statement.rank:
            continue
        if not _related(statement.file, other.file) and other.value != statement.value:
            raise UserError(
                f"{other.where} and {statement.where} both set {_display(statement.key)}: name only one of these files"
            )


def _overruled() -> tuple[str, ...]:
    """Notes on values that two files of the user's set differently, neither including the other: the later one wins."""
    notes = []
    by_key: dict[tuple[str, str, str], Statement] = {}
    for statement in _read.statements:
        other = by_key.get(statement.key)
        if statement.rank != USER:
            continue
        by_key[statement.key] = statement
        if other is None or other.value == statement.value or _related(statement.file, other.file):
            continue
        notes.append(
            f"{statement.where} sets {_display(statement.key)} = {_shown(statement.value)}, instead of "
            f"{_shown(other.value)} of {other.where}: the later file wins"
        )
    return tuple(notes)


def _related(file: str, other: str) -> bool:
    """Whether two files are one, or one includes the other."""
    return file == other or other in _read.includes[file] or file in _read.includes[other]


def _check_kinds() -> None:
    """Raise UserError for a value of another kind than its parameter is annotated with."""
    live = _live_statements()
    for (scope, selector, argument), statement in live.items():
        if not selector.startswith(_OURS):
            continue
        annotation = inspect.signature(gin_config._REGISTRY[selector].wrapped).parameters[argument].annotation
        source, value = statement, statement.value
        while isinstance(value, gin_config.ConfigurableReference) and value.configurable.selector == _MACRO:
            source = live.get(("/".join(value.scopes), _MACRO, "value"))
            if source is None:
                break  # reported as missing
            value = source.value
        if source is None or value_types.fits(value, annotation):
            continue
        name = "" if source is statement and statement.argument else f"{_display((scope, selector, argument))} "
        raise UserError(f"{source.at} = {_shown(value)}: {name}takes {value_types.words(annotation)}")


def _missing(root: str | None, flags: Mapping[str, str], unneeded: Sequence[str]) -> str:
    """The line about all values that are needed and not set, or ''."""
    macros: dict[str, str] = {}  # name -> where it is needed
    parameters: dict[str, list[str]] = {}  # configurable -> parameters
    for key, statement in _live_statements().items():
        for reference in gin_config.iterate_references({"": statement.value}):
            if reference.configurable.selector == _MACRO and reference.config_key not in gin_config._CONFIG:
                macros.setdefault("/".join(reference.scopes), statement.where)
            if reference.configurable.selector == _CONSTANT and "/".join(reference.scopes) == "gin.REQUIRED":
                if key[1] == _MACRO:
                    macros.setdefault(key[0], statement.where)
                else:
                    parameters.setdefault(_display(key).rpartition(".")[0], []).append(key[2])
    if root is not None:
        for name, needed in _unset_parameters(root):
            entry = parameters.setdefault(name, [])
            entry.extend(p for p in needed if p not in entry)
    macros = {name: where for name, where in macros.items() if name not in unneeded}
    parts = [f"{name} (needed at {where})" for name, where in macros.items()]
    parts += [f"{_list(names)} of {name}" for name, names in parameters.items()]
    if not parts:
        return ""
    examples = [
        f"{flags.get(name, f'--gin.{name}')}={shlex.quote(MACROS[name][1]) if name in MACROS else 'VALUE'}"
        for name in macros
    ]
    for name, names in parameters.items():
        if name.rpartition("/")[2] == "T5Config":
            examples.append("--gin_file=models/t5_1_1/small.gin")
        else:
            full = [f"{name}.{parameter}" for parameter in names]
            examples.extend(f"{flags.get(parameter, f'--gin.{parameter}')}=VALUE" for parameter in full)
    return f"not set: {'; '.join(parts)}. Add for example {' '.join(examples)}"


def _unset_parameters(root: str) -> Iterator[tuple[str, list[str]]]:
    """Parameters without a value of `root` and of all that gin will call with no arguments on the way to it."""
    seen = set()
    todo = [((), gin_config._REGISTRY.get_match(root), True)]
    while todo:
        scopes, configurable, called_bare = todo.pop()
        if configurable is None or (scopes, configurable.selector, called_bare) in seen:
            continue
        seen.add((scopes, configurable.selector, called_bare))
        bound = (
            gin_config._get_bindings(configurable.selector, list(scopes))
            if scopes
            else dict(gin_config._CONFIG.get(("", configurable.selector), {}))
        )
        if called_bare and configurable.selector not in (_MACRO, _CONSTANT):
            empty = (inspect.Parameter.empty, gin.REQUIRED)
            parameters = inspect.signature(configurable.wrapped).parameters
            unset = [n for n in _parameters(configurable) if parameters[n].default in empty and n not in bound]
            if unset:
                yield "/".join([*scopes, _short(configurable.selector)]), unset
        for reference in gin_config.iterate_references(bound):
            # What is handed over uncalled (`@f`) gets its arguments from the code that calls it.
            todo.append((tuple(reference.scopes), reference.configurable, reference.evaluate))


def _useless(roots: Sequence[str]) -> str:
    """The line about bindings of the user to things of this package that a job comes to in no way, or ''.

    It comes to what bindings refer to, and to what stands in annotations, which code makes itself where nothing is
    bound. What else is read by nothing (a preprocessor of another task, say) only `check_all_read` can tell.
    """
    registry = dict(gin_config._REGISTRY.items())
    by_object = {id(made): name for name, c in registry.items() for made in (c.wrapped, c.wrapper)}
    found: set[str] = set()
    todo = [gin_config._REGISTRY.get_match(root).selector for root in (*roots, *ALWAYS) if _is_registered(root)]
    by_selector: dict[str, list[Any]] = {}
    for statement in _live_statements().values():
        by_selector.setdefault(statement.key[1], []).append(statement.value)
    while todo:
        selector = todo.pop()
        if selector in found:
            continue
        found.add(selector)
        configurable = registry[selector]
        if selector in (_MACRO, _CONSTANT):
            annotations = []
        elif not _is_core(configurable):
            return ""  # code of the user's, which may call anything
        else:
            annotations = [p.annotation for p in inspect.signature(configurable.wrapped).parameters.values()]
        todo += [by_object[id(part)] for a in annotations for part in _parts(a) if id(part) in by_object]
        references = gin_config.iterate_references({"": by_selector.get(selector, [])})
        todo += [reference.configurable.selector for reference in references]
    lost = [
        s
        for key, s in _live_statements().items()
        if s.rank > RECORDED and key[1] != _MACRO and key[1] not in found and _is_core(registry[key[1]])
    ]
    if not lost:
        return ""
    known = [f"{_short(name)}.{p}" for name in found if name != _MACRO for p in _parameters(registry[name])]
    parts = []
    for s in lost:
        if of_another := _elsewhere.get(s.key[1].removeprefix(_OURS)):
            parts.append(f"{s.at}: {of_another}")
            continue
        parts.append(
            f"{s.at} would be read by nothing, since this job uses no {_short(s.key[1])}"
            + did_you_mean(nearest(s.written, known))
        )
    only_others = all(s.key[1].removeprefix(_OURS) in _elsewhere for s in lost)
    return "; ".join(parts) + ("; remove the binding" if only_others else "; correct the name, or remove the binding")


def _is_registered(selector: str) -> bool:
    return gin_config._REGISTRY.get_match(selector) is not None


def _is_core(configurable) -> bool:
    """Whether it is of this package, tasks aside: these are called by preprocessors and rates."""
    module = f"{configurable.wrapped.__module__}."
    return module.startswith(_OURS) and not module.startswith(f"{_OURS}tasks.")


def _parts(annotation: Any) -> Iterator[Any]:
    """The classes that an annotation is made of."""
    yield annotation
    for part in typing.get_args(annotation):
        yield from _parts(part)


def _unreferenced_macros() -> str:
    """The line about macros of the user to which nothing refers, or ''. They could not have an effect in any job."""
    live = _live_statements()
    everywhere = _referenced(_read.statements + _skipped)
    now = _referenced(live.values())
    lost = [
        s
        for key, s in live.items()
        if key[1] == _MACRO and s.rank >= RECORDED and key[0] not in (now if s.rank == FLAG else everywhere)
    ]
    if not lost:
        return ""
    known = now | {key[0] for key, s in live.items() if key[1] == _MACRO and s.rank < RECORDED}
    parts = []
    for statement in lost:
        name = statement.key[0]
        hint = did_you_mean(nearest(name, known)) or f"; the macros here: {_list(sorted(known)) or 'none'}"
        parts.append(f"{statement.at}: no binding refers to the macro {name}{hint}")
    return "; ".join(parts)


def _live_statements() -> dict[tuple[str, str, str], Statement]:
    """The statement in force for each (scope, selector, argument)."""
    return {statement.key: statement for statement in _read.statements}


def _referenced(statements: Iterable[Statement]) -> set[str]:
    """Names of the macros to which `statements` refer."""
    return {name for s in statements for name in s.macros if not gin_config._CONSTANTS.matching_selectors(name)}


def _why_unread(key: tuple[str, str, str], calls: set[tuple[str, str]]) -> str:
    scope, selector, _ = key
    called_in = [called for called, name in calls if name == selector]
    if not called_in:
        return f", since this job never used {_short(selector)}"
    if not any(called == scope or called.startswith(f"{scope}/") or not scope for called in called_in):
        return f", since {_short(selector)} was never used in the scope {scope}"
    return ", since the job or an inner scope gives another value"


def _read_keys(live, operative) -> set[tuple[str, str, str]]:
    """The keys of `live` whose value was handed to a call."""
    read = set()
    for (called_in, selector), arguments in operative.items():
        scopes = called_in.split("/") if called_in else []
        outwards = ["/".join(scopes[:n]) for n in range(len(scopes), -1, -1)]
        for argument in arguments:
            # gin takes the innermost scope that binds the argument; the outer ones are hidden by it.
            read.update([key for scope in outwards if (key := (scope, selector, argument)) in live][:1])
    return read


# ----------------------------------------------------------------------------------------------------------------------
# The door to gin's inside
# ----------------------------------------------------------------------------------------------------------------------

_MACRO, _CONSTANT = "gin.macro", "gin.constant"
_OURS = "t5x_lite."  # names that this package registers


@contextlib.contextmanager
def _context(context: gin_config.ParseContext):
    """Look names up as the file does that `context` belongs to (it matters for gin's dynamic registration)."""
    gin_config._PARSE_CONTEXTS.append(context)
    try:
        yield
    finally:
        gin_config._PARSE_CONTEXTS.pop()


@contextlib.contextmanager
def _operative():
    """{(scope, selector): {argument: value}} of the calls so far."""
    with gin_config._OPERATIVE_CONFIG_LOCK:
        yield gin_config._OPERATIVE_CONFIG


def _short(selector: str) -> str:
    return gin_config._REGISTRY.minimal_selector(selector)


# ----------------------------------------------------------------------------------------------------------------------
# Words
# ----------------------------------------------------------------------------------------------------------------------


def _display(key: tuple[str, str, str]) -> str:
    scope, selector, argument = key
    if selector == _MACRO:
        return scope
    return f"{scope}/{_short(selector)}.{argument}" if scope else f"{_short(selector)}.{argument}"


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)
