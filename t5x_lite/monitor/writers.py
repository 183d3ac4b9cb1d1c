"""metrics.jsonl, TensorBoard events, and whatever else is given what these are (trackers.py).

Event files are framed by TensorBoard's own record writer; its EventFileWriter would import TensorFlow wherever that is
installed (about ten seconds), so it is not used. Without `tensorboard` only metrics.jsonl is written.
"""

import io
import itertools
import json
import math
import os
import re
import socket
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from t5x_lite import buckets
from t5x_lite.monitor.trackers import Writer
from t5x_lite.run_folder import write_whole

METRICS_FILE = "metrics.jsonl"
_PART = re.compile(r"metrics-(\d+)\.jsonl")


def metrics_files(model_dir) -> list[epath.Path]:
    """A run's metric files in the order they were written: metrics.jsonl, then metrics-0.jsonl, metrics-1.jsonl."""
    folder = epath.Path(model_dir)
    if not folder.exists():
        return []
    names = {path.name: path for path in folder.iterdir()}
    parts = sorted((int(match[1]), name) for name in names if (match := _PART.fullmatch(name)))
    return [names[name] for name in ([METRICS_FILE] if METRICS_FILE in names else []) + [name for _, name in parts]]


def metric_line(step: int, name: str, value: float, wall_time: float) -> str:
    """One line of metrics.jsonl, with its newline. JSON has no NaN: they stand as "NaN", "Infinity", "-Infinity".

    `float(line["value"])` reads numbers and these strings alike.
    """
    value = float(value)
    if not math.isfinite(value):
        value = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    entry = {"step": int(step), "name": name, "value": value, "time": round(wall_time, 3)}
    return json.dumps(entry, allow_nan=False) + "\n"


def _keep_lines(path: epath.Path, keep: Callable[[int, str], bool]) -> None:
    """Leaves those complete lines in a file that `keep(step, name)` approves; removes the file when none is left."""
    old = path.read_text()
    kept = []
    for line in old.splitlines(keepends=True):
        if not line.endswith("\n"):
            continue  # torn: the run died while writing it
        try:
            entry = json.loads(line)
            approved = keep(entry["step"], entry["name"])
        except (ValueError, KeyError, TypeError):
            continue  # a disk that was full leaves such lines
        if approved:
            kept.append(line)
    new = "".join(kept)
    if new == old:
        return
    if not new:
        path.unlink()
        return
    write_whole(path, new)


class MetricsWriter:
    """Writes scalars to MODEL_DIR/metrics.jsonl and, for TensorBoard, to MODEL_DIR/tensorboard.

    Each (step, name) stands once: what a dead run wrote after the resumed step is dropped, and writing a pair again
    replaces it. Where files can be appended to, a written line is in the file when `write` returns. Objects (gs://,
    s3://) cannot be appended to: there, lines and events gather for `part_seconds` and become a part of their own,
    metrics-<n>.jsonl, on the next `write`, `flush` or `close`.

    One process writes a run's training metrics; another one (an evaluation job) may add other names to a local folder.

    What cannot be written (disk full, folder gone) is said once and kept in memory; each later `write` tries again.
    TensorBoard alone may lack what fell into such a time.

    Args:
      model_dir: the run's folder, made if missing.
      resume_step: last completed step of the restored checkpoint, 0 when training from scratch: lines of later steps
        are dropped and TensorBoard hides their events. None keeps everything: for a job that adds to a finished run.
      enabled: False makes every method do nothing (processes other than the first).
      append: False forces parts, e.g. for a bucket mounted as a folder. None: parts wherever the path has a scheme.
      part_seconds: how long lines may gather before they become a part.
      say: is told when writing fails and when it works again.
      others: that are given the same; see `trackers.py`. Their failures are not this one's.
    """

    def __init__(
        self,
        model_dir,
        *,
        resume_step: int | None = None,
        enabled: bool = True,
        append: bool | None = None,
        part_seconds: float = 60.0,
        say: Callable[[str], None] = print,
        others: Sequence[Writer] = (),
    ):
        self._enabled = enabled
        if not enabled:
            return
        self._folder = epath.Path(model_dir)
        self._append = not buckets.is_remote(model_dir) if append is None else append
        self._part_seconds = part_seconds
        self._say, self._failing = say, False
        self._others = others
        self._folder.mkdir(parents=True, exist_ok=True)
        # Highest step written for each name: a write beyond it cannot be a repetition, and needs no look at the files.
        self._last: dict[str, int] = {}
        self._keep(lambda step, name: resume_step is None or step <= resume_step)
        self._pending: dict[tuple[int, str], str] = {}
        self._parts = self._next_part()
        self._part_started = time.monotonic()
        self._events = _EventWriter(self._folder / "tensorboard", self._append, resume_step)

    def rewind(self, step: int) -> None:
        """The run goes on from `step`: what was written of later ones is dropped, as on a resume."""
        if not self._enabled:
            return
        self._pending = {key: line for key, line in self._pending.items() if key[0] <= step}
        self._last = {name: min(last, step) for name, last in self._last.items()}
        with self._survived():
            self._keep(lambda at, name: at <= step)
            self._events.rewind(step)
        for other in self._others:
            other.rewind(step)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes {name: value} of one step; values are numbers or arrays of one element.

        Raises:
          TypeError: a value is not a single number. Nothing of the step is written then.
        """
        if not self._enabled:
            return
        now = time.time()
        values = {name: scalar(name, value) for name, value in metrics.items()}
        repeated = {(step, name) for name in values if step <= self._last.get(name, -1)}
        if repeated:
            with self._survived():
                self._keep(lambda *key: key not in repeated)
        for name, value in values.items():
            self._last[name] = max(step, self._last.get(name, step))
            self._pending[step, name] = metric_line(step, name, value, now)
        with self._survived():
            self._events.write(step, values, now)
        for other in self._others:
            other.write(step, values, now)
        if self._append or time.monotonic() - self._part_started >= self._part_seconds:
            self.flush()

    def flush(self) -> None:
        """Puts everything written so far into files. Call it when a checkpoint has been saved."""
        if not self._enabled:
            return
        for other in self._others:
            other.flush()
        if not self._pending:
            return
        text = "".join(self._pending.values()).encode()
        with self._survived():
            if self._append:
                _append(self._folder / METRICS_FILE, text)
            else:
                (self._folder / f"metrics-{self._parts}.jsonl").write_bytes(text)
                self._parts += 1
                self._part_started = time.monotonic()
            self._pending.clear()
            self._events.flush()
            if self._failing:
                self._failing = False
                self._say("metrics are written again, with those of the time between")

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._enabled:
            self.flush()
            with self._survived():
                self._events.close()
            for other in self._others:
                other.close()
            self._enabled = False

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()

    def _survived(self):
        return buckets.survived(self._failed)

    def _failed(self, problem: Exception) -> None:
        if not self._failing:
            self._say(f"warning: metrics cannot be written ({problem}); they are kept until they can")
        self._failing = True

    def _keep(self, keep: Callable[[int, str], bool]) -> None:
        def remember(step, name):
            kept = keep(step, name)
            if kept:
                self._last[name] = max(step, self._last.get(name, step))
            return kept

        for path in metrics_files(self._folder):
            _keep_lines(path, remember)

    def _next_part(self) -> int:
        numbers = [int(match[1]) for path in metrics_files(self._folder) if (match := _PART.fullmatch(path.name))]
        return max(numbers, default=-1) + 1


def _append(path: epath.Path, text: bytes) -> None:
    """Appends all of `text` or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Opened each time, so that whole lines of another writer may come between; one write call for all lines.
    with open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            written = file.write(text)
            if written != len(text):
                raise OSError(f"{path}: only {written} of {len(text)} bytes fit")
        except OSError:
            if os.path.isfile(path):
                os.truncate(path, before)
            raise


