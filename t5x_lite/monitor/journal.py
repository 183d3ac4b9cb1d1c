"""What happened to a run and when, in words: MODEL_DIR/journal.jsonl."""

import contextlib
import json
import time

from etils import epath

from t5x_lite import buckets
from t5x_lite.run_folder import write_whole

JOURNAL_FILE = "journal.jsonl"


class Journal:
    """Adds lines {"time": seconds since 1970, "text": …}, over all starts of a run.

    A line that cannot be written (disk full, folder gone) is lost: a run does not stop for it.

    Args:
      model_dir: the run's folder.
      enabled: False makes `add` do nothing (processes other than the first).
    """

    def __init__(self, model_dir, enabled: bool = True):
        self._path = epath.Path(model_dir) / JOURNAL_FILE
        self._enabled = enabled

    def add(self, text: str) -> None:
        if not self._enabled:
            return
        line = json.dumps({"time": round(time.time(), 3), "text": text}, ensure_ascii=False) + "\n"
        with buckets.survived():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if not buckets.is_remote(self._path):
                with self._path.open("a") as file:
                    file.write(line)
            else:  # objects cannot be appended to
                before = self._path.read_text() if self._path.exists() else ""
                write_whole(self._path, before + line)


def read_journal(model_dir) -> list[tuple[float, str]]:
    """(time, text) of each line that is complete; none where there is no journal."""
    path = epath.Path(model_dir) / JOURNAL_FILE
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            found.append((float(entry["time"]), str(entry["text"])))
    return found
