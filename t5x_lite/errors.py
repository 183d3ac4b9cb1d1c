"""The exception that speaks to the user, how it says what was probably meant, and the one that ends a run early."""

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """Something the user can mend: the message is one line that says what is wrong, where, and the remedy.

    The command line prints it without a stack trace and ends with exit code 2 (`--verbose` shows the trace).
    """


def nearest(name: str, names: Iterable[str], n: int = 3) -> list[str]:
    """Up to `n` of `names` like `name`, best first; case and underscores count for nothing."""

    def plain(text):
        return text.lower().replace("_", "")

    by_plain: dict[str, str] = {}
    for candidate in names:
        by_plain.setdefault(plain(candidate), candidate)
    return [by_plain[p] for p in difflib.get_close_matches(plain(name), by_plain, n=n, cutoff=0.6)]


def did_you_mean(near: Sequence[str]) -> str:
    """' (did you mean A or B?)', or nothing where nothing is near."""
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def first_line(problem: BaseException | str) -> str:
    """What an exception says, short enough to stand within a line: long ones (tensorstore's) lose their middle."""
    line = (str(problem).splitlines() or [""])[0].strip()
    return line if len(line) <= 240 else f"{line[:120]} … {line[-120:]}"


class Preempted(SystemExit):
    """The run was told to stop (SIGTERM) and can be started again: exit code 75, EX_TEMPFAIL of BSD's sysexits.h."""

    CODE = 75

    def __init__(self, message: str = "told to stop (SIGTERM)"):
        super().__init__(self.CODE)
        self.message = message
