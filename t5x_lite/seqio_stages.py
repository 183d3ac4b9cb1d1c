"""What a task makes of real records, one preprocessor after the other, and what a mixture is made of."""

import contextlib
import dataclasses
import functools
import itertools
import numbers
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from t5x_lite import batch_texts, seqio_blocks, seqio_names, seqio_sources, vocabularies
from t5x_lite.data import derive_seed, permute
from t5x_lite.errors import UserError

MOST = 10_000  # examples that are counted


@dataclasses.dataclass(frozen=True)
class Stage:
    """What there is after one preprocessor.

    Attributes:
      name: of the preprocessor, with what it was given.
      count: of the examples that came out, up to `MOST`.
      examples: the first of them, {field: what `shown` makes of it}.
    """

    name: str
    count: int
    examples: list[dict[str, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Share:
    """What a task is of a mixture.

    Attributes:
      task: its name.
      rate: as registered, of any scale.
      examples: its part of the examples, in [0, 1].
      records: in the split; None where that is not known.
      tokens: mean tokens of an example by feature, counted on some; None where the data are not here.
      share: its part of all tokens, in [0, 1]; None where it is not known.
    """

    task: str
    rate: float
    examples: float
    records: int | None
    tokens: dict[str, float] | None
    share: float | None = None


def lengths_of(provider: seqio_names.Provider, given: Mapping[str, int] | None) -> dict[str, int]:
    """The lengths to cut to: those given, else 512 tokens of each feature.

    Raises:
      UserError: some are given, and a feature has none.
    """
    if given is None:
        return dict.fromkeys(provider.output_features, 512)
    seqio_names.check_lengths(provider, given)
    return dict(given)


def describe(task: seqio.Task) -> dict[str, Any]:
    """The task's parts by name: source, splits, features, metrics."""
    features = {}
    for name, feature in task.output_features.items():
        made = _vocabulary(feature)
        ending = ", ends with EOS" if feature.add_eos else ""
        features[name] = f"{feature.dtype.name}, {made or type(feature.vocabulary).__name__}{ending}"
    metrics = [_name(metric) for metric in [*task.metric_fns, *task.metric_objs]]
    source = getattr(getattr(task.source, "tfds_dataset", None), "name", None) or type(task.source).__name__
    return {"source": source, "splits": list(task.splits), "features": features, "metrics": metrics}


def stages(
    task: seqio.Task, split: str, lengths: Mapping[str, int], records: int, first: int, shown: int, seed: int
) -> Iterator[Stage]:
    """The records as they are read, and what is left of them after each preprocessor and after the cut to `lengths`.

    Args:
      records: how many go in, from record `first` of the split on, in the source's order.
      shown: examples to keep of each stage.
      seed: of random preprocessing; the last stage is what `task.get_dataset` makes of the records with it.
    """
    features = {**task.output_features}
    source = _first(task, split, records, first)
    with seqio_blocks.BUILDING:
        datasets = list(_datasets(task.replace(source=source), lengths, seed))
    for name, dataset in datasets:
        examples = seqio_blocks.steady(dataset.take(MOST)).as_numpy_iterator()
        kept = [_shown_example(example, features) for example in itertools.islice(examples, shown)]
        yield Stage(name, len(kept) + sum(1 for _ in examples), kept)


def shares(
    mixture: seqio.Mixture, split: str, lengths: Mapping[str, int], sample: int, seed: int
) -> tuple[list[Share], list[str]]:
    """The tasks of a mixture that have the split, and why some could not be looked into.

    A mixture's rates are of examples; what a task is of the tokens follows from the mean length of its examples, cut to
    `lengths`, on `sample` of its records.
    """
    found, problems = [], []
    for task in mixture.tasks:
        tokens = records = None
        try:
            if split not in seqio_sources.splits_of(task):
                continue
            seqio_sources.tasks_with_split(task, split)
            records = task.num_input_examples(split)
            tokens = _mean_tokens(task, split, lengths, sample, seed)
        except UserError as e:
            problems.append(str(e))
        found.append(Share(seqio_sources.plain_name(task.name), mixture.get_rate(task), 0.0, records, tokens))
    total = sum(share.rate for share in found)
    found = [dataclasses.replace(share, examples=share.rate / total if total else 0.0) for share in found]
    if all(share.tokens is not None for share in found):
        weights = [share.examples * sum(share.tokens.values()) for share in found]
        whole = sum(weights)
        found = [
            dataclasses.replace(share, share=weight / whole if whole else 0.0)
            for share, weight in zip(found, weights, strict=True)
        ]
    return found, problems


def _first(task: seqio.Task, split: str, records: int, first: int) -> seqio.DataSource:
    """A source of some neighbouring records alone."""
    known = seqio_blocks.open_records(task, split)
    if known is not None:
        indices = range(min(first, len(known)), min(first + records, len(known)))
        found = seqio_sources.read(known, indices)
    else:
        dataset = task.source.get_dataset(split=split, shuffle=False)
        found = list(seqio_blocks.steady(dataset.skip(first).take(records)).as_numpy_iterator())
    if not found:
        raise UserError(f"{seqio_sources.plain_name(task.name)} has no record {first} in {split}: lower inspect.first")
    return seqio_blocks.Records(found)


def _datasets(task: seqio.Task, lengths: Mapping[str, int], seed: int) -> Iterator[tuple[str, tf.data.Dataset]]:
    """(name, dataset) of each stage, made as `task.get_dataset` makes the last."""
    dataset = task.source.get_dataset(split="train")
    yield "records", dataset
    preprocessors = list(task.preprocessors)
    parts = [(preprocessors, lengths, seed)]
    if task.supports_caching:
        # What stands before the cache knows no lengths, and draws its random numbers from seeds of its own.
        cut = task._cache_step_idx
        parts = [(preprocessors[:cut], None, seed), (preprocessors[cut + 1 :], lengths, seed + 42 * cut)]
    for part, given, own_seed in parts:
        with seqio.utils.map_seed_manager(own_seed):
            for preprocessor in part:
                if isinstance(preprocessor, seqio.CacheDatasetPlaceholder):
                    continue
                dataset = task._preprocess_dataset(dataset, [preprocessor], sequence_length=given)
                yield _name(preprocessor), dataset
    yield "cut to the feature lengths", task._trim_output_features(dataset, lengths)


def _mean_tokens(task: seqio.Task, split: str, lengths: Mapping[str, int], sample: int, seed: int) -> dict[str, float]:
    known = seqio_blocks.open_records(task, split)
    if known is None:
        source = _first(task, split, sample, 0)
    else:
        number = min(sample, len(known))
        chosen = permute(np.arange(number), len(known), derive_seed(seed, seqio_sources.plain_name(task.name)))
        source = seqio_blocks.Records(seqio_sources.read(known, chosen))
    with seqio_blocks.BUILDING:
        *_, (_, dataset) = _datasets(task.replace(source=source), lengths, seed)
    sums, count = dict.fromkeys(task.output_features, 0), 0
    for example in seqio_blocks.steady(dataset.take(MOST)).as_numpy_iterator():
        count += 1
        for name in sums:
            sums[name] += int(np.count_nonzero(example.get(name, 0)))
    return {name: value / max(count, 1) for name, value in sums.items()}


def _shown_example(example: Mapping[str, Any], features: Mapping[str, seqio.Feature]) -> dict[str, dict[str, Any]]:
    return {
        name: shown(value, _vocabulary(features[name]) if name in features else None) for name, value in example.items()
    }


def shown(value: Any, vocabulary: vocabularies.Vocabulary | None) -> dict[str, Any]:
    """A field of an example, JSON-able: its kind, its values, and of tokens the text that they stand for."""
    if hasattr(value, "to_list"):  # ragged
        return {"kind": "ragged", "values": _plain(value.to_list())}
    array = np.asarray(value)
    kind = "text" if array.dtype.kind in "OSU" else str(array.dtype)
    found = {"kind": f"{kind} {list(array.shape)}" if array.ndim else kind, "values": _plain(array.tolist())}
    if vocabulary is not None and array.ndim == 1 and array.dtype.kind in "iu":
        found["text"] = batch_texts.as_text(vocabulary, array)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _vocabulary(feature: seqio.Feature) -> vocabularies.Vocabulary | None:
    with contextlib.suppress(UserError):
        return vocabularies.from_seqio(feature.vocabulary)
    return None


def _name(function: Any) -> str:
    """`rekey(key_map={'targets': 'text'})`: a function, with what was bound to it."""
    given = ""
    while isinstance(function, functools.partial):
        values = [_value(v) for v in function.args] + [f"{k}={_value(v)}" for k, v in function.keywords.items()]
        given = ", ".join(filter(None, [*values, given]))
        function = function.func
    name = getattr(function, "__name__", type(function).__name__)
    return f"{name}({given})" if given else name


def _value(value: Any) -> str:
    text = _name(value) if callable(value) and not isinstance(value, numbers.Number) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
