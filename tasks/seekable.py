"""A seqio data source whose records can be read at any place: tf.data and readers that seek see the same ones."""

import abc
from collections.abc import Mapping, Sequence

import seqio
import tensorflow as tf


class SeekableSource(seqio.DataSource):
    """Gives the records of `open_split`; how they come to tf.data is up to `_dataset`."""

    @abc.abstractmethod
    def open_split(self, split: str) -> Sequence[Mapping[str, object]]:
        """The records of `split` for random access: `len()`, `[i]`, and where there is one `__getitems__([i, j])`."""

    @abc.abstractmethod
    def _dataset(self, split: str, shuffle: bool, seed: int | None, shard: seqio.ShardInfo) -> tf.data.Dataset:
        """As `get_dataset`."""

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    def list_shards(self, split: str) -> Sequence[str]:
        return [split]

    def num_input_examples(self, split: str) -> int:
        return len(self.open_split(split))

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        *,
        sequence_length=None,
        use_cached: bool = False,
        num_epochs: int | None = 1,
    ) -> tf.data.Dataset:
        """Records, shuffled over the whole split if asked for; shard i of n has records i, i+n, …"""
        del sequence_length, use_cached, num_epochs
        return self._dataset(split, shuffle, seed, shard_info or seqio.ShardInfo(index=0, num_shards=1))
