"""Steps that went wrong: losses or gradients that are no numbers, and losses far above what they were.

An update from such numbers never reaches the state: the jitted step leaves it as it was, on all devices alike
(`trainer.train_step`). What is decided here, on the host, is when a run that keeps meeting them stops or goes back.
"""

import collections
import dataclasses
import math
from typing import Any

import gin
from t5x_lite.errors import UserError

STOP, ROLL_BACK = "stop", "roll_back"


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class Health:
    """When a run is ill, and what follows.

    A step is bad if its loss or gradient is not finite or, with `spike_deviations`, if its loss is a spike. After
    `max_bad_steps` bad ones in a row the run stops, or goes back to the newest checkpoint and on from there with the
    data that comes next: the batches since that checkpoint, the bad ones among them, are skipped, as Chowdhery et al.
    (2022, https://arxiv.org/abs/2204.02311, section 5.1) did by hand.

    Attributes:
      max_bad_steps: in a row.
      action: "stop" or "roll_back".
      max_rollbacks: from one checkpoint; then the run stops all the same.
      spike_deviations: a loss that lies so many standard deviations above the mean of the last good ones is a spike;
        None for no such check. A spike's update is made: it is known only when the next step is under way.
      spike_window: how many good losses make that mean; there are no spikes before that many.

    Raises:
      UserError: a number below one, or an unknown action.
    """

    max_bad_steps: int = 10
    action: str = STOP
    max_rollbacks: int = 3
    spike_deviations: float | None = None
    spike_window: int = 100

    def __post_init__(self):
        if self.action not in (STOP, ROLL_BACK):
            raise UserError(f"Health.action must be {STOP!r} or {ROLL_BACK!r}, not {self.action!r}")
        for name in ("max_bad_steps", "max_rollbacks", "spike_window"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise UserError(f"Health.{name} must be a whole number of at least 1, not {getattr(self, name)!r}")
        if self.spike_deviations is not None and self.spike_deviations <= 0:
            raise UserError(f"Health.spike_deviations must be above 0 or None, not {self.spike_deviations!r}")


class Watch:
    """Counts bad steps; what it knows is saved with each checkpoint, so that a run started again decides alike.

    Attributes:
      skipped: updates that were left out so far.
      in_a_row: bad steps, up to the last one seen.
      last_bad: the last bad step.
      ill: whether there were so many in a row that it is time to act.
    """

    def __init__(self, health: Health, state: dict[str, Any] | None = None):
        self._health = health
        state = state or {}
        self.skipped: int = state.get("skipped", 0)
        self.in_a_row = 0
        self.last_bad: int | None = None
        self.ill = False
        self._rollbacks = 0
        self._losses = collections.deque(state.get("losses", ()), maxlen=health.spike_window)

    def state(self) -> dict[str, Any]:
        """JSON-able, for the constructor."""
        return {"skipped": self.skipped, "losses": list(self._losses)}

    def see(self, step: int, loss: float, skipped: bool) -> str | None:
        """Takes in a step.

        Returns:
          What was wrong with it, or None.
        """
        if skipped:
            self.skipped += 1
            problem = "its loss or gradient is not finite, so its update is left out"
        elif self._is_spike(loss):
            problem = f"its loss of {loss:.4g} is a spike"
        else:
            self.in_a_row = 0
            if self._health.spike_deviations is not None:
                self._losses.append(loss)
            return None
        self.in_a_row += 1
        self.last_bad = step
        self.ill |= self.in_a_row >= self._health.max_bad_steps
        return problem

    def rolls_back(self) -> bool:
        """Whether to go back now (and counts it) rather than stop."""
        self._rollbacks += 1
        return self._health.action == ROLL_BACK and self._rollbacks <= self._health.max_rollbacks

    def saved(self) -> None:
        """A checkpoint was made: going back leads there from now on."""
        self._rollbacks = 0

    def went_back(self, state: dict[str, Any]) -> None:
        """The run stands where it stood when `state` was saved. What was skipped since still counts."""
        self.in_a_row, self.ill = 0, False
        self._losses = collections.deque(state.get("losses", ()), maxlen=self._health.spike_window)

    def _is_spike(self, loss: float) -> bool:
        if self._health.spike_deviations is None or len(self._losses) < self._health.spike_window:
            return False
        mean = math.fsum(self._losses) / len(self._losses)
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in self._losses) / len(self._losses))
        return loss > mean + self._health.spike_deviations * deviation
