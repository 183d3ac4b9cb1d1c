"""Which checkpoints stay, and what happens when one cannot be saved."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping

import gin
from t5x_lite import together
from t5x_lite.errors import UserError, first_line


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class Keep:
    """Which checkpoints of a run stay: those that any of these rules keeps.

    Attributes:
      last: the newest ones, so many; None for all.
      every: those of the steps that it divides.
      best: so many of those with the best `metric`.
      metric: as evaluations name it, `eval/pydocs_library/accuracy`; a loss or perplexity is best where it is
        lowest. Only checkpoints of steps that were evaluated take part.

    Raises:
      UserError: `best` without `metric`, or a number that keeps nothing.
    """

    last: int | None = 3
    every: int | None = None
    best: int = 0
    metric: str | None = None

    def __post_init__(self):
        if (self.last is not None and self.last < 1) or (self.every is not None and self.every < 1) or self.best < 0:
            raise UserError(
                f"Keep.last = {self.last!r} and Keep.every = {self.every!r} are at least 1 or None, and "
                f"Keep.best = {self.best!r} is at least 0"
            )
        if bool(self.best) != bool(self.metric):
            raise UserError("Keep.best and Keep.metric go together: how many, and by which metric")

    def chosen(self, steps: list[int], metrics: Mapping[int, Mapping[str, float]]) -> set[int]:
        """Those of `steps`, in order, that stay, given what evaluations found at some of them."""
        kept = set(steps if self.last is None else steps[-self.last :])
        if self.every is not None:
            kept.update(step for step in steps if step % self.every == 0)
        scores = {step: metrics[step][self.metric] for step in steps if self.metric in metrics.get(step, ())}
        scores = {step: score for step, score in scores.items() if math.isfinite(score)}
        sign = 1 if is_better_lower(self.metric) else -1
        # Of two equals the earlier one.
        kept.update(sorted(scores, key=lambda step: (sign * scores[step], step))[: self.best])
        return kept


def is_better_lower(metric: str | None) -> bool:
    """By its name: a loss, or a perplexity."""
    return bool(metric) and metric.endswith(("loss", "perplexity"))


_SAVING = "saving"


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class Retry:
    """What a run does when a checkpoint cannot be saved (disk full, no access, folder gone): it goes on training.

    Attributes:
      seconds: until it tries again, with the state of that moment; doubled after each failure.
      max_seconds: the longest wait.
      failures: in a row after which it stops.

    Raises:
      UserError: a negative time, or less than one failure.
    """

    seconds: float = 30.0
    max_seconds: float = 1800.0
    failures: int = 10

    def __post_init__(self):
        if self.seconds < 0 or self.max_seconds < 0 or self.failures < 1:
            raise UserError(
                f"Retry.seconds = {self.seconds!r} and Retry.max_seconds = {self.max_seconds!r} are not "
                f"negative, and Retry.failures = {self.failures!r} is at least 1"
            )


class Saver:
    """Saves through a `checkpoints.Checkpointer`, and again where that failed.

    What fails in one of several processes has failed in all: each method is called by all of them, at the same step.

    Args:
      say: is given what a person should know.
    """

    def __init__(
        self,
        checkpointer,
        retry: Retry,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._checkpointer, self._retry, self._say = checkpointer, retry, say
        self._clock, self._sleep = clock, sleep
        self._failures = 0
        self._again_at: float | None = None
        self._saving: int | None = None  # step of the save that goes on in the background
        self._asked_for = self._ask_at = 0  # the step that was last to be saved, and when to ask what became of it

    def due(self, step: int) -> bool:
        """Whether to try again now. Learns what became of the last save; does not wait for it.

        Raises:
          UserError: it was one failure too many.
        """
        if self._saving is None and self._again_at is None:
            return False
        if together.several():
            # Asking all takes a message to each: at the 1st, 2nd, 4th, 8th … step after that of the save.
            if step < self._ask_at:
                return False
            self._ask_at = step + max(1, step - self._asked_for)
        if self._saving is not None:
            self._attempt(self._saving, self._checkpointer.check)
        # By one clock.
        return together.from_first("due", lambda: self._again_at is not None and self._clock() >= self._again_at)

    def save(self, step: int, save: Callable[[], bool]) -> bool:
        """Starts to save.

        Args:
          save: calls `Checkpointer.save`.

        Returns:
          Whether saving began: False where the step is saved already, or on a failure.

        Raises:
          UserError: it was one failure too many.
        """
        self.wait()
        self._again_at = None
        self._asked_for = self._ask_at = step
        began = self._attempt(step, save)
        if began:
            self._saving = step
        return bool(began)

    def wait(self) -> None:
        """Until what goes on in the background is over. Raises UserError as `due` does."""
        if self._saving is not None:
            self._attempt(self._saving, self._checkpointer.wait)

    def save_now(self, step: int, save: Callable[[], bool]) -> bool:
        """Saves and waits until it is done; whether it was. Raises UserError as `save` does."""
        self.save(step, save)
        self.wait()
        return self._again_at is None

    def finish(self, step: int, save: Callable[[], bool]) -> None:
        """Saves, trying again as `Retry` says until it is done. Raises UserError as `save` does."""
        while not self.save_now(step, save):
            self._sleep(max(0.0, self._again_at - self._clock()))

    def _attempt(self, step: int, call: Callable[[], bool | None]) -> bool | None:
        """call(), and what follows from its failure or success; it returns whether something is now being saved."""
        result = problem = None
        try:
            result = call()
        except Exception as e:  # of whatever kind: a run that could go on must not die of it
            problem = e
        said = together.gathered(
            "saved", f"{type(problem).__name__}: {first_line(problem)}" if problem else _SAVING if result else ""
        )
        failed = [text for text in said if text not in ("", _SAVING)]
        if failed:
            self._saving = None
            self._checkpointer.drop()
            # The cause, and not what came of it in those that waited.
            self._failed(step, min(failed, key=lambda text: text.startswith(together.GivenUp.__name__)), problem)
            return None
        if self._saving is not None and _SAVING not in said:
            if self._failures:
                self._say(f"step {self._saving} is saved: saving works again")
            self._saving, self._failures = None, 0
        return result

    def _failed(self, step: int, why: str, problem: Exception | None) -> None:
        self._failures += 1
        wait = min(self._retry.seconds * 2 ** (self._failures - 1), self._retry.max_seconds)
        self._again_at = self._clock() + wait
        steps = self._checkpointer.steps()
        newest = f"the newest checkpoint is that of step {steps[-1]}" if steps else "there is no checkpoint yet"
        what = f"saving step {step} failed ({why})"
        if self._failures >= self._retry.failures:
            raise UserError(
                f"{what}, {self._failures} times in a row by now; {newest}. Make room or give access in "
                f"{self._checkpointer.folder} and start again, or raise Retry.failures"
            ) from problem
        self._say(
            f"warning: {what}, failure {self._failures} of {self._retry.failures}; {newest}; trying again in "
            f"{wait:,.0f} s"
        )
