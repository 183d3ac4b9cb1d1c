"""seqio tasks and mixtures, cut into blocks: the only door through which TensorFlow comes into training.

Where every source can be read at any place, block k of a stream is a fixed set of records: task j with share s_j gives
its records ⌊s_j·K·k⌋ up to ⌊s_j·K·(k+1)⌋ of that stream, through a seeded permutation of the records for each epoch. So
shares are exact, and each record is seen once an epoch. A mixture's rates are of examples: s_j is in proportion to
task j's rate over the examples that it makes of a record, which are counted on some of its records before the first
step. Elsewhere a block is a stream's shard of one epoch (of a mixture: the whole endless stream); going on replays it
from its start.
"""

import functools
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import seqio
import tensorflow as tf

from t5x_lite import console, seqio_cache, seqio_sources
from t5x_lite.data import Row, derive_seed, permute
from t5x_lite.errors import UserError
from t5x_lite.seqio_names import check_lengths, check_named, find, vocabulary_of
from t5x_lite.seqio_packing import EncDecFeatureConverter, LMFeatureConverter, PrefixLMFeatureConverter
from t5x_lite.seqio_sources import plain_name

# More than any task makes of a record on average: the room in which a mixture's block is shuffled.
EXAMPLES_A_RECORD = 16
# Of each task of a mixture, so that its share is off by some 4 % where half of the records are filtered out.
COUNTED_RECORDS = 512
ROWS_AT_ONCE = 16

# seqio hands out the seeds of a pipeline's random steps from one global counter, so that two pipelines built at once
# would take each other's. Whoever builds one while a run reads its data holds this.
BUILDING = threading.Lock()

# JAX owns the accelerators.
tf.config.set_visible_devices([], "GPU")


def convert(
    dataset: tf.data.Dataset,
    lengths: Mapping[str, int],
    packing: bool,
    architecture: str = "encoder_decoder",
    loss_on_targets_only: bool = True,
) -> tf.data.Dataset:
    """A task's examples as a model's rows. Some have targets alone; some are rows already, and stay as they are."""
    if "decoder_target_tokens" in dataset.element_spec:
        return dataset
    converter = converter_class("inputs" in dataset.element_spec, architecture)
    arguments = {"loss_on_targets_only": loss_on_targets_only} if converter is PrefixLMFeatureConverter else {}
    check_named(converter.TASK_FEATURES, lengths)
    return converter(pack=packing, **arguments)(dataset, {name: lengths[name] for name in converter.TASK_FEATURES})


