"""Where everything goes that a job says: lines for people or JSON objects for machines, on stderr or stdout.

    say     on the way: stderr                 show    what is asked for, or a run's own course: stdout

Of several processes the first one talks, except where something concerns each (`everyone`). JSON is an object a line:
"time" (seconds since 1970), "level" ("info", "warning", "error" or "result"), "job", "message", and "step" where the
line is of one. What libraries say through `logging` and `warnings` is put into such objects, too; the stacks of a
watchdog are not.
"""

import contextlib
import dataclasses
import json
import logging
import re
import sys
import time
import warnings
from typing import Any, TextIO

INFO, WARNING, ERROR, RESULT = "info", "warning", "error", "result"
FORMATS = ("text", "json")
_WARNED = re.compile(r"([\w-]+: )?(warning|note): ")


@dataclasses.dataclass
class Style:
    """How this process talks.

    Attributes:
      job: its name, for JSON.
      quiet: leave out what is no warning, error or result.
      json: objects, and no bars.
    """

    job: str = ""
    quiet: bool = False
    json: bool = False


style = Style()


@contextlib.contextmanager
def set_up(job: str, quiet: bool = False, log_format: str = "text"):
    """For the time of a job, as its flags say."""
    before = dataclasses.replace(style)
    style.job, style.quiet, style.json = job, quiet, log_format == "json"
    with contextlib.ExitStack() as until_the_end:
        if style.json:
            until_the_end.enter_context(_libraries_as_objects())
        try:
            yield
        finally:
            for field in dataclasses.fields(Style):
                setattr(style, field.name, getattr(before, field.name))


def say(text: str, level: str | None = None, step: int | None = None, everyone: bool = False) -> None:
    """Prints a line (or several) on stderr.

    Args:
      level: by default WARNING for what begins with "warning: " or "note: ", with or without a name before it, and else
        INFO.
      step: that it is about.
      everyone: in every process, not in the first one alone.
    """
    _put(sys.stderr, text, level, step, everyone)


def show(text: str, level: str | None = RESULT, step: int | None = None, everyone: bool = False) -> None:
    """As `say`, on stdout; a result, if nothing else is said."""
    _put(sys.stdout, text, level, step, everyone)


def as_object(text: str, level: str, step: int | None = None, **more: Any) -> str:
    """The line of JSON, without its newline."""
    step_of = {} if step is None else {"step": int(step)}
    entry = {"time": round(time.time(), 3), "level": level, "job": style.job, **step_of, "message": text, **more}
    return json.dumps(entry, ensure_ascii=False)


def _put(file: TextIO, text: str, level: str | None, step: int | None, everyone: bool) -> None:
    if level is None:
        level = WARNING if _WARNED.match(text) else INFO
    if not (everyone or _first()) or (style.quiet and level == INFO):
        return
    if style.json:
        text = text.removeprefix("t5x-lite: ").removeprefix(f"{level}: ")  # which says what "level" says
        print(as_object(text, level, step), file=file, flush=True)
    else:
        print(text, file=file, flush=True)


def _first() -> bool:
    # Without it no other process was met; and it takes no import to say so.
    together = sys.modules.get("t5x_lite.together")
    return together is None or together.first()


class _ObjectHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        level = ERROR if record.levelno >= logging.ERROR else WARNING if record.levelno >= logging.WARNING else INFO
        if level != INFO:
            print(as_object(record.getMessage(), level, logger=record.name), file=sys.stderr, flush=True)


@contextlib.contextmanager
def _libraries_as_objects():
    root, handler, shown = logging.getLogger(), _ObjectHandler(), warnings.showwarning
    handlers = list(root.handlers)
    root.handlers[:] = [handler]

    def as_warning(message, category, filename, lineno, file=None, line=None):
        text = as_object(str(message), WARNING, category=category.__name__, at=f"{filename}:{lineno}")
        print(text, file=sys.stderr, flush=True)

    warnings.showwarning = as_warning
    try:
        yield
    finally:
        root.handlers[:], warnings.showwarning = handlers, shown
