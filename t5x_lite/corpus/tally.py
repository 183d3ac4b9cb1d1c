"""What each rule removed, added up: counts, and some of the texts, the same ones however the work was divided."""

import bisect
import zlib
from collections.abc import Iterable

from t5x_lite.corpus.rules import Removed

SAMPLES = 12  # texts kept of each rule
SAMPLE_CHARACTERS = 300

# (pages, lines, bytes, [(hash, text)] of the smallest hashes, in their order)
Counts = tuple[int, int, int, list[tuple[int, str]]]


class Tally:
    """{rule or stage: Counts}."""

    def __init__(self):
        self.counts: dict[str, list] = {}

    def add(self, removed: Removed) -> None:
        self.count(removed.rule, removed.pages, removed.lines, removed.bytes)
        text = removed.sample[:SAMPLE_CHARACTERS]
        if text:
            self._keep(self.counts[removed.rule][3], [(zlib.crc32(text.encode()), text)])

    def count(self, name: str, pages: int, lines: int, size: int) -> None:
        """Pages, lines and bytes under a name."""
        counts = self.counts.setdefault(name, [0, 0, 0, []])
        counts[0] += pages
        counts[1] += lines
        counts[2] += size

    def merge(self, name: str, counts: Counts) -> None:
        """Adds what another tally has under a name."""
        self.count(name, *counts[:3])
        self._keep(self.counts[name][3], counts[3])

    def items(self) -> list[tuple[str, Counts]]:
        return [(name, tuple(counts)) for name, counts in self.counts.items()]

    @staticmethod
    def _keep(samples: list[tuple[int, str]], others: Iterable[tuple[int, str]]) -> None:
        for sample in others:
            if (len(samples) < SAMPLES or sample < samples[-1]) and sample not in samples:
                bisect.insort(samples, sample)
                del samples[SAMPLES:]
