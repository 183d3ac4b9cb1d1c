"""tensorflow-datasets as a seqio source, whichever file format the data have been prepared in."""

import numpy as np
import seqio
import tensorflow as tf

from t5x_lite import seqio_sources


class TfdsSource(seqio.TfdsDataSource):
    """`seqio.TfdsDataSource` that reads ArrayRecord files as well, which tensorflow-datasets gives by index alone."""

    def get_dataset(
        self,
        split: str | None = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused_kwargs,
    ) -> tf.data.Dataset:
        """Raw examples; of ArrayRecord files shuffled over the whole split, shard i of n having records i, i+n, …"""
        records = seqio_sources.array_records(self, split)
        if records is None:
            return super().get_dataset(split, shuffle, seed, shard_info)
        shard = shard_info or seqio.ShardInfo(0, 1)

        def read():
            order = np.arange(len(records))[shard.index :: shard.num_shards]
            if shuffle:
                order = np.random.default_rng(seed).permutation(order)
            for i in order:
                yield records[int(i)]

        return tf.data.Dataset.from_generator(read, output_signature=self.tfds_dataset.info.features.get_tensor_spec())
