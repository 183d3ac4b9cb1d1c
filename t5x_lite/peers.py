"""Who of a job's processes is still there: when one is gone or hangs, the others stop and name it.

Every process gives a sign of life now and then: a count, what it is doing, and how often that has changed. Process 0
reads them all and gives a verdict when one stays away, hangs or has failed; the others look out for that verdict, and
for process 0. None of it needs devices, which may hang.

A process that waits for one that is gone waits in XLA and cannot be told: the thread that learns of it ends the process
at once, as SIGKILL would. Whatever a run has saved until then is whole, and started again it goes on from there.
"""

import contextlib
import ctypes
import dataclasses
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_lite import console

GONE = 75  # EX_TEMPFAIL: start it again
_LIFE, _VERDICT = "t5x_lite/life", "t5x_lite/verdict"


@dataclasses.dataclass
class Peer:
    """What process 0 knows of a process: its last sign, and when (seconds, monotonic) it came and told of progress."""

    host: str
    came: float
    moved: float
    sign: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"count": 0, "changes": 0, "doing": "starting"})

    def see(self, sign: Mapping[str, Any], now: float) -> None:
        if sign["count"] != self.sign["count"]:
            self.came = now
        if sign["changes"] != self.sign["changes"]:
            self.moved = now
        self.sign = sign


def judge(peers: Sequence[Peer], now: float, lost_seconds: float, hang_seconds: float | None) -> dict[str, Any] | None:
    """What is to be said to all: {"code": exit code, "text": one line, "stacks": whether to print them}, or None."""

    def name(i):
        return f"process {i} of {len(peers)} on {peers[i].host}"

    def at(i):
        return f"{peers[i].sign['doing']!r}"

    for i, peer in enumerate(peers):
        if end := peer.sign.get("end"):
            return {"code": end["code"], "text": f"{name(i)} failed ({end['why']}), so this one stops, too"}
    lost = [i for i, peer in enumerate(peers) if now - peer.came > lost_seconds]
    if lost:
        text = " and ".join(
            f"{name(i)} has given no sign of life for {now - peers[i].came:,.0f} s, last from {at(i)}" for i in lost
        )
        return {
            "code": GONE,
            "text": f"{text} (killed, stopped, or its machine is gone): this process stops; started "
            "again, the job goes on",
        }
    least = min(peer.sign["changes"] for peer in peers)
    still = min(now - peer.moved for peer in peers)
    behind = [i for i, peer in enumerate(peers) if peer.sign["changes"] == least]
    if hang_seconds is not None and still > hang_seconds and len(behind) < len(peers):
        ahead = next(i for i in range(len(peers)) if i not in behind)
        text = " and ".join(f"{name(i)} hangs at {at(i)}" for i in behind)
        return {
            "code": GONE,
            "stacks": True,
            "text": f"{text}, for {still:,.0f} s, while process {ahead} waits at {at(ahead)}: this process stops; "
            "started again, the job goes on",
        }
    return None


