"""CLD3, by a process of its own: TensorFlow and it have each a protobuf inside, and where both are loaded it crashes.

This file is that process's program, too, and so imports nothing of this package.
"""

import json
import subprocess
import sys


class Cld3:
    """One process, asked by one thread at a time. It ends when this one does."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def find(self, text: str) -> tuple[str, float, bool]:
        """(language code, probability, whether that is reliable).

        Raises:
          RuntimeError: the process is gone.
        """
        try:
            self._process.stdin.write(json.dumps(text) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"the process of CLD3 has ended with {self._process.wait()}; see above why")
        return tuple(json.loads(line))


def answer(lines, out) -> None:
    """A text in each line, as JSON; a line of what was found for each."""
    import gcld3

    identifier = gcld3.NNetLanguageIdentifier(min_num_bytes=100, max_num_bytes=10000)
    for line in lines:
        found = identifier.FindLanguage(json.loads(line))
        out.write(json.dumps([found.language, found.probability, found.is_reliable]) + "\n")
        out.flush()


if __name__ == "__main__":
    answer(sys.stdin, sys.stdout)
