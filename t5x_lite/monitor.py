"""What a run shows and leaves behind: meters, the progress bar, metrics.jsonl, TensorBoard events, text tables.

Nothing here needs TensorFlow. Event files are framed by TensorBoard's own record writer; its EventFileWriter would
import TensorFlow wherever that is installed (about ten seconds), so it is not used. Without `tensorboard` only
metrics.jsonl is written.
"""

import collections
import contextlib
import io
import itertools
import json
import math
import os
import re
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from etils import epath

# ---------------------------------------------------------------------------------------------------------------------
# metrics.jsonl and TensorBoard
# ---------------------------------------------------------------------------------------------------------------------

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
    # Written beside and moved into place: a crash here leaves the old file or the new one, never half of one.
    beside = path.parent / f".{path.name}.{os.getpid()}"
    beside.write_text(new)
    beside.replace(path)


class MetricsWriter:
    """Writes scalars to MODEL_DIR/metrics.jsonl and, for TensorBoard, to MODEL_DIR/tensorboard.

    Each (step, name) stands once: what a dead run wrote after the resumed step is dropped, and writing a pair again
    replaces it. Where files can be appended to, a written line is in the file when `write` returns. Objects (gs://,
    s3://) cannot be appended to: there, lines and events gather for `part_seconds` and become a part of their own,
    metrics-<n>.jsonl, on the next `write`, `flush` or `close`.

    One process writes a run's training metrics; another one (an evaluation job) may add other names to a local folder.

    Args:
      model_dir: the run's folder, made if missing.
      resume_step: last completed step of the restored checkpoint, 0 when training from scratch: lines of later steps
        are dropped and TensorBoard hides their events. None keeps everything: for a job that adds to a finished run.
      enabled: False makes every method do nothing (processes other than the first).
      append: False forces parts, e.g. for a bucket mounted as a folder. None: parts wherever the path has a scheme.
      part_seconds: how long lines may gather before they become a part.
    """

    def __init__(self, model_dir, *, resume_step: int | None = None, enabled: bool = True, append: bool | None = None,
                 part_seconds: float = 60.0):
        self._enabled = enabled
        if not enabled:
            return
        self._folder = epath.Path(model_dir)
        self._append = "://" not in os.fspath(model_dir) if append is None else append
        self._part_seconds = part_seconds
        self._folder.mkdir(parents=True, exist_ok=True)
        # Highest step written for each name: a write beyond it cannot be a repetition, and needs no look at the files.
        self._last: dict[str, int] = {}
        self._keep(lambda step, name: resume_step is None or step <= resume_step)
        self._pending: dict[tuple[int, str], str] = {}
        self._parts = self._next_part()
        self._part_started = time.monotonic()
        self._events = _EventWriter(self._folder / "tensorboard", self._append, resume_step)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes {name: value} of one step; values are numbers or arrays of one element.

        Raises:
          TypeError: a value is not a single number. Nothing of the step is written then.
        """
        if not self._enabled:
            return
        now = time.time()
        values = {name: _scalar(name, value) for name, value in metrics.items()}
        repeated = {(step, name) for name in values if step <= self._last.get(name, -1)}
        if repeated:
            self._keep(lambda *key: key not in repeated)
        for name, value in values.items():
            self._last[name] = max(step, self._last.get(name, step))
            self._pending[step, name] = metric_line(step, name, value, now)
        self._events.write(step, values, now)
        if self._append or time.monotonic() - self._part_started >= self._part_seconds:
            self.flush()

    def flush(self) -> None:
        """Puts everything written so far into files. Call it when a checkpoint has been saved."""
        if not self._enabled or not self._pending:
            return
        text = "".join(self._pending.values())
        self._pending.clear()
        if self._append:
            # Opened each time, so that whole lines of another writer may come between; one write call for all lines.
            with (self._folder / METRICS_FILE).open("a") as file:
                file.write(text)
        else:
            (self._folder / f"metrics-{self._parts}.jsonl").write_text(text)
            self._parts += 1
            self._part_started = time.monotonic()
        self._events.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._enabled:
            self.flush()
            self._events.close()
            self._enabled = False

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()

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


def _scalar(name: str, value) -> float:
    if getattr(value, "size", 1) != 1:
        raise TypeError(f"metric {name} must be one number, not an array of shape {value.shape}")
    return float(value.item() if hasattr(value, "item") else value)


_WRITERS = itertools.count()  # of this process: two made within one second need names of their own


class _EventWriter:
    """Scalars as TensorBoard events, in one file that grows or, where nothing can be appended, in parts."""

    def __init__(self, folder: epath.Path, append: bool, resume_step: int | None):
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            warnings.warn("no TensorBoard events will be written: `pip install tensorboard` (metrics.jsonl is written)")
            self._records = None
            return
        self._event, self._summary, self._record_writer = event_pb2.Event, summary_pb2.Summary, RecordWriter
        self._folder, self._append, self._parts = folder, append, 0
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        who = f"{socket.gethostname()}.{os.getpid()}.{next(_WRITERS)}"
        self._stem = f"events.out.tfevents.{int(time.time()):010d}.{who}"
        self._open()
        if resume_step is not None:
            # "A run starts here": TensorBoard then hides events of this step and later ones that are already there.
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._put(event_pb2.Event(wall_time=time.time(), step=resume_step + 1, session_log=start))
            self.flush()

    def write(self, step: int, values: Mapping[str, float], wall_time: float) -> None:
        if self._records is not None:
            summary = self._summary(value=[self._summary.Value(tag=tag, simple_value=v) for tag, v in values.items()])
            self._put(self._event(wall_time=wall_time, step=step, summary=summary))

    def flush(self) -> None:
        if self._records is None:
            return
        self._records.flush()
        if not self._append and self._put_since_open:
            (self._folder / f"{self._stem}.{self._parts:06d}").write_bytes(self._file.getvalue())
            self._parts += 1
            self._open()

    def close(self) -> None:
        if self._records is not None:
            self.flush()
            self._records.close()

    def _open(self):
        self._file = (self._folder / self._stem).open("ab") if self._append else io.BytesIO()
        self._records = self._record_writer(self._file)
        self._put(self._event(wall_time=time.time(), file_version="brain.Event:2"))  # every file must begin so
        self._put_since_open = False

    def _put(self, event):
        self._records.write(event.SerializeToString())
        self._put_since_open = True


# ---------------------------------------------------------------------------------------------------------------------
# Meters
# ---------------------------------------------------------------------------------------------------------------------


class Lagged:
    """Hands out the metrics of older steps as host numbers, so that looking at them never stops the devices.

    A jitted step returns at once, with arrays that are still being computed; `float()` on them waits for the step, and
    the devices then idle while the host prepares the next one. So keep `lag` steps in flight: pushing step n reads the
    values of step n - lag, while n is computed. This also keeps the host from running ahead without bound.
    """

    def __init__(self, lag: int = 1):
        if lag < 1:
            raise ValueError(f"lag must be at least 1, not {lag}: 0 would wait for the step just dispatched")
        self._lag = lag
        self._steps: collections.deque[tuple[int, Mapping[str, Any]]] = collections.deque()

    @property
    def newest(self):
        """An array of the step dispatched last, for `Meter.waiting(in_flight=…)`; None when nothing is in flight."""
        return next(iter(self._steps[-1][1].values()), None) if self._steps else None

    def push(self, step: int, metrics: Mapping[str, Any]) -> list[tuple[int, dict[str, float]]]:
        """Takes the arrays of the step just dispatched; returns the (step, host values) that are due, oldest first."""
        self._steps.append((step, metrics))
        return self._take(keep=self._lag)

    def drain(self) -> list[tuple[int, dict[str, float]]]:
        """Waits for every step in flight. Call it before evaluation, checkpoints and at the end."""
        return self._take(keep=0)

    def _take(self, keep: int):
        import jax

        due = []
        while len(self._steps) > keep:
            step, metrics = self._steps.popleft()
            due.append((step, {name: _scalar(name, value) for name, value in jax.device_get(dict(metrics)).items()}))
        return due


class Meter:
    """Rates of a training run: tokens and steps a second, MFU, the share of time lost to waiting for data.

    The clock is read when a step's values have reached the host (`Lagged`), so a step counts when the devices have
    finished it, not when it was dispatched. The first step starts the clock and is not counted: it holds the
    compilation.

    Args:
      flops_per_step: useful FLOPs of one step over the global batch (`flops.train_flops_per_example` × batch).
      peak_flops_per_second: `flops.peak(device)[0]` × number of devices. Without either there is no "mfu".
      clock: seconds, monotonic.
    """

    def __init__(self, flops_per_step: float | None = None, peak_flops_per_second: float | None = None,
                 clock: Callable[[], float] = time.monotonic):
        self._per_step = flops_per_step / peak_flops_per_second if flops_per_step and peak_flops_per_second else None
        self._clock = clock
        self._total = self._window = None  # each [seconds, steps, tokens, seconds waited]
        self._mark = None  # when time was last added to both

    def step(self, tokens: float, steps: int = 1) -> None:
        """Counts finished steps.

        Args:
          tokens: real (non-padding) input and target tokens of the global batch of these steps, a host number.
          steps: how many steps these were.
        """
        if self._mark is None:
            self._total, self._window, self._mark = [0.0] * 4, [0.0] * 4, self._clock()
            return
        self._add(0, self._elapsed())
        self._add(1, steps)
        self._add(2, float(tokens))

    @contextlib.contextmanager
    def waiting(self, in_flight=None) -> Iterator[None]:
        """Wraps `next(batches)`.

        Args:
          in_flight: an array of the step dispatched last (`Lagged.newest`). If it is still being computed when the
            batch has come, the devices did not idle and the wait is not counted. Without it every wait counts in full.
        """
        start = self._clock()
        yield
        hidden = in_flight is not None and hasattr(in_flight, "is_ready") and not in_flight.is_ready()
        if not hidden:
            self._add(3, self._clock() - start)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Wraps what is not training (evaluation, waiting for a checkpoint). Drain `Lagged` before."""
        if self._mark is not None:
            self._add(0, self._elapsed())
        yield
        if self._mark is not None:
            self._mark = self._clock()

    def window(self) -> dict[str, float]:
        """Rates since the last call: tokens_per_second, steps_per_second, data_wait_fraction and, if known, mfu.

        Fractions lie in [0, 1]. Empty when no step was counted since.
        """
        rates = self._rates(self._window)
        if rates:
            self._window = [0.0] * 4
        return rates

    def total(self) -> dict[str, float]:
        """The same rates over the whole run, with "seconds", "steps" and "tokens"; empty before the second step."""
        rates = self._rates(self._total)
        if rates:
            rates |= dict(zip(("seconds", "steps", "tokens"), self._total))
        return rates

    def _add(self, index: int, amount: float):
        if self._mark is not None:
            self._total[index] += amount
            self._window[index] += amount

    def _elapsed(self) -> float:
        now = self._clock()
        elapsed, self._mark = now - self._mark, now
        return elapsed

    def _rates(self, sums) -> dict[str, float]:
        if not sums or not sums[1] or sums[0] <= 0:
            return {}
        seconds, steps, tokens, waited = sums
        rates = {
            "tokens_per_second": tokens / seconds,
            "steps_per_second": steps / seconds,
            # A wait just before the window's end belongs to a step of the next one: never show more than all of it.
            "data_wait_fraction": min(1.0, waited / seconds),
        }
        if self._per_step:
            rates["mfu"] = steps * self._per_step / seconds
        return rates


