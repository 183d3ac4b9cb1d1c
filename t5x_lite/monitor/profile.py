"""A trace of some training steps by JAX's profiler: what the host and the devices did, and for how long."""

import dataclasses
from typing import Any

import gin
from t5x_lite.errors import UserError


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class Profile:
    """Which steps of a run are traced, for XProf, TensorBoard's profile plugin, or ui.perfetto.dev.

    Attributes:
      start_step: the first step of the trace; None for none. The first steps of a run compile and warm up.
      steps: how many.
      folder: where it is written, a local one; by default MODEL_DIR/profile.

    Raises:
      UserError: a step or a number of steps below 1.
    """

    start_step: int | None = None
    steps: int = 5
    folder: str | None = None

    def __post_init__(self):
        if (self.start_step is not None and self.start_step < 1) or self.steps < 1:
            raise UserError(
                f"Profile.start_step = {self.start_step!r} and Profile.steps = {self.steps!r} are at least 1"
            )


class Profiler:
    """Traces as a `Profile` says, in the first process.

    Args:
      folder: where the trace goes.
      say: is told where it is.
    """

    def __init__(self, profile: Profile | None, folder, say=print, enabled: bool = True):
        chosen = profile or Profile()
        self._first = chosen.start_step if enabled else None
        self._last = None if self._first is None else self._first + chosen.steps - 1
        self._folder = str(chosen.folder or folder)
        if self._first is not None and "://" in self._folder:
            raise UserError(f"a trace cannot be written to {self._folder}: set Profile.folder to a local folder")
        self._say, self._running = say, False

    def before(self, step: int) -> None:
        """`step` is about to be started."""
        if step == self._first:
            import jax

            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, state: Any) -> None:
        """`step` was started, and makes `state`."""
        if self._running and step == self._last:
            import jax

            jax.block_until_ready(state)
            self.close()
            self._say(f"steps {self._first} to {self._last} are traced in {self._folder}")

    def close(self) -> None:
        """Ends a trace whose last step was not reached."""
        if self._running:
            self._running = False
            import jax

            jax.profiler.stop_trace()

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()
