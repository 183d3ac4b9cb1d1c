"""Which documents say nearly the same, so that no split holds what another was trained on.

Two documents are near duplicates when their sets of five-word shingles have a Jaccard similarity of at least one half.
Candidates come from MinHash and locality-sensitive hashing (Broder 1997, "On the resemblance and containment of
documents"), each is then checked exactly, and what hangs together becomes one cluster.
`leaks` counts what is left between splits by another road: exact set intersections, no hashing of sketches.
"""

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

import datasketch
import numpy as np
import scipy.sparse

SIMILARITY = 0.5
SHINGLE_WORDS = 5
_PERMUTATIONS = 128
# 42 bands of 3 rows: a pair at 0.5 becomes a candidate with probability 99.6 %, one at 0.2 with 29 %.
_BANDS, _ROWS = 42, 3
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Lower-cased words, numbers as `0`: generated texts that differ in a number alone are the same text."""
    return [re.sub(r"\d+", "0", w) for w in _WORD.findall(text.lower())]


def shingles(text: str) -> set[str]:
    """All runs of five words; a shorter text is one shingle by itself."""
    w = words(text)
    return {" ".join(w[i : i + SHINGLE_WORDS]) for i in range(max(1, len(w) - SHINGLE_WORDS + 1))}


def clusters(texts: Sequence[str], progress: Callable[[int], None] | None = None) -> list[int]:
    """For each text the index of the first text of its cluster: near duplicates, and what they link, share it.

    Deterministic; `progress` is called with the number of texts just done.
    """
    hashed: list[np.ndarray] = []  # per text: sorted, distinct shingle hashes, uint32
    parents = list(range(len(texts)))
    buckets: list[dict[bytes, list[int]]] = [defaultdict(list) for _ in range(_BANDS)]
    blank = datasketch.MinHash(num_perm=_PERMUTATIONS, seed=1, hashfunc=int)
    for i, text in enumerate(texts):
        codes = np.unique(np.fromiter((zlib.crc32(s.encode()) for s in shingles(text)), np.uint32))
        hashed.append(codes)
        sketch = blank.copy()
        sketch.update_batch(codes.tolist())
        tried = set()
        for band, bucket in enumerate(buckets):
            members = bucket[sketch.hashvalues[band * _ROWS : (band + 1) * _ROWS].tobytes()]
            for j in members:
                if j not in tried and _root(parents, i) != _root(parents, j):
                    tried.add(j)
                    if _jaccard(codes, hashed[j]) >= SIMILARITY:
                        _join(parents, i, j)
            members.append(i)
        if progress:
            progress(1)
    return [_root(parents, i) for i in range(len(texts))]


def leaks(splits: dict[str, Sequence[str]]) -> dict:
    """Near duplicates between splits, counted exactly over all pairs of documents: JSON-able.

    For every pair of splits, how many documents of the later one have at least one in the earlier one at a Jaccard
    similarity of 0.3 and more, and the highest one found; also how many have four fifths of their shingles in one
    document of the earlier split (a short text quoted in a long one is no near duplicate, but known all the same).
    """
    columns: dict[str, int] = {}
    matrices = {}
    for split, texts in splits.items():
        rows, places = [], [0]
        for text in texts:
            rows += [columns.setdefault(s, len(columns)) for s in shingles(text)]
            places.append(len(rows))
        matrices[split] = (np.array(rows, np.int64), np.array(places, np.int64))
    report = {}
    names = list(splits)
    for n, later in enumerate(names):
        for earlier in names[:n]:
            best, contained = _best_matches(matrices[later], matrices[earlier], len(columns))
            report[f"{later} in {earlier}"] = {
                "documents": len(best),
                **{f"similarity >= {t}": int((best >= t).sum()) for t in (0.3, 0.4, 0.5, 0.7, 0.9)},
                "highest similarity": round(float(best.max(initial=0.0)), 4),
                "contained >= 0.8": int((contained >= 0.8).sum()),
            }
    return report


def largest(roots: Iterable[int], count: int = 5) -> list[int]:
    """Sizes of the largest clusters."""
    return [size for _, size in Counter(roots).most_common(count)]


def _best_matches(left, right, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """For each row of `left` its highest Jaccard similarity with, and its largest share in, any row of `right`."""
    a, b = (_matrix(side, columns) for side in (left, right))
    sizes_a, sizes_b = np.diff(a.indptr), np.diff(b.indptr)
    transposed = b.T.tocsr()
    similarity, contained = np.zeros(a.shape[0]), np.zeros(a.shape[0])
    for start in range(0, a.shape[0], 256):  # in pieces: the product is far larger than its factors
        shared = (a[start : start + 256] @ transposed).tocoo()
        own = sizes_a[start + shared.row]
        np.maximum.at(similarity, start + shared.row, shared.data / (own + sizes_b[shared.col] - shared.data))
        np.maximum.at(contained, start + shared.row, shared.data / own)
    return similarity, contained


def _matrix(side, columns: int) -> scipy.sparse.csr_matrix:
    rows, places = side
    return scipy.sparse.csr_matrix((np.ones(len(rows), np.int32), rows, places), shape=(len(places) - 1, columns))


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    if min(len(a), len(b)) < SIMILARITY * max(len(a), len(b)):
        return 0.0  # sizes alone rule it out
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def _root(parents: list[int], i: int) -> int:
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i


def _join(parents: list[int], i: int, j: int) -> None:
    i, j = _root(parents, i), _root(parents, j)
    parents[max(i, j)] = min(i, j)
