"""Lines of text in, JSON lines out: what `infer` reads and writes.

Input is read one line a record, so the output has as many lines as the input, in its order: a line that cannot be
understood is a record too, with its error. Output to a file is written in parts, each whole or absent, so that a job
that was killed goes on where it stopped; a part is one object, because remote objects cannot be appended to.
"""

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from etils import epath

from t5x_lite import buckets
from t5x_lite.errors import UserError
from t5x_lite.line_format import (
    BYTE_ORDER_MARK,
    DEFAULT_COLUMNS,
    Malformed,
    decode,
    json_object,
    text_field,
    without_end,
)

STANDARD = "-"  # stdin or stdout
FORMATS = {".txt": "txt", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


@dataclasses.dataclass(frozen=True)
class Record:
    """One line of input.

    Attributes:
      input: the text; of a line that cannot be understood, the line itself.
      target: the text to score, where one was asked for.
      choices: the texts to choose from, where they were asked for.
      error: why the line cannot be understood, or None.
    """

    input: str
    target: str | None = None
    error: str | None = None
    choices: tuple[str, ...] | None = None


class TextInput:
    """The records of a file or of stdin (`-`); to be iterated once.

    Formats: `txt`, the line is the input. `tsv`, no quoting; the first column is the input and the second the target,
    or the columns that a header line calls `input_field` and `target_field`. `jsonl`, one object a line, with fields
    `input` and `target` unless others are named; `choices` is a list of texts.

    Args:
      path: local or remote, or `-`.
      format: one of FORMATS' values; by default told by the file's ending, and `txt` for stdin.
      input_field, target_field: names of columns or fields.
      with_target: whether records need a target.
      with_choices: whether records need choices, which only `jsonl` has.

    Raises:
      UserError: no such file, unknown format, a target asked of `txt`, choices of anything but `jsonl`, a header
        without the named column.
    """

    def __init__(
        self,
        path: epath.PathLike,
        format: str | None = None,
        input_field: str | None = None,
        target_field: str | None = None,
        with_target: bool = False,
        with_choices: bool = False,
    ):
        self.path = os.fspath(path)
        self.format = format or ("txt" if self.path == STANDARD else FORMATS.get(epath.Path(self.path).suffix))
        if self.format not in FORMATS.values():
            raise UserError(
                f'Cannot tell the format of {self.path}: set infer.input_format to "txt", "tsv" or "jsonl".'
            )
        if with_target and self.format == "txt":
            raise UserError(f"{self.path} has no targets to score: give a .tsv or .jsonl file.")
        if self.format == "txt" and (input_field or target_field):
            raise UserError(
                f"{self.path} is plain text and has no field to name: drop infer.input_field, or set "
                'infer.input_format to "tsv" or "jsonl".'
            )
        if with_choices and self.format != "jsonl":
            raise UserError(
                f"{self.path} has no choices to rank: set infer.choices to a list of texts, or give a "
                '.jsonl file whose lines have a field "choices".'
            )
        self._fields = (input_field, target_field)
        self._with_target, self._with_choices = with_target, with_choices
        self._read = 0  # bytes
        self._size = None
        if self.path == STANDARD:
            self._file = sys.stdin.buffer
        else:
            try:
                self._size = epath.Path(self.path).stat().length
                self._file = epath.Path(self.path).open("rb")
            except OSError as e:
                raise UserError(f"Cannot read the input {self.path} ({type(e).__name__}): check infer.input.") from e
        self._lines = self._split(self._file)
        self._columns = self._find_columns() if self.format == "tsv" else []

    @property
    def fraction(self) -> float | None:
        """Part of the file that has been read, in bytes; None for stdin."""
        return min(1.0, self._read / self._size) if self._size else None

    def __iter__(self) -> Iterator[Record]:
        parsers: dict[str, Callable[[str], Record]]
        parsers = {"txt": Record, "tsv": self._parse_cells, "jsonl": self._parse_json}
        parse = parsers[self.format]
        with contextlib.nullcontext() if self.path == STANDARD else self._file:
            for line in self._lines:
                try:
                    yield parse(decode(line))
                except Malformed as e:
                    yield Record(line.decode("utf-8", errors="replace"), error=str(e))

    def _split(self, file: BinaryIO) -> Iterator[bytes]:
        """Lines without their end (LF or CRLF). Split as bytes: str.splitlines also splits at U+2028 and the like."""
        for number, line in enumerate(file):
            self._read += len(line)
            if number == 0:
                line = line.removeprefix(BYTE_ORDER_MARK)
            yield without_end(line)

    def _find_columns(self) -> list[int]:
        columns = [0, 1]
        if any(self._fields):
            header = next(self._lines, b"").decode("utf-8", errors="replace").split("\t")
            for i, name in enumerate(self._fields):
                if name is not None:
                    if name not in header:
                        raise UserError(f"{self.path} has no column {name!r}: its first line names {header}.")
                    columns[i] = header.index(name)
        return columns[: 2 if self._with_target else 1]

    def _parse_cells(self, text: str) -> Record:
        cells = text.split("\t")
        if len(cells) <= max(self._columns):
            raise Malformed("wrong number of columns", f"{len(cells)} column(s), {max(self._columns) + 1} needed")
        found = [cells[c] for c in self._columns]
        return Record(found[0], found[1] if self._with_target else None)

    def _parse_json(self, text: str) -> Record:
        value = json_object(text)
        names = [given or str(default) for given, default in zip(self._fields, DEFAULT_COLUMNS["jsonl"], strict=True)]
        found = [text_field(value, name) for name in names[: 2 if self._with_target else 1]]
        choices = self._parse_choices(value) if self._with_choices else None
        return Record(found[0], found[1] if self._with_target else None, choices=choices)

    def _parse_choices(self, value: dict[str, Any]) -> tuple[str, ...]:
        if "choices" not in value:
            raise Malformed("missing field", "no field 'choices'")
        choices = value["choices"]
        if not isinstance(choices, list) or not choices or not all(isinstance(c, str) for c in choices):
            raise Malformed("wrong type", "field 'choices' is not a list of strings")
        return tuple(choices)


class StandardOutput:
    """JSON lines to stdout; nothing to resume."""

    def done(self) -> Iterator[dict[str, Any]]:
        return iter(())

    def write(self, records: Iterable[dict[str, Any]]) -> None:
        sys.stdout.flush()
        sys.stdout.buffer.write(_json_lines(records).encode("utf-8"))  # whatever the terminal's locale
        sys.stdout.buffer.flush()

    def finish(self) -> None:
        pass


class FileOutput:
    """JSON lines to a file that appears when it is complete; until then parts lie in the folder `<path>.partial`.

    Args:
      path: local or remote.
      settings: JSON-able, flat; what the records depend on. Parts made with other settings are refused.
      overwrite: start anew, whatever is there.

    Raises:
      UserError: the output exists, or its parts were made with other settings.
    """

    def __init__(self, path: epath.PathLike, settings: dict[str, Any], overwrite: bool = False):
        self.path = epath.Path(path)
        self.folder = self.path.with_name(self.path.name + ".partial")
        self._lines = 0  # in the parts
        if overwrite:
            self.path.unlink(missing_ok=True)
            if self.folder.exists():
                self.folder.rmtree()
        if self.path.exists():
            raise UserError(f"The output {self.path} exists: name another, or set infer.overwrite=True.")
        settings = json.loads(json.dumps(settings))  # as it will be read back: tuples are lists
        file = self.folder / "settings.json"
        if file.exists():
            before = json.loads(file.read_text())
            differ = [k for k in sorted({*before, *settings}) if before.get(k) != settings.get(k)]
            if differ:
                raise UserError(
                    f"{self.folder} was made with another {', '.join(differ)} "
                    f"({before.get(differ[0])!r}, now {settings.get(differ[0])!r}): {_ANEW}"
                )
        else:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                _write_whole(file, [json.dumps(settings).encode()])
            except OSError as e:
                raise UserError(f"Cannot write to {self.folder} ({type(e).__name__}): check infer.output.") from e

    def done(self) -> Iterator[dict[str, Any]]:
        """The records that earlier runs wrote, in order. To be read to its end before anything is written."""
        for part in self._parts():
            if part.name != _part_name(self._lines):
                raise UserError(f"{self.folder} lacks the part {_part_name(self._lines)}: {_ANEW}")
            for line in part.read_bytes().decode("utf-8").split("\n")[:-1]:
                self._lines += 1
                try:
                    yield json.loads(line)
                except ValueError as e:
                    raise UserError(f"{part} is damaged: {_ANEW}") from e

    def write(self, records: list[dict[str, Any]]) -> None:
        """One more part."""
        _write_whole(self.folder / _part_name(self._lines), [_json_lines(records).encode("utf-8")])
        self._lines += len(records)

    def finish(self) -> None:
        """Puts the parts together."""
        _write_whole(self.path, (part.read_bytes() for part in self._parts()))
        self.folder.rmtree()

    def _parts(self) -> list[epath.Path]:
        return sorted(self.folder.glob("part-*.jsonl"))


def open_output(path: epath.PathLike, settings: dict[str, Any], overwrite: bool = False) -> FileOutput | StandardOutput:
    """Where answers go: a file, gone on with where one is half written with the same settings, or `-` for stdout.

    Raises:
      UserError: as FileOutput.
    """
    return StandardOutput() if os.fspath(path) == STANDARD else FileOutput(path, settings, overwrite)


_ANEW = "start anew with infer.overwrite=True, or name another output."


def _part_name(first_line: int) -> str:
    return f"part-{first_line:012d}.jsonl"


def _json_lines(records: Iterable[dict[str, Any]]) -> str:
    return "".join(_json_line(record) + "\n" for record in records)


def _json_line(record: dict[str, Any]) -> str:
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:  # a lone surrogate, which JSON can escape and UTF-8 cannot write
        return json.dumps(record, allow_nan=False)


def _write_whole(path: epath.Path, pieces: Iterable[bytes]) -> None:
    """Writes so that a reader finds all of the file or none: under another name first, where there is renaming."""
    if buckets.is_remote(path):  # an object is there when it is closed, or not at all
        path.write_bytes(b"".join(pieces))
        return
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as f:
        for piece in pieces:
            f.write(piece)
        _to_disk(f)
    temporary.replace(path)


def _to_disk(f: BinaryIO) -> None:
    f.flush()
    with contextlib.suppress(OSError):  # some network file systems cannot
        os.fsync(f.fileno())
