"""Data of one's own, named where a task is named: `tsv:/data/train.tsv`, `jsonl:/data/*.jsonl`, `text:/data/books.txt`.

TSV and JSONL are pairs of inputs and targets; text is one document a line, for an unsupervised objective (so is one
column of TSV or JSONL). Everything else about the files are bindings of TextFiles. Needs neither seqio nor TensorFlow;
what makes a seqio task of the files is beside the other tasks.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from etils import epath

import gin
from t5x_lite import buckets, console
from t5x_lite.errors import UserError
from t5x_lite.line_format import DEFAULT_COLUMNS, KINDS, LineFormat
from t5x_lite.line_index import Records, open_index

SPLITS = ("train", "validation", "test")
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class TextFiles:
    """Files of lines, and how lines become examples. The bindings hold for every `tsv:`, `jsonl:` and `text:` name.

    Files with options of their own get a name and a gin scope:
    `TEXT_FILES = {'reviews': @reviews/TextFiles()}`, `reviews/TextFiles.train = 'tsv:/data/reviews.tsv'`.

    A blank line stands between others and is passed over. A line that cannot be used (other columns than the first
    line, a missing field, a field that is no text, invalid UTF-8, an empty field, too long) is skipped and counted.

    Attributes:
      train, validation, test: a kind and a path or glob, `tsv:/data/train-*.tsv`; local or remote. `validation` and
        `test` may leave out the kind. Files are read in the order of their names.
      held_out: without `validation`, the share of the training lines that is kept for it: those whose bytes' BLAKE2b
        hash is below it. The choice depends on nothing but the line.
      columns: of inputs and targets; or a single one, of text. For TSV names in the first line, or numbers from 0
        where it holds data; by default (0, 1). For JSONL names of fields, by default ("input", "target").
      template: makes the inputs, of any columns: `translate: {source}`, `{0}` for columns by number, `{}` for the
        inputs' column. `text:` has none.
      dialect: of TSV. "plain": no character but tab and newline has a meaning. "escaped": backslash and t, n, r or
        backslash. "quoted": as spreadsheets write, with "" for a quote in quotes; a cell stays on one line.
      metrics: names of metrics of decoded answers, such as ("accuracy", "rouge"). `text:` has none.
      objective: what makes inputs and targets of text; a function of `t5x_lite.tasks.preprocessors`. "unsupervised" is
        the objective whose gin file is given, such as `objectives/prefix_lm.gin`.
      max_line_bytes: longer lines are skipped.
      max_bad_lines: the run stops before its first step when a split has more of them.
      index_folder: where it is kept what line begins where; None for a temporary file at each start.
    """

    train: str | None = None
    validation: str | None = None
    test: str | None = None
    held_out: float = 0.05
    columns: Sequence[str | int] | None = None
    template: str | None = None
    dialect: str = "plain"
    metrics: Sequence[str] = ()
    objective: str = "span_corruption"
    max_line_bytes: int = 1 << 20
    max_bad_lines: int = 100
    index_folder: str | None = "~/.cache/t5x-lite/lines"

    def __post_init__(self):
        for name in ("columns", "metrics"):
            value = getattr(self, name)
            if isinstance(value, (str, int)):
                raise UserError(f"TextFiles.{name} = {value!r}: write ({value!r},) for one")
            if value is not None:
                object.__setattr__(self, name, tuple(value))  # gin gives a list for [a, b]
        if not (isinstance(self.held_out, (int, float)) and 0 <= self.held_out < 1):
            raise UserError(f"TextFiles.held_out = {self.held_out!r} is no share of lines, such as 0.05")
        for name, least in (("max_line_bytes", 1), ("max_bad_lines", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise UserError(f"TextFiles.{name} must be a whole number of at least {least}, not {value!r}")

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that there are."""
        have = {"train": True, "validation": self.validation or self.held_out, "test": self.test}
        return tuple(split for split in SPLITS if have[split])

    @property
    def supervised(self) -> bool:
        """Whether the examples have inputs and targets, rather than a text."""
        return self._format("train").supervised

    def to_dict(self) -> dict[str, Any]:
        """What the training examples depend on; metrics, limits and where the index lies are not part of it."""
        names = ("train", "columns", "template", "dialect", "objective", "max_line_bytes")
        held_out = self.held_out if self.validation is None else 0.0
        return {name: getattr(self, name) for name in names} | {"held_out": held_out}

    def open_split(self, split: str) -> Records:
        """The records of one of `splits`, `{"inputs", "targets"}` or `{"text"}`; the files are read through once.

        What was skipped of the files is said on stdout, by one process.

        Raises:
          UserError: no such file, a file that cannot be read at any line, too many bad lines, or no line at all.
        """
        part, share = "kept", 0.0
        if self.validation is None and split in ("train", "validation"):
            part, share = ("kept" if split == "train" else "held_out"), self.held_out
        index = open_index(self._files(split), self._format(split), part, share, self.max_bad_lines, self.index_folder)
        if not len(index.places):
            raise UserError(
                f"{self.train}: none of {index.report['lines']} line(s) falls to {split}, with "
                f"TextFiles.held_out = {self.held_out}; set TextFiles.validation, or another share"
            )
        if index.report["skipped"] and part == "kept":
            first = next(iter(index.report["first"].values()))
            console.show(f"note: {self._place(split)[1]}: {index.describe_skipped()}; the first is {first}", None)
        return Records(index)

    def _place(self, split: str) -> tuple[str, str]:
        """(kind, path or glob) of the files that hold a split."""
        name = getattr(self, split) or self.train
        if name is None:
            raise UserError("TextFiles.train is not set; for example 'tsv:/data/train.tsv'")
        if is_file_name(name):
            kind, _, path = name.partition(":")
        elif split == "train":
            raise UserError(
                f"TextFiles.train = {name!r} does not say what it is; write tsv:{name}, jsonl:{name} or text:{name}"
            )
        else:
            kind, path = self._place("train")[0], name
        return kind, os.path.expanduser(path)

    def _format(self, split: str) -> LineFormat:
        kind, _ = self._place(split)
        if kind == "text":
            return LineFormat(kind, (), max_bytes=self.max_line_bytes)
        columns = DEFAULT_COLUMNS[kind] if self.columns is None else self.columns
        return LineFormat(kind, tuple(columns), self.template, self.dialect, self.max_line_bytes)

    def _files(self, split: str) -> list[str]:
        _, pattern = self._place(split)
        files = [f for f in buckets.glob(pattern) if not epath.Path(f).is_dir()]
        if not files:
            raise UserError(f"{split} data {pattern!r}: no such file; give a file or a glob such as /data/*.tsv")
        compressed = [f for f in files if f.endswith(_COMPRESSED)]
        if compressed:
            raise UserError(f"{compressed[0]} is compressed, and cannot be read at any line; unpack it")
        return files


def is_file_name(name: str) -> bool:
    """Whether a name where a task is named means files."""
    return name.partition(":")[0] in KINDS and ":" in name


def short_name(name: str) -> str:
    """What files are called in metrics: their file name without its ending, `train` of `tsv:/data/train.tsv`."""
    stem = pathlib.PurePath(name.partition(":")[2]).name.split(".")[0]
    return re.sub(r"\W+", "_", stem).strip("_") or "files"
