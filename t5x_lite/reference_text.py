"""All that can be set, as Markdown: read from gin's registry, docstrings, and the shipped gin files."""

import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import gin
import t5x_lite
from gin import config as gin_config
from gin import config_parser
from t5x_lite import configuration, gin_files, gin_statements
from t5x_lite.monitor import Table

OURS = "t5x_lite."
NAMED = 4  # files of one folder that are named; of more, how many


@dataclasses.dataclass(frozen=True)
class Parameter:
    """What can be bound of a configurable; `default` is empty where it must be."""

    name: str
    kind: str
    default: str
    meaning: str


def make(flags: Mapping[str, tuple[str, Iterable[tuple[str, str]]]]) -> str:
    """The text.

    Args:
      flags: {job: (what it does, [(flag, what it is for)])}.
    """
    macros, used_by, parameters = bound_in()
    lines = [f"# Reference of T5X-lite {t5x_lite.__version__}", "", "Made by `t5x-lite reference`."]
    lines += ["", "## Jobs", ""]
    for job, (help, entries) in flags.items():
        table = Table(["flag", "meaning"])
        for flag, meaning in entries:
            table.add(f"`{flag}`", meaning)
        lines += [f"### t5x-lite {job}", "", f"{_sentence(help)}", "", table.markdown(), ""]
    lines += ["## Macros", "", "Set by `--gin.NAME=VALUE`, or by `NAME = VALUE` in a gin file.", ""]
    table = Table(["macro", "meaning", "example", "stands in", "set in"])
    for name in sorted(macros.keys() | used_by.keys() | configuration.MACROS.keys()):
        meaning, example = configuration.MACROS.get(name, ("", ""))
        uses = ", ".join(f"`{binding}`" for binding in used_by.get(name, ()))
        table.add(f"`{name}`", meaning, f"`{example}`" if example else "", uses, places(macros.get(name, ())))
    lines += [table.markdown(), "", "## Configurables", ""]
    lines += ["Set by `--gin.NAME.PARAMETER=VALUE`, or by `NAME.PARAMETER = VALUE` in a gin file.", ""]
    for selector in sorted(configurables(), key=lambda selector: selector.rpartition(".")[2].lower()):
        lines += _configurable(selector, parameters)
    return "\n".join(lines).rstrip() + "\n"


def configurables() -> list[str]:
    """Complete names of what this package has registered so far."""
    return [name for name, _ in gin_config._REGISTRY.items() if name.startswith(OURS)]


def parameters_of(selector: str) -> list[Parameter]:
    """What can be bound of a configurable, in the order of its code."""
    wrapped = gin_config._REGISTRY[selector].wrapped
    said = meanings(inspect.getdoc(wrapped) or "")
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    found = [p for p in inspect.signature(wrapped).parameters.values() if p.kind not in kinds]
    return [Parameter(p.name, _kind(p.annotation), _default(wrapped, p), said.get(p.name, "")) for p in found]


def meanings(docstring: str) -> dict[str, str]:
    """{name: what is said of it} from the sections Args and Attributes; several names may share what is said."""
    found: dict[str, str] = {}
    section, names = False, []
    for line in docstring.splitlines():
        if line and not line.startswith(" "):
            section, names = line.strip() in ("Args:", "Attributes:"), []
        elif section and (match := re.match(r"  (\w+(?:, \w+)*): (.*)", line)):
            names = match[1].split(", ")
            found.update(dict.fromkeys(names, match[2].strip()))
        elif section and line.startswith("    "):
            for name in names:
                found[name] += f" {line.strip()}"
    return found


def bound_in() -> tuple[dict[str, list[str]], dict[str, list[str]], dict[tuple[str, str], list[str]]]:
    """What the shipped gin files say.

    Returns:
      {macro: files that set it}, {macro: bindings whose values refer to it}, {(complete name of a configurable,
      parameter): files that bind it}.
    """
    macros: dict[str, list[str]] = {}
    used_by: dict[str, list[str]] = {}
    parameters: dict[tuple[str, str], list[str]] = {}
    for file in gin_files.shipped_names():
        text = (gin_files.shipped_folder() / file).read_text(encoding="utf-8")
        for statement in gin_statements.syntax(text, file):
            if not isinstance(statement, config_parser.BindingStatement):
                continue
            name = f"{statement.selector}.{statement.arg_name}" if statement.arg_name else statement.selector
            name = f"{statement.scope}/{name}" if statement.scope else name
            for macro in gin_statements.macros_in(statement.value):
                _add(used_by, macro, name)
            if statement.arg_name:
                known = gin_config._REGISTRY.get_match(statement.selector)
                if known is not None:
                    _add(parameters, (known.selector, statement.arg_name), file)
            else:
                _add(macros, name, file)
    return macros, used_by, parameters


def places(files: Iterable[str]) -> str:
    """Files in few words: those of a folder by name, or by their number where they are many."""
    folders: dict[str, list[str]] = {}
    for file in files:
        folders.setdefault(file.rpartition("/")[0], []).append(file)
    return ", ".join(
        ", ".join(some) if len(some) <= NAMED else f"{len(some)} files of {folder}/" for folder, some in folders.items()
    )


def _add(found: dict, key, text: str) -> None:
    texts = found.setdefault(key, [])
    if text not in texts:
        texts.append(text)


def _configurable(selector: str, bound: Mapping[tuple[str, str], list[str]]) -> Iterator[str]:
    wrapped = gin_config._REGISTRY[selector].wrapped
    first, _, _ = (inspect.getdoc(wrapped) or "").partition("\n\n")
    yield from (f"### {gin_config._REGISTRY.minimal_selector(selector)}", "")
    yield from (" ".join(first.split()), "", f"`{wrapped.__module__}`", "")
    found = parameters_of(selector)
    if not found:
        return
    table = Table(["parameter", "kind", "default", "meaning", "bound in"])
    for one in found:
        default = f"`{one.default}`" if one.default else "must be set"
        table.add(f"`{one.name}`", one.kind, default, one.meaning, places(bound.get((selector, one.name), ())))
    yield from (table.markdown(), "")


def _kind(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", inspect.formatannotation(annotation))


def _default(wrapped: Any, parameter: inspect.Parameter) -> str:
    value = parameter.default
    if value is inspect.Parameter.empty or value is gin.REQUIRED:
        return ""
    for field in dataclasses.fields(wrapped) if dataclasses.is_dataclass(wrapped) else ():
        if field.name == parameter.name and callable(field.default_factory):
            value = field.default_factory()
    return getattr(value, "__name__", None) or " ".join(repr(value).split())


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
