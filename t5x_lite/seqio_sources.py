"""The data sets behind seqio tasks: which of them a run reads, whether they are here, and their records as columns."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from t5x_lite.errors import UserError


def tasks_with_split(provider: seqio.Task | seqio.Mixture, split: str) -> list[seqio.Task]:
    """The task, or the mixture's tasks that have `split`; all of their data are here.

    Raises:
      UserError: no task has the split, or a data set has not been prepared on this machine; how to do it is said.
    """
    tasks = list(provider.tasks) if isinstance(provider, seqio.Mixture) else [provider]
    chosen = [task for task in tasks if split in splits_of(task)]
    if not chosen:
        known = dict.fromkeys(name for task in tasks for name in splits_of(task))
        raise UserError(f"{plain_name(provider.name)} has no split {split!r}; it has {', '.join(known)}")
    _check_prepared(chosen)
    return chosen


def splits_of(task: seqio.Task) -> Sequence[str]:
    """The task's splits. Raises UserError where only its data say which, and are not here."""
    if isinstance(task.source, seqio.TfdsDataSource) and not task.source._splits:
        _check_prepared([task])  # only the data say which splits there are
    return task.splits


def _check_prepared(tasks: Sequence[seqio.Task]) -> None:
    missing = {}
    for task in tasks:
        if not task.cache_dir and isinstance(task.source, seqio.TfdsDataSource):
            name, remedy = _name_and_remedy(task.source.tfds_dataset)
            if remedy:
                missing.setdefault(name, (task, remedy))
    if not missing:
        return
    name, (task, remedy) = next(iter(missing.items()))
    others = f" (nor are {', '.join(list(missing)[1:])})" if len(missing) > 1 else ""
    folder = task.source.tfds_dataset.data_dir or tfds.core.constants.DATA_DIR
    raise UserError(
        f"{plain_name(task.name)} reads the data set {name}, which is not in {folder}{others}; set "
        f"TFDS_DATA_DIR to the folder that has it, {remedy}"
    )


def _name_and_remedy(loader: seqio.utils.LazyTfdsLoader) -> tuple[str, str | None]:
    """The data set's full name, and what can be done where it has not been prepared."""
    try:
        builder = loader.builder
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError):
        return loader.name, "where it must lie ready: the installed tensorflow-datasets does not know how to prepare it"
    name = f"{builder.info.full_name.rpartition('/')[0]}:{builder.version}"
    command = f"import tensorflow_datasets as tfds; tfds.builder('{name}').download_and_prepare()"
    return name, None if builder.is_prepared() else f'or prepare it: python -c "{command}"'


def array_records(source: seqio.TfdsDataSource, split: str | None) -> Sequence[Mapping[str, Any]] | None:
    """The records of a task's split by index; None where they have not been prepared as ArrayRecord files."""
    builder = source.tfds_dataset.builder
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        return None
    # The task's split may be a part of the data set's.
    return builder.as_data_source(split=source.tfds_dataset._map_split(split))


def read(records, indices: Iterable[int]) -> list[Mapping[str, Any]]:
    """Many records, at once where their source can."""
    indices = [int(i) for i in indices]
    if hasattr(records, "__getitems__"):
        return records.__getitems__(indices)
    return [records[i] for i in indices]


def plain_name(name: str) -> str:
    """The registered name, without the mark of another vocabulary."""
    return name.split("#", maxsplit=1)[0]


def columns(values: Sequence[Any], any_length: bool = False):
    """Records as what `tf.data.Dataset.from_tensor_slices` takes apart again.

    Args:
      values: scalars, arrays [n] of any lengths, or dicts of such, all of one kind.
      any_length: arrays shall not look as if they had one length, though they have, as those of tokens do not.
    """
    if isinstance(values[0], Mapping):
        return {name: columns([value[name] for value in values], any_length) for name in values[0]}
    arrays = [np.asarray(value) for value in values]
    if len({array.shape for array in arrays}) == 1 and not (any_length and arrays[0].ndim):
        # Texts as objects: an array of bytes would give every text the room of the longest, and drop zeros at its end.
        return np.array(values, object) if isinstance(values[0], (bytes, str)) else np.stack(arrays)
    # Empty ones may be of another dtype, unless all are empty.
    flat = np.concatenate([array for array in arrays if array.size] or arrays)
    return tf.RaggedTensor.from_row_lengths(flat, [len(array) for array in arrays])