def steady(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """In one order whatever the threads do, and ending when it ends: the thread that tunes a pipeline sleeps longer and
    longer, and an iterator that is done waits for it, up to 15 s after a minute."""
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    return dataset.with_options(options)


def rows_of(dataset: tf.data.Dataset) -> Iterator[Row]:
    """The model's rows in numpy."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = 2
    # Handed over by the batch: the way into Python costs more than a row.
    for rows in steady(dataset.batch(ROWS_AT_ONCE).with_options(options).prefetch(2)).as_numpy_iterator():
        for i in range(len(rows["decoder_target_tokens"])):
            yield {name: column[i] for name, column in rows.items()}


def converter_class(inputs: bool, architecture: str) -> type[seqio.FeatureConverter]:
    """By whether there are inputs, and the model."""
    if architecture == "encoder_decoder":
        return EncDecFeatureConverter
    return PrefixLMFeatureConverter if inputs else LMFeatureConverter


class Records(seqio.DataSource):
    """A fixed list of records in place of a task's own source."""

    def __init__(self, records: Sequence[Mapping[str, object]], tokens: bool = False):
        super().__init__(splits=("train",))
        self._columns = seqio_sources.columns(records, any_length=tokens)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        return [split]

    def num_input_examples(self, split: str) -> None:
        return None  # unknown to seqio, which would keep a small data set in memory

    def get_dataset(self, split="train", shuffle=False, seed=None, shard_info=None, **unused) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(self._columns)


def open_records(task: seqio.Task, split: str):
    """The records of a split by index, `len()` and `[i]`; None where the source can only be read in order."""
    source = task.source
    if hasattr(source, "open_split"):
        return source.open_split(split)
    if isinstance(source, seqio.TfdsDataSource) and source.tfds_dataset.name:
        return seqio_sources.array_records(source, split)
    return None


class SeqioBlocks:
    """See `data.Blocks`; `config` is a `data.SeqioSource`."""

    def __init__(self, config, architecture: str = "encoder_decoder", fallback_vocabulary=None):
        self._config = config
        if config.cache_dir is not None:
            seqio.add_global_cache_dirs([config.cache_dir])  # for rates, and so that the data need not be here
        self._provider = find(config, fallback_vocabulary)
        self._tasks = seqio_sources.tasks_with_split(self._provider, config.split)
        check_lengths(self._provider, config.feature_lengths)
        mixture = isinstance(self._provider, seqio.Mixture)
        self._records = [
            open_records(task, config.split)
            if config.cache_dir is None
            else seqio_cache.open_cached(config.cache_dir, task, config.split)
            for task in self._tasks
        ]
        self.seekable = all(records is not None for records in self._records)
        if not self.seekable:
            console.show(
                f"note: {plain_name(self._provider.name)} cannot be read at any place: a resumed run replays "
                + ("its stream" if mixture else "the current epoch"),
                None,
            )
        self.vocabulary = vocabulary_of(self._provider)
        self._architecture = architecture
        self._try_out()
        self._shares = self._shares_of(self._provider) if self.seekable and mixture else np.ones(1)

    def _try_out(self) -> None:
        """Builds a pipeline: what is wrong in an objective is said before the first step; gin sees what it reads."""
        if self.seekable:
            made = [
                self._examples(task, seqio_sources.read(records, np.arange(1)), 0)
                for task, records in zip(self._tasks, self._records, strict=True)
            ]
        else:
            made = [self._epoch_block(0, 0, 0)]
        for_encoders = {"inputs", "encoder_input_tokens"}
        if self._architecture == "encoder_decoder" and any(not for_encoders & set(d.element_spec) for d in made):
            raise UserError(
                f"{plain_name(self._provider.name)} makes no inputs for an encoder to read: choose another "
                "task or objective, or a language model (--gin_file=models/study/causal_lm.gin)"
            )

    def _shares_of(self, mixture: seqio.Mixture) -> np.ndarray:
        """Of the records that are read, those of each task."""
        rates = np.array([mixture.get_rate(task) for task in self._tasks], float)
        made = np.ones(len(rates))
        for j in np.flatnonzero(rates) if len(rates) > 1 else ():
            made[j] = self._examples_of_a_record(self._tasks[j], self._records[j])
        shares = rates / made
        return shares / shares.sum()

    def _examples_of_a_record(self, task: seqio.Task, records) -> float:
        """Counted on the same records, with the same random numbers, in every run of a seed."""
        number, seed = (
            min(len(records), COUNTED_RECORDS),
            derive_seed(self._config.seed, plain_name(task.name), "count"),
        )
        chosen = permute(np.arange(number), len(records), seed)
        dataset = self._examples(task, seqio_sources.read(records, chosen), seed)
        counted = steady(dataset).reduce(np.int64(0), lambda count, _: count + 1).numpy()
        if not counted:
            raise UserError(
                f"{plain_name(task.name)} makes no example of {number:,} of its {len(records):,} records: "
                f"take it out of {plain_name(self._provider.name)}, or see what its preprocessors drop"
            )
        return counted / number

    def block(self, stream: int, k: int) -> Iterator[Row]:
        with BUILDING:
            dataset = self._block(stream, k)
        if dataset is not None:
            yield from rows_of(dataset)

    def _block(self, stream: int, k: int) -> tf.data.Dataset | None:
        config = self._config
        seed = derive_seed(config.seed, plain_name(self._provider.name), stream, k)
        if self.seekable:
            dataset = self._records_block(stream, k, seed)
        else:
            dataset = self._epoch_block(stream, k, seed)
        if dataset is None:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return convert(
                dataset, config.feature_lengths, config.packing, self._architecture, config.loss_on_targets_only
            )

    def _records_block(self, stream: int, k: int, seed: int) -> tf.data.Dataset | None:
        datasets = []
        for j, (task, records) in enumerate(zip(self._tasks, self._records, strict=True)):
            chosen = self._chosen(j, stream, k)
            if not len(chosen):
                continue
            datasets.append(self._examples(task, seqio_sources.read(records, chosen), derive_seed(seed, j)))
        if len(datasets) < 2:
            return datasets[0] if datasets else None
        # One after the other, then shuffled as a whole. Sampled by their rates, a task that filters many records out
        # would run dry before the others, and leave the end of every block to them alone.
        whole = functools.reduce(tf.data.Dataset.concatenate, datasets)
        return whole.shuffle(EXAMPLES_A_RECORD * self._config.block_records, seed=seed, reshuffle_each_iteration=False)

    def _chosen(self, j: int, stream: int, k: int) -> np.ndarray:
        """Numbers of the records that task j gives to block k of a stream."""
        task, records = self._tasks[j], self._records[j]
        each = self._shares[j] * self._config.block_records
        # Streams take turns in the order of an endless sequence of epochs.
        places = np.arange(int(each * k), int(each * (k + 1)), dtype=np.int64) * self._config.num_streams + stream
        epochs, within = np.divmod(places, len(records))
        chosen = np.empty_like(within)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            order = derive_seed(self._config.seed, plain_name(task.name), "epoch", int(epoch))
            chosen[here] = permute(within[here], len(records), order)
        return chosen

    def origins(self, stream: int, k: int) -> Iterator[tuple[str, Mapping[str, object]]]:
        """(where it is, the record) of all records of a block, before preprocessing; none where they cannot be told."""
        if not self.seekable:
            return
        for j, (task, records) in enumerate(zip(self._tasks, self._records, strict=True)):
            chosen = self._chosen(j, stream, k)
            for i, record in zip(chosen, seqio_sources.read(records, chosen), strict=True):
                yield records.where(i) if hasattr(records, "where") else f"{plain_name(task.name)} {i}", record

    def _examples(self, task: seqio.Task, records, seed: int) -> tf.data.Dataset:
        lengths = dict(self._config.feature_lengths)
        more = 0
        if self._config.cache_dir is None:
            task = task.replace(source=Records(records))
        else:
            task, more = seqio_cache.after_cache(task, Records(records, tokens=True))
        dataset = task.get_dataset(
            sequence_length=lengths,
            split="train",
            shuffle=False,
            seed=seed + more,
            num_epochs=1,
            try_in_mem_cache=False,
        )
        dataset = dataset.map(lambda example: {key: example[key] for key in task.output_features if key in example})
        if self._config.shuffle_buffer:
            dataset = dataset.shuffle(self._config.shuffle_buffer, seed=seed, reshuffle_each_iteration=False)
        return dataset

    def _epoch_block(self, stream: int, k: int, seed: int) -> tf.data.Dataset:
        config = self._config
        arguments = dict(
            sequence_length=dict(config.feature_lengths),
            split=config.split,
            shuffle=True,
            seed=seed,
            shard_info=seqio.ShardInfo(index=stream, num_shards=config.num_streams),
        )
        if isinstance(self._provider, seqio.Mixture):
            return self._provider.get_dataset(num_epochs=None, log_mixing_proportions=False, **arguments)
        return self._provider.get_dataset(num_epochs=1, **arguments)
