"""How the processes of a job come to one answer: short texts, told through JAX's coordination service.

That needs no devices, and can be done by any thread: for whatever one process alone can know and all must act on. All
of them must ask the same things in the same order. In one process every function here answers at once.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from t5x_lite import peers

# A process may wait for another as long as that one lives: how long is for `peers` to say.
_FOREVER_MS = 7 * 24 * 3600 * 1000
_LOOK_UP_MS = 1000  # how often it looks whether what it waits for has been given up


class GivenUp(Exception):
    """Another process has failed at what all do together; says why."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """One time of several that all processes do something together, at which one may fail.

    Attributes:
      of: what it is.
      number: the same in all of them, and counted whether a time fails or not.
    """

    of: str
    number: int

    def give_up(self, why: str) -> None:
        """This process has failed: those that wait for it, now or later in this turn, have `GivenUp` raised."""
        if _me is not None:
            _me.give_up(self, why)


class Member:
    """This process among the others, from `start` to `leave`."""

    def __init__(self, index: int, count: int, client):
        self.index, self.count = index, count
        self._client = client
        self._rounds: dict[str, int] = {}
        self.watch: peers.Watch | None = None

    def combined(self, what: str, text: str, combine: Callable[[list[str]], str], turn: "Turn | None" = None) -> str:
        if turn is None:
            number = self._rounds[what] = self._rounds.get(what, -1) + 1
        else:
            number = turn.number
        key = f"t5x_lite/said/{what}/{number}"
        self._client.key_value_set(f"{key}/by/{self.index}", text)
        if self.index:
            return self._hear(f"{key}/all", turn)
        answer = combine([self._hear(f"{key}/by/{i}", turn) for i in range(self.count)])
        self._client.key_value_set(f"{key}/all", answer)
        self._client.key_value_delete(f"{key}/by")
        if number:
            # All have asked again, so all have read what was answered before.
            self._client.key_value_delete(f"t5x_lite/said/{what}/{number - 1}")
        return answer

    def _hear(self, key: str, turn: "Turn | None") -> str:
        while True:
            try:
                return self._client.blocking_key_value_get(key, _FOREVER_MS if turn is None else _LOOK_UP_MS)
            except Exception as e:  # JAX has one kind of exception for all that its service says
                if turn is None or "DEADLINE_EXCEEDED" not in str(e):
                    raise
            if given_up := self._client.key_value_dir_get(self._given_up(turn)):
                raise GivenUp(given_up[0][1])

    def give_up(self, turn: "Turn", why: str) -> None:
        self._client.key_value_set(
            f"{self._given_up(turn)}/{self.index}", f"{why} (says process {self.index})", allow_overwrite=True
        )

    def _given_up(self, turn: "Turn") -> str:
        return f"t5x_lite/given_up/{turn.of}/{turn.number}"


_me: Member | None = None


def join(member: Member | None) -> None:
    """From now on the others are asked; None: no longer."""
    global _me
    _me = member


def me() -> Member | None:
    """This process among the others; None where it is alone."""
    return _me


def gathered(what: str, text: str) -> list[str]:
    """What every process says, in their order, on all of them."""
    return json.loads(combined(what, json.dumps(text), lambda said: f"[{', '.join(said)}]"))


def combined(what: str, text: str, combine: Callable[[list[str]], str], turn: Turn | None = None) -> str:
    """What `combine` makes of the texts of every process, for all of them; process 0 does it.

    Args:
      what: names the question; threads ask by names of their own.
      turn: when this is asked; by default the next time, which must not be relied on where one may fail before it asks.
    """
    return combine([text]) if _me is None else _me.combined(what, text, combine, turn)


def from_first(what: str, make: Callable[[], Any]) -> Any:
    """What process 0 makes, JSON-able, on all of them."""
    if _me is None:
        return make()
    return json.loads(combined(what, "null" if _me.index else json.dumps(make()), lambda said: said[0]))


def agree(what: str, problem: Exception | None, kind: type[Exception]) -> None:
    """Raises the problem on all processes where any of them has one; as `kind` on those that have none themselves."""
    said = gathered(what, str(problem or ""))
    if problem is not None:
        raise problem
    for i, text in enumerate(said):
        if text:
            raise kind(f"{text} (says process {i})")


def first() -> bool:
    """Whether this is process 0, which writes what is written once."""
    return _me is None or _me.index == 0


def several() -> bool:
    """Whether this job is shared by more processes than one."""
    return _me is not None


def doing(what: str) -> None:
    """This process goes on to something else: for the others to know where one stopped."""
    if _me is not None and _me.watch:
        _me.watch.doing(what)