# ---------------------------------------------------------------------------------------------------------------------
# The terminal
# ---------------------------------------------------------------------------------------------------------------------


def short_number(value: float) -> str:
    """12345.6 -> "12.3k"; three figures, for numbers that are read at a glance."""
    value = float(f"{value:.3g}")  # rounded first, or 999,999 would become "1000k"
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def duration(seconds: float) -> str:
    """Seconds as "4:05", "1:02:03" or "2d 03:04:05"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02}:{minutes:02}:{seconds:02}"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Progress:
    """Shows a run: a bar on a terminal, sparse plain lines anywhere else (a log file, a pipe, a scheduler).

    A plain line comes for the first step, for the last one, and in between every `every_seconds` (or `every_steps`).
    The first step also says how long the first loss took. On a bar over standard output, whatever else is printed
    scrolls above it.

    Args:
      total_steps: step number at which the run ends.
      start_step: step number it goes on from (the restored checkpoint's; 0 from scratch).
      file: where to show it; standard output by default.
      terminal: whether to draw a bar; by default, whether `file` is a terminal.
      every_seconds: between plain lines.
      every_steps: a plain line at each multiple of it instead.
      started: `clock()` at the start of the program, so that imports and compilation count in "first loss after".
      enabled: False makes every method do nothing (processes other than the first).
      clock: seconds, monotonic.
    """

    def __init__(self, total_steps: int, start_step: int = 0, *, file=None, terminal: bool | None = None,
                 every_seconds: float = 30.0, every_steps: int | None = None, started: float | None = None,
                 enabled: bool = True, clock: Callable[[], float] = time.monotonic):
        self._file = sys.stdout if file is None else file
        self._total, self._start = total_steps, start_step
        self._every_seconds, self._every_steps = every_seconds, every_steps
        self._clock = clock
        self._started = clock() if started is None else started
        self._shown: dict[str, float] = {}
        self._step = self._shown_step = None
        self._loss_seen = False
        self._shown_at = -math.inf
        self._times: collections.deque[tuple[float, int]] = collections.deque(maxlen=100)  # for the time left
        self._enabled = enabled
        if terminal is None:
            terminal = self._file.isatty() and os.environ.get("TERM") != "dumb"
        self._bar = _Bar(total_steps, start_step, self._file) if terminal and enabled else None

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows host values of a finished step (`Lagged` gives them).

        Args:
          step: number of completed steps.
          metrics: of these, "loss", "tokens_per_second", "mfu" and "data_wait_fraction" are shown, with or without
            "train/" before them; names that are missing keep the value shown last.
        """
        if not self._enabled:
            return
        now = self._clock()
        first = self._step is None
        self._step = step
        self._shown |= {name.removeprefix("train/"): value for name, value in metrics.items()}
        self._times.append((now, step))
        if not self._loss_seen and "loss" in self._shown:
            self._loss_seen = True
            self.note(f"first loss {_fixed(self._shown['loss'])} after {now - self._started:.1f} s (step {step})")
        if self._bar:
            # The terminal is redrawn ten times a second at most, whatever the speed of the steps.
            if first or step >= self._total or now - self._shown_at >= 0.1:
                self._shown_at = now
                self._bar.show(step, self._line())
        elif first or step >= self._total or self._due(now, step):
            self._shown_at, self._shown_step = now, step
            self._print(self._line())

    def note(self, text: str) -> None:
        """Prints a line: above the bar on a terminal, between the other lines elsewhere."""
        if not self._enabled:
            return
        if self._bar:
            self._bar.note(text)
        else:
            self._print(text)

    def close(self) -> None:
        """Leaves the last state standing and frees the terminal. Safe to call twice."""
        if not self._enabled:
            return
        self._enabled = False
        if self._bar:
            if self._step is not None:
                self._bar.show(self._step, self._line())
            self._bar.close()
        elif self._step is not None and self._shown_step != self._step:
            self._print(self._line())

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()

    def _due(self, now: float, step: int) -> bool:
        if self._every_steps:
            return step // self._every_steps > self._shown_step // self._every_steps
        return now - self._shown_at >= self._every_seconds

    def _line(self) -> str:
        shown, parts = self._shown, [f"step {self._step:,}/{self._total:,}"]
        if "loss" in shown:
            parts.append(f"loss {_fixed(shown['loss'])}")
        if "tokens_per_second" in shown:
            parts.append(f"{short_number(shown['tokens_per_second'])} tokens/s")
        if "mfu" in shown:
            parts.append(f"MFU {100 * shown['mfu']:.1f} %")
        if "data_wait_fraction" in shown:
            parts.append(f"data wait {100 * shown['data_wait_fraction']:.1f} %")
        left = self._seconds_left()
        parts.append(f"ETA {'--' if left is None else duration(left)}")
        return "  ".join(parts)

    def _seconds_left(self) -> float | None:
        (then, older), (now, newer) = self._times[0], self._times[-1]
        if newer <= older:
            return None  # one point gives no speed; the first step's time is mostly compilation anyway
        return max(0, self._total - newer) * (now - then) / (newer - older)

    def _print(self, text: str):
        print(text, file=self._file, flush=True)


def _fixed(loss: float) -> str:
    return f"{loss:.4f}" if abs(loss) < 1e4 else f"{loss:.4g}"  # NaN and infinity print as themselves


class _Bar:
    """The bar itself, by rich. Imported here: runs without a terminal do not need it."""

    def __init__(self, total_steps: int, start_step: int, file):
        from rich import console, progress

        self._console = console.Console(file=file, force_terminal=True, highlight=False, markup=False)
        mine = file is sys.stdout
        self._progress = progress.Progress(
            progress.BarColumn(bar_width=20),
            progress.TextColumn("{task.description}", markup=False),
            console=self._console,
            auto_refresh=False,  # no thread: the training loop redraws
            redirect_stdout=mine,  # what anyone else prints scrolls above the bar instead of cutting through it
            redirect_stderr=mine,
        )
        self._task = self._progress.add_task("waiting for the first step (compiling)", total=total_steps,
                                             completed=start_step)
        self._progress.start()

    def show(self, step: int, text: str):
        self._progress.update(self._task, completed=step, description=text, refresh=True)

    def note(self, text: str):
        self._console.print(text, soft_wrap=True)

    def close(self):
        self._progress.stop()


class Table:
    """Rows of cells, printed aligned as text or as a Markdown table.

    Numbers stand to the right (integers with thousands separated, floats with four figures), other cells to the left.
    `str(table)` is the aligned text.
    """

    def __init__(self, columns: Iterable[str], title: str | None = None):
        self._columns, self._title = list(columns), title
        self._rows: list[list[Any]] = []

    def add(self, *cells) -> "Table":
        """Adds a row; returns the table.

        Raises:
          ValueError: not one cell for each column.
        """
        if len(cells) != len(self._columns):
            raise ValueError(f"{len(cells)} cells for {len(self._columns)} columns")
        self._rows.append(list(cells))
        return self

    def __str__(self) -> str:
        lines = self._lines("  ", lambda width, right: "-" * width, str)
        return "\n".join(([self._title] if self._title else []) + [line.rstrip() for line in lines])

    def markdown(self) -> str:
        """As a Markdown table, readable as text too."""
        rule = lambda width, right: "-" * (width - 1) + ":" if right else "-" * width  # noqa: E731
        lines = self._lines(" | ", rule, lambda text: text.replace("|", "\\|").replace("\n", " "))
        return "\n".join(([f"**{self._title}**", ""] if self._title else []) + [f"| {line} |" for line in lines])

    def _lines(self, between, rule, clean):
        columns = list(zip(*self._rows)) if self._rows else [()] * len(self._columns)
        right = [bool(cells) and all(_is_number(c) or c is None for c in cells) for cells in columns]
        cells = [[clean(name) for name in self._columns]] + [[clean(_cell(c)) for c in row] for row in self._rows]
        widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(self._columns))]
        aligned = [[f"{text:{'>' if r else '<'}{w}}" for text, w, r in zip(row, widths, right)] for row in cells]
        lines = [between.join(row) for row in aligned]
        return [lines[0], between.join(rule(w, r) for w, r in zip(widths, right)), *lines[1:]]


def _is_number(cell) -> bool:
    return isinstance(cell, (int, float)) and not isinstance(cell, bool)


def _cell(cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, int) and not isinstance(cell, bool):
        return f"{cell:,}"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
