"""The pydocs corpus as a seqio data source."""

from collections.abc import Sequence

from t5x_lite.tasks.in_memory import InMemorySource
from t5x_lite.tasks.pydocs import builder


class PydocsSource(InMemorySource):
    """Records with `text`, `summary`, `body`, `library` and `name` (scalar strings; `summary` may be empty), in train,
    validation and test.

    Small enough to be held in memory (tf.data cannot read array_record files). `open_split(split)` gives the same
    records in the same order by index, for readers that seek.
    """

    def __init__(self):
        super().__init__(splits=builder.SPLITS)

    def cache_key(self, split: str):
        return str(builder.data_dir()), split

    def open_split(self, split: str) -> Sequence[dict[str, bytes]]:
        """The records of `split` for random access: `len()`, `[i]`, `__getitems__([i, j])`; dicts of UTF-8 bytes."""
        return builder.open_split(split)
