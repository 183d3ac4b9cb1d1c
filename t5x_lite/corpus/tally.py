"""What each rule removed, added up: counts, and some of the texts, the same ones however the work was divided."""

import hashlib
import heapq
from collections.abc import Iterable

from t5x_lite.corpus.rules import Removed

SAMPLES = 12  # texts kept of each rule
SAMPLE_CHARACTERS = 300

# (pages, lines, bytes, [(hash, text)] of the smallest hashes)
Counts = tuple[int, int, int, list[tuple[bytes, str]]]


class Tally:
    """{rule or stage: Counts}."""

    def __init__(self):
        self.counts: dict[str, list] = {}

    def add(self, removed: Removed) -> None:
        self.count(removed.rule, removed.pages, removed.lines, removed.bytes)
        text = removed.sample[:SAMPLE_CHARACTERS]
        if text:
            self._keep(self.counts[removed.rule][3], [(_hash(removed.rule, text), text)])

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
    def _keep(samples: list[tuple[bytes, str]], others: Iterable[tuple[bytes, str]]) -> None:
        known = set(samples)
        for sample in others:
            if len(samples) < SAMPLES or sample < samples[-1]:
                if sample not in known:
                    samples.append(tuple(sample))
                    known.add(sample)
                    samples[:] = heapq.nsmallest(SAMPLES, samples)


def _hash(rule: str, text: str) -> bytes:
    return hashlib.md5(f"{rule}\n{text}".encode()).digest()