_WRITERS = itertools.count()  # of this process: two made within one second need names of their own


class _EventWriter:
    """Scalars as TensorBoard events, in one file that grows or, where nothing can be appended, in parts."""

    def __init__(self, folder: epath.Path, append: bool, resume_step: int | None):
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            warnings.warn(
                "no TensorBoard events will be written: `pip install tensorboard` (metrics.jsonl is written)",
                stacklevel=2,
            )
            self._records: Any = None
            return
        self._event, self._summary, self._record_writer = event_pb2.Event, summary_pb2.Summary, RecordWriter
        self._session_log = event_pb2.SessionLog
        self._folder, self._append, self._parts = folder, append, 0
        self._open()
        if resume_step is not None:
            self.rewind(resume_step)

    def rewind(self, step: int) -> None:
        """ "A run starts here": TensorBoard then hides events of later steps that are already there."""
        if self._records is not None:
            start = self._session_log(status=self._session_log.START)
            self._put(self._event(wall_time=time.time(), step=step + 1, session_log=start))
            self.flush()

    def write(self, step: int, values: Mapping[str, float], wall_time: float) -> None:
        if self._records is not None:
            summary = self._summary(value=[self._summary.Value(tag=tag, simple_value=v) for tag, v in values.items()])
            self._put(self._event(wall_time=wall_time, step=step, summary=summary))

    def flush(self) -> None:
        if self._records is None:
            return
        try:
            self._records.flush()
        except OSError:
            # Half an event would hide all that follow it: they go to a file of their own.
            self._open()
            raise
        if not self._append and self._put_since_open:
            (self._folder / f"{self._stem}.{self._parts:06d}").write_bytes(self._file.getvalue())
            self._parts += 1
            self._open()

    def close(self) -> None:
        if self._records is not None:
            self.flush()
            self._records.close()

    def _open(self):
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._append or not self._parts:
            # TensorBoard reads the files of a folder in the order of their names.
            who = f"{socket.gethostname()}.{os.getpid()}.{next(_WRITERS)}"
            self._stem = f"events.out.tfevents.{int(time.time()):010d}.{who}"
        self._file = (self._folder / self._stem).open("ab") if self._append else io.BytesIO()
        self._records = self._record_writer(self._file)
        self._put(self._event(wall_time=time.time(), file_version="brain.Event:2"))  # every file must begin so
        self._put_since_open = False

    def _put(self, event):
        self._records.write(event.SerializeToString())
        self._put_since_open = True


def scalar(name: str, value) -> float:
    """The number that a metric's value is. Raises TypeError for more than one number."""
    if getattr(value, "size", 1) != 1:
        raise TypeError(f"metric {name} must be one number, not an array of shape {value.shape}")
    return float(value.item() if hasattr(value, "item") else value)
