"""Data sets cut short, so that they are repeated sooner or give fewer labels (Raffel et al. 2020, section 3.4.2).

`<task>_truncated` is the task on the first records of its training split; the other splits stay whole. How many is a
binding, asked for when the data are read:

    truncation.tokens = 536870912     # 2^29, as the paper counts text
    truncation.examples = 1000        # for labelled data
"""

from collections.abc import Iterator, Sequence

import seqio
import tensorflow as tf

import gin
from t5x_lite import seqio_sources
from t5x_lite.errors import UserError
from t5x_lite.tasks.in_memory import InMemorySource


@gin.configurable(module="t5x_lite")
def truncation(tokens: int | None = None, examples: int | None = None) -> tuple[int | None, int | None]:
    """What truncated training splits are cut to.

    Args:
      tokens: whole records, in the source's order, until their texts have at least so many tokens together.
      examples: at most so many records.

    Raises:
      UserError: neither is set, or one is below 1.
    """
    if tokens is None and examples is None:
        raise UserError(
            "a truncated task needs truncation.tokens or truncation.examples: set one, or name the task "
            "without _truncated"
        )
    for name, value in (("tokens", tokens), ("examples", examples)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise UserError(f"truncation.{name} must be a whole number of at least 1, not {value!r}")
    return tokens, examples


class TruncatedSource(InMemorySource):
    """The first records of a task's training split, in the order of its source; its other splits as they are.

    Args:
      task: its source is cut, and in its targets' vocabulary tokens are counted.
      text: the field whose tokens are counted.
    """

    def __init__(self, task: seqio.Task, text: str = "text"):
        super().__init__(splits=tuple(task.source.splits))
        self._task, self._text = task, text
        self._records: dict[tuple, list[dict]] = {}

    def cache_key(self, split: str):
        return split, truncation() if split == "train" else None

    def open_split(self, split: str) -> Sequence[dict[str, object]]:
        key = self.cache_key(split)
        if key not in self._records:
            seqio_sources.tasks_with_split(self._task, split)  # or it says which data set is not here
            self._records[key] = list(self._first(split, *(key[1] or (None, None))))
        return self._records[key]

    def get_dataset(self, split: str = "train", *args, **kwargs) -> tf.data.Dataset:
        if split == "train":
            return super().get_dataset(split, *args, **kwargs)
        return self._task.source.get_dataset(split, *args, **kwargs)

    def _first(self, split: str, tokens: int | None, examples: int | None) -> Iterator[dict[str, object]]:
        vocabulary, counted = self._task.output_features["targets"].vocabulary, 0
        for number, record in enumerate(self._task.source.get_dataset(split, shuffle=False).as_numpy_iterator()):
            if number == examples or (tokens is not None and counted >= tokens):
                return
            yield record
            if tokens is not None:
                counted += len(vocabulary.encode(record[self._text].decode("utf-8")))


def add_truncated(name: str, text: str = "text") -> None:
    """Registers `<name>_truncated` beside a registered task."""
    task = seqio.TaskRegistry.get(name)
    seqio.TaskRegistry.add_provider(
        f"{name}_truncated", task.replace(name=f"{name}_truncated", source=TruncatedSource(task, text))
    )
