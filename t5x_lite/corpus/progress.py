"""How far worker processes on this machine are, told by empty files: `<step>.<part>` for each part that is done."""

import sys
import threading
from collections import Counter
from collections.abc import Mapping

from etils import epath

SECONDS = 10.0  # between two lines


def mark(folder: str | None, step: str, part: object) -> None:
    """Says that a part of a step is done; nothing where no one looks."""
    if folder is not None:
        (epath.Path(folder) / f"{step}.{part}").touch()


class Progress:
    """Prints lines on the steps that are going on, as a context.

    Args:
      totals: step -> its parts at most, in the order of the steps.
    """

    def __init__(self, folder: str, totals: Mapping[str, int], seconds: float = SECONDS):
        self._folder, self._totals, self._seconds = epath.Path(folder), totals, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *unused) -> None:
        self._ended.set()
        self._thread.join()

    def line(self) -> str:
        """The steps that have begun: 'read 12 of 40, by address 3 of 64'."""
        done = Counter(path.name.rpartition(".")[0] for path in self._folder.iterdir())
        return ", ".join(f"{step} {done[step]:,} of {total:,}" for step, total in self._totals.items() if done[step])

    def _watch(self) -> None:
        said = ""
        while not self._ended.wait(self._seconds):
            if (line := self.line()) and line != said:
                print(f"corpus: {line}", file=sys.stderr, flush=True)
                said = line
