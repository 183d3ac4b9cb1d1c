"""How far long work is: a bar with the time left on a terminal, sparse plain lines anywhere else.

`Progress` is for work of any kind, counted in what it is made of, `TrainingProgress` for the steps of a run. Both draw
on one screen: the bar of an evaluation stands below that of the training around it. With `--log_format=json` there are
no bars, and lines are objects; with `--quiet` there is neither. Of several processes the first one shows anything.
"""

import collections
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from t5x_lite import console, together
from t5x_lite.monitor.terminal import duration, short_number

_REDRAW_SECONDS = 0.1  # a bar is drawn ten times a second at most, whatever the speed of the work
EVERY_SECONDS = 10.0  # between two plain lines


class Progress:
    """Shows how far a piece of work is. A context; work that is done before a line is due says nothing.

        with monitor.Progress("infer", 200, "lines") as progress:
            for chunk in chunks:
                …
                progress.add(len(chunk))

    Args:
      what: the work; each line begins with it.
      total: how much there is, None where nobody knows.
      unit: of what, in the plural.
      done: how much was done before; it does not count for the speed.
      every_seconds: between plain lines.
      file: where to show it; standard error by default.
      terminal: whether to draw a bar; by default, whether `file` is a terminal.
      clock: seconds, monotonic.
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        unit: str = "",
        *,
        done: int = 0,
        every_seconds: float = EVERY_SECONDS,
        file: TextIO | None = None,
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._what, self._total, self._unit = what, total, unit
        self._every_seconds, self._file, self._clock = every_seconds, file, clock
        self._done, self._detail, self._said = done, "", ""
        self._share = done / total if total else None
        self._pace = _Pace(clock(), done, self._share)
        self._shown_at = clock()
        self._enabled = together.first() and not console.style.quiet
        draws = self._enabled and _is_terminal(self._out) if terminal is None else terminal
        self._bar = _Bar(self._out, f"{what} …", self._share) if draws and self._enabled else None

    def add(self, amount: int = 1) -> None:
        """So much more is done."""
        self.at(self._done + amount)

    def at(self, done: int, share: float | None = None, detail: str = "") -> None:
        """So much is done by now.

        Args:
          share: of all the work, in [0, 1], where it is known otherwise than by `total`.
          detail: words on it.
        """
        if not self._enabled:
            return
        now = self._clock()
        self._done, self._detail = done, detail
        self._share = share if share is not None else done / self._total if self._total else None
        self._pace.add(now, done, self._share)
        if now - self._shown_at < (_REDRAW_SECONDS if self._bar else self._every_seconds):
            return
        self._shown_at = now
        if self._bar:
            self._bar.draw(self.line(), self._share)
        elif (what := f"{done} {detail}") != self._said:  # that nothing has happened is no news
            self._said = what
            _print(self._file, self.line())

    def line(self) -> str:
        """'infer: 128 of 256 lines (50 %), 64 lines/s, ETA 0:02'."""
        parts = []
        if self._unit:
            parts.append(f"{self._done:,}" + (f" of {self._total:,}" if self._total else "") + f" {self._unit}")
            if self._share is not None:
                parts[0] += f" ({100 * self._share:.0f} %)"
        if self._detail:
            parts.append(self._detail)
        if self._unit and (rate := self._pace.rate()):
            parts.append(f"{short_number(rate)} {self._unit}/s")
        if (left := self._pace.seconds_left()) is not None:
            parts.append(f"ETA {duration(left)}")
        return f"{self._what}: " + ", ".join(parts)

    def close(self) -> None:
        """Takes the bar off the terminal. Safe to call twice."""
        if self._bar:
            self._bar.close()
        self._enabled = False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *unused) -> None:
        self.close()

    @property
    def _out(self) -> TextIO:
        return sys.stderr if self._file is None else self._file


class TrainingProgress:
    """Shows a run: a bar on a terminal, sparse plain lines anywhere else (a log file, a pipe, a scheduler).

    A plain line comes for the first step, for the last one, and in between every `every_seconds` (or `every_steps`).
    The first step also says how long the first loss took.

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
        file: TextIO | None = None,
        terminal: bool | None = None,
        every_seconds: float = 30.0,
        every_steps: int | None = None,
        started: float | None = None,
        enabled: bool = True,
        keep: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._file = file
        self._total = total_steps
        self._every_seconds, self._every_steps = every_seconds, every_steps
        self._clock = clock
        self._started = clock() if started is None else started
        self._values: dict[str, float] = {}
        self._step: int | None = None
        self._shown_step: int | None = None
        self._loss_seen = False
        self._shown_at = -math.inf
        self._pace = _Pace()  # from the first step on, whose own time is mostly compilation
        self._enabled, self._keep = enabled, keep
        draws = _is_terminal(self._out) if terminal is None else terminal
        self._bar = (
            _Bar(self._out, "waiting for the first step (compiling)", start_step / max(1, total_steps))
            if draws and enabled and not console.style.quiet
            else None
        )

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
        self._values |= {name.removeprefix("train/"): value for name, value in metrics.items()}
        self._pace.add(now, step, step / self._total)
        if not self._loss_seen and "loss" in self._values:
            self._loss_seen = True
            self.note(f"first loss {_fixed(self._values['loss'])} after {now - self._started:.1f} s (step {step})")
        if self._bar:
            if first or step >= self._total or now - self._shown_at >= _REDRAW_SECONDS:
                self._shown_at = now
                self._bar.draw(self._line(), step / self._total)
        elif first or step >= self._total or self._due(now, step):
            self._shown_at, self._shown_step = now, step
            _print(self._file, self._line(), console.INFO, step, sys.stdout)

    def note(self, text: str, level: str | None = None) -> None:
        """Prints a line: above the bar on a terminal, between the other lines elsewhere."""
        if not self._enabled:
            return
        self._keep(text)
        if self._bar and self._file is not None:
            self._bar.above(text)
        else:
            _print(self._file, text, level, self._step, sys.stdout)

    def close(self) -> None:
        """Leaves the last state standing and frees the terminal. Safe to call twice."""
        if not self._enabled:
            return
        self._enabled = False
        if self._bar:
            if self._step is not None:
                self._bar.draw(self._line(), self._step / self._total)
            self._bar.close(stays=True)
        elif self._step is not None and self._shown_step != self._step:
            _print(self._file, self._line(), console.INFO, self._step, sys.stdout)

    def __enter__(self) -> "TrainingProgress":
        return self

    def __exit__(self, *unused) -> None:
        self.close()

    @property
    def _out(self) -> TextIO:
        return sys.stdout if self._file is None else self._file

    def _due(self, now: float, step: int) -> bool:
        if self._every_steps:
            return step // self._every_steps > self._shown_step // self._every_steps
        return now - self._shown_at >= self._every_seconds

    def _line(self) -> str:
        shown, parts = self._values, [f"step {self._step:,}/{self._total:,}"]
        if "loss" in shown:
            parts.append(f"loss {_fixed(shown['loss'])}")
        if "tokens_per_second" in shown:
            parts.append(f"{short_number(shown['tokens_per_second'])} tokens/s")
        if "mfu" in shown:
            parts.append(f"MFU {100 * shown['mfu']:.1f} %")
        if "data_wait_fraction" in shown:
            parts.append(f"data wait {100 * shown['data_wait_fraction']:.1f} %")
        left = self._pace.seconds_left()
        parts.append(f"ETA {'--' if left is None else duration(left)}")
        return "  ".join(parts)


