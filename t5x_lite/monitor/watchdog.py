"""What hangs shows where: every thread's stack, when nothing has happened for a while."""

import faulthandler
import sys


class Watchdog:
    """Prints the stack of every thread to standard error, again and again, while `alive` is not called.

    The timer is `faulthandler`'s: a thread outside Python, which needs no lock that a hanging thread could hold. There
    is one for each process.

    Args:
      seconds: without a sign of life; None switches it off.
      file: with a file descriptor; the process's own standard error by default, whatever stands in its place now.
    """

    def __init__(self, seconds: float | None, file=None):
        self._seconds = seconds
        self._file = file or sys.__stderr__

    def alive(self) -> None:
        """Starts the time anew; some 50 µs."""
        if self._seconds is not None:
            faulthandler.dump_traceback_later(self._seconds, repeat=True, file=self._file)

    def close(self) -> None:
        if self._seconds is not None:
            faulthandler.cancel_dump_traceback_later()

    def __enter__(self):
        self.alive()
        return self

    def __exit__(self, *unused):
        self.close()
