"""Being told to stop: SIGTERM, which schedulers send some time before they kill.

A run answers by saving what it has and ending with exit code 75, which asks to be started again.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from t5x_lite.errors import Preempted


class Notice:
    """Whether SIGTERM has come: noted where the state is changed or written, an exception where a run only waits."""

    def __init__(self):
        self._came = False
        self._raises = True

    def reached(self, step: int) -> bool:
        """Whether to save and stop after this step: the same answer on all processes, all of which must ask."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._came

    def held(self) -> contextlib.AbstractContextManager[None]:
        """The signal is only noted, until someone asks `reached` or enters `interruptible`."""
        return self._while_raising(False)

    def interruptible(self) -> contextlib.AbstractContextManager[None]:
        """The signal ends what is inside. Raises Preempted."""
        if self._came:
            raise Preempted()
        return self._while_raising(True)

    @contextlib.contextmanager
    def _while_raising(self, raises: bool) -> Iterator[None]:
        before, self._raises = self._raises, raises
        try:
            yield
        finally:
            self._raises = before

    def _receive(self, *unused) -> None:
        self._came = True
        # The next one kills: whoever sends two means it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self._raises:
            raise Preempted()


@contextlib.contextmanager
def listening() -> Iterator[Notice]:
    """Takes SIGTERM while in force.

    In a run of several processes JAX's own listener does, which agrees with the others on a step. Signals can be taken
    only in a program's first thread; elsewhere nothing comes.
    """
    notice = Notice()
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield notice
        return
    before = signal.signal(signal.SIGTERM, notice._receive)
    try:
        yield notice
    finally:
        signal.signal(signal.SIGTERM, before)
