"""Where Orbax has the processes of a save wait for each other: who waits there learns that another one has failed.

Orbax's own barriers do not know of a failure: whoever waits for a process whose file system refused something waits for
minutes, until a time-out.
"""

import collections
import contextlib
from collections.abc import Iterator

import orbax.checkpoint as ocp

from t5x_lite import together


class Barriers:
    """The barriers of one run's saves, one turn after the other."""

    def __init__(self):
        self._start(0)

    def next_turn(self) -> together.Turn:
        """Another save begins."""
        self._start(self.turn.number + 1)
        return self.turn

    def _start(self, number: int) -> None:
        self.turn = together.Turn("saving", number)
        self._seen = collections.Counter[str]()  # names of barriers: one may stand for several places

    def in_background(self, *, key: str, timeout_ms: int) -> None:
        """For `AsyncOptions.barrier_sync_fn`: Orbax's threads wait before a checkpoint is given its name, and after.

        Elsewhere they do it only to tell together that a save is over, which one that failed could not tell then.
        """
        del timeout_ms
        if "async_write_complete" in key or "async_commit_complete" in key:  # behind a prefix, which may be empty
            self._meet(key, self.turn)

    @contextlib.contextmanager
    def in_foreground(self) -> Iterator[None]:
        """What Orbax does within, in the calling thread, waits at these barriers and not at its own.

        It takes a function for its background threads only, so that the place where it looks its own up is changed.
        """
        if not together.several():
            yield
            return

        def meet(*, key: str, timeout_ms: int) -> None:
            del timeout_ms
            self._seen[key] += 1
            self._meet(f"{key}/{self._seen[key]}", self.turn)

        own = ocp.multihost.get_barrier_sync_fn
        ocp.multihost.get_barrier_sync_fn = lambda **_: meet
        try:
            yield
        finally:
            ocp.multihost.get_barrier_sync_fn = own

    @staticmethod
    def _meet(key: str, turn: together.Turn) -> None:
        together.combined(f"saved {key}", "{}", lambda said: "{}", turn)
