"""Tasks cached as seqio caches them: tokenized once, written as TFRecords, read again by seqio or as blocks.

    <folder>/<task>/train.tfrecord-00000-of-00008 …  info.train.json  stats.train.json  COMPLETED

What comes before a task's `CacheDatasetPlaceholder` is in the cache; what follows (the objective) runs at each reading.
"""

import json
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import seqio
import tensorflow as tf
from etils import epath

from t5x_lite.data import derive_seed
from t5x_lite.errors import UserError
from t5x_lite.seqio_sources import plain_name

_LENGTH = struct.Struct("<Q")  # a TFRecord: length, its checksum (4 bytes), the record, its checksum (4 bytes)


# Writing -------------------------------------------------------------------------------------------------------------


def task_folder(folder: str, task: seqio.Task) -> epath.Path:
    """Where a task's cache lies."""
    return epath.Path(folder) / seqio.get_task_dir_from_name(task.name)


def number_of_shards(task: seqio.Task, split: str, wanted: int) -> int:
    """Shards of a split's cache: `wanted` where the source can be cut anywhere, else as many as the source has files.

    Raises:
      UserError: the task has no place at which it can be cached.
    """
    if not task.supports_caching:
        raise UserError(f"{plain_name(task.name)} cannot be cached: its preprocessors have no CacheDatasetPlaceholder")
    return wanted if task.source.supports_arbitrary_sharding else len(task.source.list_shards(split))


def write_shard(
    task: seqio.Task, split: str, folder: str, shard: int, shards: int, seed: int, count: Callable[[int], None]
) -> tuple[dict, Counter, Counter]:
    """Writes one shard's examples.

    Args:
      count: called with the number of examples written since the last call, now and then.

    Returns:
      (features as seqio describes them, sums of examples and tokens, the most tokens of one example).
    """
    own = derive_seed(seed, plain_name(task.name), split, shard)
    dataset = task.source.get_dataset(
        split=split, shuffle=False, seed=own, shard_info=seqio.ShardInfo(shard, shards) if shards > 1 else None
    )
    dataset = task.preprocess_precache(dataset, seed=own).prefetch(16)
    described = {name: _describe(spec) for name, spec in dataset.element_spec.items()}
    sums, most = Counter[str](), Counter[str]()
    since = 0
    with tf.io.TFRecordWriter(_shard_file(folder, split, shard, shards)) as writer:
        for example in dataset.as_numpy_iterator():
            writer.write(seqio.dict_to_tfexample(example).SerializeToString(deterministic=True))
            sums["examples"] += 1
            for name, feature in task.output_features.items():
                if name in example and np.issubdtype(np.asarray(example[name]).dtype, np.integer):
                    tokens = int(np.isin(example[name], _no_tokens(feature.vocabulary), invert=True).sum())
                    sums[f"{name}_tokens"] += tokens
                    most[f"{name}_max_tokens"] = max(most[f"{name}_max_tokens"], tokens)
            since += 1
            if since == 256:
                count(since)
                since = 0
    count(since)
    return described, sums, most


def finish_split(folder: str, split: str, shards: int, parts: Iterable[tuple[dict, Counter, Counter]]) -> dict:
    """Writes what seqio reads beside the shards; returns the statistics."""
    sums, most = Counter[str](), Counter[str]()
    described: dict = {}
    for some_described, some_sums, some_most in parts:
        described = some_described
        sums += some_sums
        most |= some_most
    info = {"num_shards": shards, "features": described, "seqio_version": seqio.__version__}
    stats = {"examples": sums["examples"], **sums, **most}
    for path, content in (
        (seqio.utils.get_cached_info_path(folder, split), info),
        (seqio.utils.get_cached_stats_path(folder, split), stats),
    ):
        epath.Path(path).write_text(json.dumps(content, indent=2, sort_keys=True))
    return stats


def _shard_file(folder: str, split: str, shard: int, shards: int) -> str:
    return f"{seqio.utils.get_cached_tfrecord_prefix(folder, split)}-{shard:05d}-of-{shards:05d}"


