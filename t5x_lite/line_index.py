"""Text files of any size, read at any line.

The files are read through once. Where each line that can be used begins is kept on disk, and read from there as needed:
memory does not grow with the files. A line that cannot be used is skipped and counted by its reason. The index is
found again by the files' names, sizes and times of change, so that the next start does not read them through.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from etils import epath

from t5x_lite import buckets
from t5x_lite.errors import UserError
from t5x_lite.line_format import BYTE_ORDER_MARK, LineFormat, Malformed, Parse, without_end

VERSION = 1  # of the index: another one is not read
PLACE = np.dtype([("file", "<u4"), ("line", "<u8"), ("offset", "<u8")])
PARTS = ("kept", "held_out")
_BLOCK = 4096  # places written at a time


@dataclasses.dataclass(frozen=True)
class Index:
    """Where the usable lines of some files are.

    Attributes:
      files: as they are named to the user.
      format: of their lines.
      places: PLACE [n], of the part asked for; read from disk as needed.
      report: "lines" in all, "skipped" {reason: count}, "first" {reason: where and what}, "held_out" and "kept" counts.
    """

    files: tuple[str, ...]
    format: LineFormat
    places: np.ndarray
    report: dict[str, Any]

    def describe_skipped(self) -> str:
        """What was skipped and why, in one line; '' where nothing was."""
        return _describe_skipped(self.report)


def open_index(
    files: Sequence[str],
    format: LineFormat,
    part: str = "kept",
    held_out: float = 0.0,
    max_bad_lines: int = 100,
    folder: str | None = None,
) -> Index:
    """The index of `files`, made if it is not there yet.

    Args:
      part: "kept", or "held_out": the lines that the hash of their bytes puts into the share `held_out`. Equal lines
        are on one side, and a line stays on its side whatever is added to the files.
      max_bad_lines: how many lines may be skipped.
      folder: where indices are kept; None for a temporary file.

    Raises:
      UserError: a file that cannot be read, more bad lines than allowed, or none that can be used.
    """
    with tempfile.TemporaryDirectory(prefix="t5x-lite-lines-") as temporary:
        # An open file stays readable when its folder is gone.
        home = _find_or_build(files, format, held_out, max_bad_lines, folder, epath.Path(temporary))
        report = json.loads((home / "report.json").read_text())
        size = report[part]
        places = np.memmap(home / part, PLACE, mode="r", shape=(size,)) if size else np.empty(0, PLACE)
    if sum(report["skipped"].values()) > max_bad_lines:
        raise UserError(_too_many(report, max_bad_lines))
    if not report["kept"] + report["held_out"]:
        why = f": {_describe_skipped(report)}" if report["skipped"] else ""
        raise UserError(f"{', '.join(files)}: no line that can be used among {report['lines']}{why}")
    return Index(tuple(files), format, places, report)


class Records:
    """The records of an index by number: `len()`, `[i]`, `__getitems__([i, j])`; values are UTF-8 bytes."""

    def __init__(self, index: Index):
        self._index = index
        self._parsers: dict[int, Parse] = {}

    def __len__(self) -> int:
        return len(self._index.places)

    def __getitem__(self, i: int) -> dict[str, bytes]:
        return self.__getitems__([i])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, bytes]]:
        """In the order asked for; read file by file, from front to back.

        Raises:
          UserError: a file is gone, or has changed since it was indexed.
        """
        places = self._index.places[np.asarray(indices, np.int64)]
        out: list[dict[str, bytes]] = [{}] * len(places)
        order = np.lexsort((places["offset"], places["file"]))
        for file in np.unique(places["file"]):
            name = self._index.files[file]
            with _open(name) as f:
                parse = self._parser(int(file), f)
                for j in order[places["file"][order] == file]:
                    f.seek(int(places["offset"][j]))
                    try:
                        record = parse(without_end(f.readline(self._index.format.max_bytes + 2)))
                    except Malformed as e:
                        raise UserError(
                            f"{name}:{places['line'][j]}: {e}; the file has changed while it was used, start again"
                        ) from e
                    out[j] = {key: text.encode() for key, text in record.items()}
        return out

    def where(self, i: int) -> str:
        """`file:line` of a record."""
        place = self._index.places[i]
        return f"{self._index.files[place['file']]}:{place['line']}"

    def _parser(self, file: int, f: BinaryIO) -> Parse:
        if file not in self._parsers:
            first = without_end(f.readline(self._index.format.max_bytes).removeprefix(BYTE_ORDER_MARK))
            self._parsers[file] = self._index.format.open(first, self._index.files[file])
        return self._parsers[file]


def is_held_out(line: bytes, share: float) -> bool:
    """Whether a line, as bytes without its end, belongs to the share that is kept for validation."""
    return int.from_bytes(hashlib.blake2b(line, digest_size=8).digest(), "little") < share * 2.0**64


def _find_or_build(files, format, held_out, max_bad_lines, folder, temporary) -> epath.Path:
    state = [(os.path.abspath(name) if "://" not in name else name, *_size_and_time(name)) for name in files]
    digest = hashlib.sha256(repr((VERSION, state, format, held_out)).encode()).hexdigest()[:24]
    if folder is not None:
        home = epath.Path(folder).expanduser() / digest
        if (home / "report.json").exists():
            return home
        try:
            home.parent.mkdir(parents=True, exist_ok=True)
            made = epath.Path(tempfile.mkdtemp(dir=home.parent, prefix="making-"))
        except OSError:  # a home that cannot be written to
            folder = None
    if folder is None:
        made = temporary
    try:
        _build(files, format, held_out, max_bad_lines, made)
        if folder is None:
            return made
        with contextlib.suppress(OSError):  # another process was quicker
            made.rename(home)
        return home
    finally:
        if folder is not None and made.exists():
            made.rmtree()


def _build(files, format, held_out, max_bad_lines, folder: epath.Path) -> None:
    report: dict[str, Any] = {"lines": 0, "skipped": Counter(), "first": {}, **dict.fromkeys(PARTS, 0)}
    waiting = {part: [] for part in PARTS}
    outs = {part: (folder / part).open("wb") for part in PARTS}

    def write(part):
        outs[part].write(np.array(waiting[part], PLACE).tobytes())
        waiting[part].clear()

    for file, name in enumerate(files):
        parse = None
        for number, offset, line, too_long in _lines(name, format.max_bytes):
            if parse is None:
                parse = format.open(line, name)
                if format.has_header:
                    continue
            if not line.strip() and not too_long:
                continue  # a blank line stands between others
            report["lines"] += 1
            try:
                if too_long:
                    raise Malformed("too long", f"longer than TextFiles.max_line_bytes = {format.max_bytes}")
                parse(line)
            except Malformed as e:
                report["skipped"][e.reason] += 1
                report["first"].setdefault(e.reason, f"{name}:{number}: {e}")
                if sum(report["skipped"].values()) > max_bad_lines:
                    raise UserError(_too_many(report, max_bad_lines)) from e
                continue
            part = PARTS[held_out > 0 and is_held_out(line, held_out)]
            report[part] += 1
            waiting[part].append((file, number, offset))
            if len(waiting[part]) == _BLOCK:
                write(part)
    for part, out in outs.items():
        write(part)
        out.close()
    (folder / "report.json").write_text(json.dumps(report))


def _lines(name: str, max_bytes: int) -> Iterator[tuple[int, int, bytes, bool]]:
    """(number from 1, offset, bytes without end, whether it is longer than `max_bytes` and cut) of each line."""
    with _open(name) as f:
        offset, number = 0, 0
        while piece := f.readline(max_bytes + 2):
            number += 1
            start, line = offset, piece
            offset += len(piece)
            while not piece.endswith(b"\n") and (piece := f.readline(max_bytes)):
                offset += len(piece)
            if number == 1 and line.startswith(BYTE_ORDER_MARK):
                start, line = len(BYTE_ORDER_MARK), line.removeprefix(BYTE_ORDER_MARK)
            line = without_end(line)
            yield number, start, line, len(line) > max_bytes


def _open(name: str) -> BinaryIO:
    try:
        file = epath.Path(name).open("rb")
        return io.BufferedReader(file) if buckets.is_remote(name) else file  # fsspec's have no bounded readline
    except OSError as e:
        raise UserError(f"{name} cannot be read ({type(e).__name__}); check MIXTURE_OR_TASK_NAME and TextFiles") from e


def _size_and_time(name: str) -> tuple[int, float | str]:
    try:
        stat = epath.Path(name).stat()
        if buckets.is_remote(name):
            return stat.length, buckets.version(name)
    except OSError as e:
        raise UserError(f"{name} cannot be read ({type(e).__name__}); check MIXTURE_OR_TASK_NAME and TextFiles") from e
    return stat.length, stat.mtime


def _too_many(report, limit: int) -> str:
    first = next(iter(report["first"].values()))
    return (
        f"{first}; {_describe_skipped(report)}, more than TextFiles.max_bad_lines = {limit}: mend the lines, or "
        "raise it to skip them"
    )


def _describe_skipped(report) -> str:
    skipped = report["skipped"]
    if not skipped:
        return ""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in skipped.items())
    return f"{sum(skipped.values()):,} of {report['lines']:,} line(s) skipped ({reasons})"
