"""Bindings as they are written, in gin files and on the command line: text in, statements out.

Names are not looked up here: a value's references stand for themselves until all imports have run.
"""

import dataclasses
import io
import os
import re
import tokenize
from collections.abc import Iterator, Sequence
from typing import Any

from gin import config as gin_config
from gin import config_parser
from t5x_lite.errors import UserError, first_line
from t5x_lite.gin_files import FLAG, GinFile, as_path, find_file


@dataclasses.dataclass(frozen=True)
class Binding:
    """A binding of the command line: `MACRO` or `scope/configurable.parameter`, its value's text, the flag to blame."""

    name: str
    text: str
    flag: str


@dataclasses.dataclass(frozen=True)
class Later:
    """Stands for `@name`, `@name()` or `%name` in a parsed value until all imports have run."""

    name: str
    evaluate: bool
    is_macro: bool


@dataclasses.dataclass(eq=False)
class Statement:
    """One binding as written: where (`my.gin:3` or `--gin.X`), by whom (rank), and the imports of its file."""

    scope: str
    selector: str
    argument: str  # empty: `selector` is a macro
    value: Any
    rank: int
    where: str
    context: gin_config.ParseContext
    file: str = ""  # path; empty for the command line
    macros: frozenset[str] = frozenset()  # to which the value refers
    key: tuple[str, str, str] | None = None  # (scope, complete selector, argument), once the name is known

    def __post_init__(self):
        self.macros = frozenset(macros_in(self.value))

    @property
    def written(self) -> str:
        name = f"{self.selector}.{self.argument}" if self.argument else self.selector
        return f"{self.scope}/{name}" if self.scope else name

    @property
    def at(self) -> str:
        """To name it in an error: the flag, or the binding with file and line."""
        return self.where if self.rank == FLAG else f"{self.written} ({self.where})"


def macros_in(value: Any) -> Iterator[str]:
    """The names of the macros that a value refers to, at whatever depth, and as often as it does."""
    match value:
        case dict():
            yield from macros_in([*value.keys(), *value.values()])
        case list() | tuple():
            for item in value:
                yield from macros_in(item)
        case Later(name, _, True):
            yield name


class Reader:
    """Reads files and flags.

    Attributes:
      statements: in the order read.
      files: likewise.
      includes: path of a file -> paths of all files that it includes, directly or not.
    """

    def __init__(self):
        self.statements: list[Statement] = []
        self.files: list[GinFile] = []
        self.includes: dict[str, set[str]] = {}

    def file(self, file: GinFile, search_paths: Sequence[str]) -> None:
        """Read a file and all that it includes; run its imports. Raises UserError."""
        if file.path in self.includes:
            return
        self.files.append(file)
        included = self.includes[file.path] = set()
        try:
            text = as_path(file.path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"{file.name} cannot be read: {e}") from e
        context = gin_config.ParseContext()
        for statement in syntax(text, file.name):
            where = f"{file.name}:{statement.location.line_num}"
            match statement:
                case config_parser.IncludeStatement():
                    other = find_file(statement.filename, search_paths, file.path, where)
                    self.file(other, search_paths)
                    included |= {other.path} | self.includes[other.path]
                case config_parser.ImportStatement():
                    _import(statement, where, context)
                case config_parser.BindingStatement(scope, selector, argument, value, _):
                    self.statements.append(
                        Statement(scope, selector, argument, value, file.rank, where, context, file.path)
                    )

    def flag(self, binding: str | Binding) -> None:
        """Read `NAME=VALUE`, as after `--gin.`, or a Binding. Raises UserError."""
        binding = binding if isinstance(binding, Binding) else _split_flag(binding)
        if not _NAME.fullmatch(binding.name):
            raise UserError(
                f"{binding.flag}: '{binding.name}' is no name; write --gin.MACRO=VALUE or "
                "--gin.scope/configurable.parameter=VALUE, with letters, digits and underscores"
            )
        scope, selector, argument = config_parser.parse_binding_key(binding.name)
        if not argument and scope:
            scope, selector = "", f"{scope}/{selector}"
        value = _flag_value(binding.text, binding.flag)
        self.statements.append(
            Statement(scope, selector, argument, value, FLAG, binding.flag, gin_config.ParseContext())
        )