def _describe(spec: tf.TensorSpec) -> dict:
    shape = spec.shape.as_list()
    return {"shape": [None, *shape[1:]] if shape else [], "dtype": spec.dtype.name}


def _no_tokens(vocabulary: seqio.Vocabulary) -> list[int]:
    return [i for i in (vocabulary.eos_id, vocabulary.pad_id) if i is not None]


# Reading -------------------------------------------------------------------------------------------------------------


class CachedRecords:
    """The examples of a cached split at any place: item i is the example i // n of shard i % n, as long as there are.

    So they stand in the order of the source's records, where those were dealt out to the shards in turn.
    """

    def __init__(self, folder: epath.Path, split: str):
        info = json.loads(epath.Path(seqio.utils.get_cached_info_path(os.fspath(folder), split)).read_text())
        self._features = info["features"]
        odd = [name for name, feature in self._features.items() if len(feature["shape"]) > 1]
        if odd:
            raise UserError(f"{folder}: {odd[0]} has more than one dimension, and is not read from a cache")
        shards = info["num_shards"]
        self._files = [_shard_file(os.fspath(folder), split, shard, shards) for shard in range(shards)]
        places = [_offsets(file) for file in self._files]
        # (shard, offset) in the order of the items
        self._places = [
            (shard, offsets[i])
            for i in range(max(map(len, places), default=0))
            for shard, offsets in enumerate(places)
            if i < len(offsets)
        ]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, i: int) -> Mapping[str, object]:
        return self.__getitems__([i])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Mapping[str, object]]:
        found = {}
        for shard in sorted({self._places[i][0] for i in indices}):
            with epath.Path(self._files[shard]).open("rb") as file:
                for offset in sorted(offset for s, offset in {self._places[i] for i in indices} if s == shard):
                    file.seek(offset)
                    (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
                    file.seek(4, os.SEEK_CUR)
                    found[shard, offset] = self._parse(file.read(length))
        return [found[self._places[i]] for i in indices]

    def _parse(self, record: bytes) -> dict[str, object]:
        values = tf.train.Example.FromString(record).features.feature
        example = {}
        for name, feature in self._features.items():
            kind = values[name].WhichOneof("kind") or "int64_list"
            value = list(getattr(values[name], kind).value)
            if not feature["shape"]:
                example[name] = value[0] if kind == "bytes_list" else np.asarray(value[0], feature["dtype"])
            else:
                example[name] = np.array(value, object if kind == "bytes_list" else feature["dtype"])
        return example


def _offsets(path: str) -> list[int]:
    offsets, place = [], 0
    file_path = epath.Path(path)
    end = file_path.stat().length
    with file_path.open("rb") as file:
        while place < end:
            offsets.append(place)
            file.seek(place)
            place += _LENGTH.size + _LENGTH.unpack(file.read(_LENGTH.size))[0] + 8
    return offsets


def open_cached(folder: str, task: seqio.Task, split: str) -> CachedRecords:
    """The examples of a task's split in the caches below `folder`.

    Raises:
      UserError: the task has not been cached there, on this vocabulary, or without this split.
    """
    place = task_folder(folder, task)
    if not (place / "COMPLETED").exists():
        raise UserError(
            f"SeqioSource.cache_dir = {folder!r} has no {task.name}: run t5x-lite cache "
            f"--task={plain_name(task.name)} --output_dir={folder}, with the vocabulary of this run"
        )
    if not epath.Path(seqio.utils.get_cached_info_path(os.fspath(place), split)).exists():
        raise UserError(f"{place} has no split {split!r}: cache the task once more, with that split in cache.splits")
    return CachedRecords(place, split)


def after_cache(task: seqio.Task, source: seqio.DataSource) -> tuple[seqio.Task, int]:
    """(the part of a task that follows its cache, what is added to a seed so that it draws as in the whole task)."""
    place = task._cache_step_idx
    return task.replace(source=source, preprocessors=task.preprocessors[place + 1 :]), 42 * place
