"""How far worker processes on this machine are, told by empty files: `<step>.<part>` for each part that is done."""

import threading
from collections import Counter
from collections.abc import Mapping

from etils import epath

from t5x_lite import monitor

SECONDS = 1.0  # between two looks


def mark(folder: str | None, step: str, part: object) -> None:
    """Says that a part of a step is done; nothing where no one looks."""
    if folder is not None:
        (epath.Path(folder) / f"{step}.{part}").touch()


class Progress:
    """Shows the steps that are going on, as a context.

    Args:
      totals: step -> its parts at most, in the order of the steps.
      seconds: between two looks.
      every_seconds: between two lines.
    """

    def __init__(
        self,
        folder: str,
        totals: Mapping[str, int],
        seconds: float = SECONDS,
        every_seconds: float = monitor.EVERY_SECONDS,
    ):
        self._folder, self._totals, self._seconds = epath.Path(folder), totals, seconds
        self._progress = monitor.Progress("corpus", every_seconds=every_seconds)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *unused) -> None:
        self._ended.set()
        self._thread.join()
        self._progress.close()

    def line(self) -> str:
        """The steps that have begun: 'read 12 of 40, by address 3 of 64'."""
        done = self._done()
        return ", ".join(f"{step} {done[step]:,} of {total:,}" for step, total in self._totals.items() if done[step])

    def _done(self) -> Counter:
        return Counter(path.name.rpartition(".")[0] for path in self._folder.iterdir())

    def _watch(self) -> None:
        while not self._ended.wait(self._seconds):
            done = self._done()
            # Steps as of one length: nobody knows better, and the time left follows what was seen last.
            share = sum(min(1.0, done[step] / total) for step, total in self._totals.items()) / len(self._totals)
            if line := self.line():
                self._progress.at(done.total(), share, line)
