"""The terminal: a progress bar or plain lines, and tables of text."""

import collections
import html
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any


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
      keep: is given each note, too: a journal's `add`.
      clock: seconds, monotonic.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        *,
        file=None,
        terminal: bool | None = None,
        every_seconds: float = 30.0,
        every_steps: int | None = None,
        started: float | None = None,
        enabled: bool = True,
        keep: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._file = sys.stdout if file is None else file
        self._total, self._start = total_steps, start_step
        self._every_seconds, self._every_steps = every_seconds, every_steps
        self._clock = clock
        self._started = clock() if started is None else started
        self._shown: dict[str, float] = {}
        self._step: int | None = None
        self._shown_step: int | None = None
        self._loss_seen = False
        self._shown_at = -math.inf
        self._times: collections.deque[tuple[float, int]] = collections.deque(maxlen=100)  # for the time left
        self._enabled, self._keep = enabled, keep
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
        self._keep(text)
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
        self._task = self._progress.add_task(
            "waiting for the first step (compiling)", total=total_steps, completed=start_step
        )
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
    `str(table)` is the aligned text, `html()` an element for a page.
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

    def html(self) -> str:
        """As an HTML table; cells that are numbers have the class "number"."""
        right = self._right()

        def row(tag, cells):
            marks = (' class="number"' if r else "" for r in right)
            return (
                "<tr>"
                + "".join(
                    f"<{tag}{mark}>{html.escape(_cell(cell))}</{tag}>" for cell, mark in zip(cells, marks, strict=True)
                )
                + "</tr>"
            )

        head, body = row("th", self._columns), "\n".join(row("td", cells) for cells in self._rows)
        caption = f"<caption>{html.escape(self._title)}</caption>" if self._title else ""
        return f"<table>{caption}<thead>{head}</thead>\n<tbody>{body}</tbody></table>"

    def _right(self) -> list[bool]:
        """Which columns hold numbers alone."""
        columns = list(zip(*self._rows)) if self._rows else [()] * len(self._columns)
        return [bool(cells) and all(_is_number(c) or c is None for c in cells) for cells in columns]

    def _lines(self, between, rule, clean):
        right = self._right()
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