class _Delegate(config_parser.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name, evaluate):
        return Later(scoped_configurable_name, evaluate, False)

    def macro(self, macro_name):
        return Later(macro_name, True, True)


def syntax(text: str, name: str) -> Iterator[Any]:
    """The statements of a gin file, as gin's parser gives them. Raises UserError with the line that is none."""
    try:
        yield from config_parser.ConfigParser(io.StringIO(text), _Delegate())
    except SyntaxError as e:
        line = text.splitlines()[(e.lineno or 1) - 1 :][:1]
        raise UserError(
            f"{name}:{e.lineno}: {first_line(e.msg)} in `{''.join(line).strip()}` (a binding is NAME = "
            "VALUE; text needs quotes in a file)"
        ) from e
    except tokenize.TokenError as e:
        message, (line_number, _) = e.args
        raise UserError(f"{name}:{line_number}: {message} (is a bracket or a quote left open?)") from e


def _import(statement, where: str, context: gin_config.ParseContext) -> None:
    try:
        context.process_import(statement)
    except ImportError as e:
        raise UserError(
            f"{where}: `{statement.format()}` failed: {first_line(e)} (is it installed, or its folder on PYTHONPATH?)"
        ) from e
    except SyntaxError as e:
        if statement.module.startswith("__gin__"):
            raise UserError(f"{where}: {first_line(e.msg)}") from e
        raise  # the user's module has a syntax error of its own: its trace says more than a line could
    gin_config._IMPORTS.update(context.imports)


def _split_flag(text: str) -> Binding:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--gin.{text} has no value: write --gin.{name}=VALUE")
    return Binding(name, value, f"--gin.{name}")


_NAME = re.compile(r"([A-Za-z_]\w*/)*([A-Za-z_]\w*\.)*[A-Za-z_]\w*")


def _flag_value(text: str, flag: str) -> Any:
    """Return the value of `--gin.NAME=text`.

    What is wholly a gin value is that value (`1e-3`, `True`, `None`, `(1, 2)`, `{"inputs": 512}`, `@x()`, `%X`,
    `"text"`); anything else that cannot be meant as one is text, a leading `~/` being the home folder. References are
    returned unresolved.

    Raises:
      UserError: a value that may be a slip rather than text: `true`, `1,2`, an open bracket, nothing at all.
    """
    stripped = text.strip()
    whole, value = _gin_value(stripped)
    if whole:
        return value
    quoted = f"'\"{stripped}\"'"
    if not stripped:
        raise UserError(f"{flag}= has no value; for empty text write {flag}='\"\"'")
    if stripped.lower() in ("true", "false", "none", "null"):
        meant = "None" if stripped.lower() in ("none", "null") else stripped.capitalize()
        raise UserError(f"{flag}={stripped}: write {meant} (or {quoted} for the text)")
    if "," in stripped and all(_gin_value(part.strip())[0] for part in stripped.rstrip(",").split(",")):
        raise UserError(f"{flag}={stripped}: for several values write {flag}='({stripped})'")
    if not re.match(r"[\w./~:+*-]", stripped) or any(c in stripped for c in "\"'\n\\"):
        raise UserError(
            f"{flag}={_shorten(stripped)}: not a value; check brackets and quotes, put the whole flag in "
            "single quotes for the shell, and write text as '\"text\"'"
        )
    return os.path.expanduser(stripped) if stripped.startswith("~") else stripped


def _gin_value(text: str) -> tuple[bool, Any]:
    """Whether the whole of `text` is one gin value, and that value."""
    try:
        parser = config_parser.ConfigParser(text, _Delegate())
        value = parser.parse_value()
        end = (tokenize.NEWLINE, tokenize.NL, tokenize.ENDMARKER)
        return parser.current_token.type in end, value
    except (SyntaxError, tokenize.TokenError, ValueError, StopIteration):
        return False, None


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."
