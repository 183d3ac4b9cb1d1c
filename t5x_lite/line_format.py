"""One line of a text file as a record: columns of TSV, fields of JSON, or the line itself.

A record is what a task is made of: `{"inputs": …, "targets": …}`, or `{"text": …}` where there is one text and nothing
to answer. Every line stands for itself, so that a file can be read at any line.
"""

import csv
import dataclasses
import functools
import json
import re
import string
from collections.abc import Callable, Mapping
from typing import Any

from t5x_lite.errors import UserError

KINDS = ("tsv", "jsonl", "text")
DIALECTS = ("plain", "escaped", "quoted")
# Columns by default: TSV's first two, and the names that `infer` reads, too.
DEFAULT_COLUMNS: dict[str, tuple[str | int, ...]] = {"tsv": (0, 1), "jsonl": ("input", "target"), "text": ()}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_ESCAPES = {"\\t": "\t", "\\n": "\n", "\\r": "\r", "\\\\": "\\"}


class Malformed(Exception):
    """A line that cannot be understood.

    Attributes:
      reason: what lines are counted by.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(detail or reason)
        self.reason = reason


Parse = Callable[[bytes], dict[str, str]]


@dataclasses.dataclass(frozen=True)
class LineFormat:
    """How the lines of a file are read.

    Attributes:
      kind: one of KINDS.
      columns: of inputs and targets, or one column of text; for TSV numbers from 0, or names in the file's first line.
      template: makes inputs of any columns, `"{question} {context}"`; `{}` is the inputs' own.
      dialect: of TSV cells, one of DIALECTS.
      max_bytes: of a line.

    Raises:
      UserError: an unknown kind or dialect, columns of the wrong number or kind, or a broken template.
    """

    kind: str
    columns: tuple[str | int, ...]
    template: str | None = None
    dialect: str = "plain"
    max_bytes: int = 1 << 20

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"{self.kind!r} is no kind of file; there are {', '.join(KINDS)}")
        if self.dialect not in DIALECTS:
            raise UserError(f"TextFiles.dialect = {self.dialect!r}; there are {', '.join(DIALECTS)}")
        if self.kind == "text":
            return
        shown = f"TextFiles.columns = {self.columns!r}"
        if len(self.columns) not in (1, 2):
            raise UserError(f"{shown}: name one column of text, or two, of inputs and targets")
        numbers = [type(c) is int and c >= 0 for c in self.columns]
        if not (all(isinstance(c, str) for c in self.columns) or (self.kind == "tsv" and all(numbers))):
            raise UserError(f"{shown}: give names" + (", or numbers from 0" if self.kind == "tsv" else ""))
        if self.template is not None and len(self.columns) == 1:
            raise UserError(f"TextFiles.template makes inputs, but {shown} has none; name two columns")
        self._template_columns()

    @property
    def supervised(self) -> bool:
        """Whether records have inputs and targets."""
        return len(self.columns) == 2

    @property
    def has_header(self) -> bool:
        """Whether the first line of a file names its columns."""
        return self.kind == "tsv" and isinstance(self.columns[0], str)

    def open(self, first_line: bytes, path: str) -> Parse:
        """The reader of the lines of a file that begins with `first_line`: bytes without the line's end -> record.

        It raises Malformed for a line that cannot be understood.

        Raises:
          UserError: the first line of a TSV file lacks a column that is asked for.
        """
        if self.kind == "text":
            return lambda line: {"text": _filled(decode(line), "text")}
        if self.kind == "jsonl":
            return lambda line: self._record(functools.partial(text_field, json_object(decode(line))))
        try:
            header = self._cells(decode(first_line))
        except Malformed as e:
            raise UserError(f"{path}:1: {e}; the first line says what columns there are") from e
        needed = [*self.columns, *self._template_columns()]
        places: dict[Any, int] = (
            {c: header.index(c) for c in needed if c in header}
            if self.has_header
            else {c: c for c in needed if isinstance(c, int) and c < len(header)}
        )
        missing = [c for c in needed if c not in places]
        if missing:
            has = f"names {', '.join(map(repr, header))}" if self.has_header else f"has {len(header)} column(s)"
            raise UserError(
                f"{path}:1: no column {missing[0]!r}, the line {has}; set TextFiles.columns (and template) "
                "to what is there: names from the first line, or numbers from 0 where it has none"
            )

        def parse(line: bytes) -> dict[str, str]:
            cells = self._cells(decode(line))
            if len(cells) != len(header):
                raise Malformed("wrong number of columns", f"{len(cells)} column(s), not {len(header)} as in line 1")
            return self._record(lambda column: cells[places[column]])

        return parse

    def _record(self, cell: Callable[[str | int], str]) -> dict[str, str]:
        def text(column):
            return _filled(cell(column), column)

        if not self.supervised:
            return {"text": text(self.columns[0])}
        inputs, targets = self.columns
        if self.template is None:
            return {"inputs": text(inputs), "targets": text(targets)}
        parts = string.Formatter().parse(self.template)
        filled = "".join(before + ("" if name is None else text(self._column(name))) for before, name, _, _ in parts)
        return {"inputs": filled, "targets": text(targets)}

    def _column(self, name: str) -> str | int:
        if not name:
            return self.columns[0]
        return int(name) if isinstance(self.columns[0], int) and name.isdigit() else name

    def _template_columns(self) -> list[str | int]:
        try:
            parsed = list(string.Formatter().parse(self.template or ""))
        except ValueError as e:
            raise UserError(f"TextFiles.template = {self.template!r}: {e}; write {{{{ for a bracket itself") from e
        columns = [self._column(name) for _, name, _, _ in parsed if name is not None]
        if self.template is not None and not columns:
            raise UserError(
                f"TextFiles.template = {self.template!r} has no place for an input: write {{}} where it stands, as in "
                f"'{self.template}: {{}}'"
            )
        odd = [c for c in columns if type(c) is not type(self.columns[0])]
        if odd or any(spec or conversion for _, _, spec, conversion in parsed):
            raise UserError(
                f"TextFiles.template = {self.template!r}: between brackets stands the "
                + ("number" if isinstance(self.columns[0], int) else "name")
                + " of a column, or nothing"
            )
        return columns

    def _cells(self, text: str) -> list[str]:
        if self.dialect == "quoted":
            try:
                return next(csv.reader([text], delimiter="\t", strict=True))
            except csv.Error as e:
                raise Malformed("bad quoting", f"bad quoting ({e})") from e
        cells = text.split("\t")
        if self.dialect == "escaped" and "\\" in text:
            return [re.sub(r"\\[tnr\\]", lambda match: _ESCAPES[match[0]], cell) for cell in cells]
        return cells


def decode(line: bytes) -> str:
    """UTF-8 as text. Raises Malformed."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as e:
        raise Malformed("not UTF-8", f"not UTF-8 at byte {e.start + 1}") from e


def json_object(text: str) -> dict[str, Any]:
    """Raises Malformed for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise Malformed("not JSON", f"not JSON: {e}") from e
    if not isinstance(value, dict):
        raise Malformed("not a JSON object")
    return value


def text_field(value: Mapping[str, Any], name: str) -> str:
    """The text in one field of an object. Raises Malformed where it is missing or no text."""
    if name not in value:
        raise Malformed("missing field", f"no field {name!r}")
    if not isinstance(value[name], str):
        raise Malformed("wrong type", f"field {name!r} is not a string")
    return value[name]


def _filled(text: str, column: str | int) -> str:
    if not text.strip():
        raise Malformed("empty field", f"{column!r} is empty")
    try:
        text.encode()
    except UnicodeEncodeError as e:  # JSON can spell half a character
        raise Malformed("not UTF-8", f"{column!r} has a lone surrogate, which UTF-8 cannot write") from e
    return text


def without_end(line: bytes) -> bytes:
    """A line without LF or CRLF."""
    return line.removesuffix(b"\n").removesuffix(b"\r")