class _Pace:
    """Speed over the last updates, from which the time that is left follows."""

    def __init__(self, *first):
        self._seen: collections.deque[tuple[float, float, float | None]] = collections.deque(maxlen=100)
        if first:
            self._seen.append(first)

    def add(self, now: float, done: float, share: float | None) -> None:
        self._seen.append((now, done, share))

    def rate(self) -> float | None:
        """Units a second; None before there is one."""
        (then, older, _), (now, newer, _) = self._seen[0], self._seen[-1]
        return (newer - older) / (now - then) if now > then else None

    def seconds_left(self) -> float | None:
        known = [(when, share) for when, _, share in self._seen if share is not None]
        if not known or known[-1][1] <= known[0][1]:
            return None  # one point gives no speed
        (then, older), (now, newer) = known[0], known[-1]
        return max(0.0, 1.0 - newer) * (now - then) / (newer - older)


def _fixed(loss: float) -> str:
    return f"{loss:.4f}" if abs(loss) < 1e4 else f"{loss:.4g}"  # NaN and infinity print as themselves


def _is_terminal(file: TextIO) -> bool:
    return file.isatty() and os.environ.get("TERM") != "dumb" and not console.style.json


def _print(
    file: TextIO | None, text: str, level: str | None = None, step: int | None = None, default: TextIO | None = None
) -> None:
    if file is not None:
        print(text, file=file, flush=True)
    elif default is sys.stdout:
        console.show(text, level, step)
    else:
        console.say(text, level, step)


# ----------------------------------------------------------------------------------------------------------------------
# The screen
# ----------------------------------------------------------------------------------------------------------------------


class _Bar:
    """One of the bars that stand at the bottom of the terminal.

    Args:
      share: of the work that is done; None shows a bar that only moves.
    """

    # All bars of a process: rich's display, and how many there are.
    _display: Any = None
    _count = 0

    def __init__(self, file: TextIO, text: str, share: float | None):
        # Here: runs without a terminal do not need it.
        from rich import console as rich_console
        from rich import progress

        if _Bar._display is None:
            mine = file in (sys.stdout, sys.stderr)
            _Bar._display = progress.Progress(
                progress.BarColumn(bar_width=20),
                progress.TextColumn("{task.description}", markup=False),
                console=rich_console.Console(file=file, force_terminal=True, highlight=False, markup=False),
                auto_refresh=False,  # no thread: the work redraws
                # What anyone else prints scrolls above the bars instead of cutting through them.
                redirect_stdout=mine and sys.stdout.isatty(),
                redirect_stderr=mine and sys.stderr.isatty(),
            )
            _Bar._display.start()
        _Bar._count += 1
        self._closed = False
        self._task = _Bar._display.add_task(text, total=None if share is None else 1.0, completed=share or 0.0)
        _Bar._display.refresh()

    def draw(self, text: str, share: float | None) -> None:
        total = None if share is None else 1.0
        _Bar._display.update(self._task, description=text, total=total, completed=share or 0.0, refresh=True)

    def above(self, text: str) -> None:
        """Prints a line above all bars."""
        _Bar._display.console.print(text, soft_wrap=True)

    def close(self, stays: bool = False) -> None:
        """
        Args:
          stays: what it shows stays on the terminal.
        """
        if self._closed:
            return
        self._closed = True
        _Bar._count -= 1
        if not stays:
            _Bar._display.remove_task(self._task)
        if not _Bar._count:
            _Bar._display.stop()
            _Bar._display = None