class Watch:
    """Gives this process's signs of life and minds those of the others, in threads of its own.

    Args:
      client: of JAX's coordination service.
      index: of this process.
      hosts: of all processes.
      coordinator: HOST:PORT of process 0.
      lost_seconds, hang_seconds: see `processes.Processes`.
    """

    def __init__(
        self,
        client,
        index: int,
        hosts: Sequence[str],
        coordinator: str,
        lost_seconds: float,
        hang_seconds: float | None,
    ):
        now = time.monotonic()
        self._client, self._index, self._coordinator = client, index, coordinator
        self._peers = [Peer(host, now, now) for host in hosts]
        self._lost_seconds, self._hang_seconds = lost_seconds, hang_seconds
        self._every = min(2.0, lost_seconds / 5)
        self._doing, self._changes, self._count = "starting", 0, 0
        self._end: dict[str, Any] | None = None  # this process's, once it is told
        self._wake, self._closed, self._known = threading.Event(), threading.Event(), threading.Event()
        self._answered = now  # when the coordinator last did
        self._thread = threading.Thread(target=self._work, name="peers", daemon=True)
        self._thread.start()
        self._mind_aborts()
        if index:
            threading.Thread(target=self._mind_coordinator, name="coordinator", daemon=True).start()

    def doing(self, what: str) -> None:
        """This process goes on to something else: progress."""
        self._doing = what
        self._changes += 1

    def close(self) -> None:
        """The job is over, everywhere."""
        self._closed.set()
        self._wake.set()
        self._thread.join()

    def tell(self, code: int, why: str) -> None:
        """This process has failed. Returns when the others know, or should."""
        self._end = {"code": code, "why": why}
        self._wake.set()
        self._known.wait(4 * self._every + 1)

    def wait_for_verdict(self) -> None:
        """Something failed that may be due to another's end. Waits as long as it can take to learn of that; if it was,
        this does not return."""
        time.sleep(self._lost_seconds + 4 * self._every + 1)

    def _work(self) -> None:
        while not self._closed.is_set():
            # Where the coordinator does not answer, that is for `_mind_coordinator` to judge.
            with contextlib.suppress(Exception):
                self._give_sign(self._end)
                verdict = self._judge() if self._index == 0 else self._hear()
                self._answered = time.monotonic()
                if verdict:
                    self._stop(verdict)
                    return
            self._wake.wait(self._every)
            self._wake.clear()

    def _give_sign(self, end: Mapping[str, Any] | None) -> None:
        self._count += 1
        sign = {"count": self._count, "changes": self._changes, "doing": self._doing, "end": end}
        self._client.key_value_set(f"{_LIFE}/{self._index}", json.dumps(sign), allow_overwrite=True)

    def _judge(self) -> dict[str, Any] | None:
        self._read_signs()
        verdict = judge(self._peers, time.monotonic(), self._lost_seconds, self._hang_seconds)
        if verdict:
            self._client.key_value_set(_VERDICT, json.dumps(verdict))
            # With this process the coordinator ends: not before the others have heard, those that can.
            until = time.monotonic() + 2 * self._every + 1
            while time.monotonic() < until and not all(peer.sign.get("end") for peer in self._peers[1:]):
                time.sleep(0.05)
                self._read_signs()
        return verdict

    def _read_signs(self) -> None:
        for key, text in self._client.key_value_dir_get(_LIFE):
            self._peers[int(key.rsplit("/", 1)[1])].see(json.loads(text), time.monotonic())

    def _hear(self) -> dict[str, Any] | None:
        try:
            verdict = json.loads(self._client.key_value_try_get(_VERDICT))
        except Exception as e:  # JAX has one kind of exception for all that its service says
            if "NOT_FOUND" not in str(e):
                raise
            return None
        self._give_sign(verdict)
        return verdict

    def _stop(self, verdict: Mapping[str, Any]) -> None:
        if self._end is None:
            _end(verdict)
        self._known.set()  # `tell` goes on, and what failed in this process ends it

    def _mind_coordinator(self) -> None:
        before = time.monotonic()
        while not self._closed.wait(self._every / 2):
            now = time.monotonic()
            if now - before > 3 * self._every:
                self._answered += now - before  # this process itself had been stopped
            before = now
            silent = now - self._answered
            if silent > self._lost_seconds + 2 * self._every and self._end is None:
                what = f"has not answered for {silent:,.0f} s (stopped, or its machine is gone)"
                _end(self._without_coordinator(what))

    def _without_coordinator(self, what: str) -> dict[str, Any]:
        return {
            "code": GONE,
            "text": f"process 0 of {len(self._peers)} on {self._peers[0].host} {what}: this process "
            "stops; started again, the job goes on",
        }

    def _mind_aborts(self) -> None:
        """Takes the signal of abort(), by which libraries in C++ end a process: JAX when the coordinator's connection
        breaks, gloo when another process's end has put messages out of step. Neither can be asked to do otherwise. The
        C library calls the handler: Python's own would run too late."""

        def aborted(signal_number):
            if self._index and not self._coordinator_listens():
                if self._end is None:
                    _end(self._without_coordinator(f"is gone: nothing listens at {self._coordinator} any more"))
                os._exit(self._end["code"])
            self.wait_for_verdict()
            libc.signal(signal.SIGABRT, ctypes.cast(None, kind))  # none: as it would have ended without this
            os.abort()

        kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
        self._handler = kind(aborted)  # kept: C holds no reference
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = [ctypes.c_int, kind]
        libc.signal.restype = ctypes.c_void_p
        libc.signal(signal.SIGABRT, self._handler)

    def _coordinator_listens(self) -> bool:
        host, _, port = self._coordinator.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        except OSError:
            return False
        return True


def _end(verdict: Mapping[str, Any]) -> None:
    """Ends this process from whatever thread."""
    if verdict.get("stacks"):
        faulthandler.dump_traceback(file=sys.__stderr__)
    console.say(f"t5x-lite: error: {verdict['text']}", console.ERROR, everyone=True)
    sys.stdout.flush()
    os._exit(verdict["code"])
