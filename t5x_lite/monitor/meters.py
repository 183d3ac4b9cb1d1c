"""Rates of a run, measured so that looking at them does not slow it down."""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from t5x_lite.monitor.writers import scalar


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
            due.append((step, {name: scalar(name, value) for name, value in jax.device_get(dict(metrics)).items()}))
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

    def __init__(
        self,
        flops_per_step: float | None = None,
        peak_flops_per_second: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._per_step = flops_per_step / peak_flops_per_second if flops_per_step and peak_flops_per_second else None
        self._clock = clock
        # Each [seconds, steps, tokens, seconds waited].
        self._total: list[float] | None = None
        self._window: list[float] | None = None
        self._mark: float | None = None  # when time was last added to both

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


def peak_memory() -> float | None:
    """GiB that the fullest of this process's devices has had in use at once; on CPUs, that this process has.

    None where neither is known.
    """
    import jax

    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    if peaks:
        return max(peaks) / 2**30
    with contextlib.suppress(ImportError):  # systems that are not Unix
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
    return None
