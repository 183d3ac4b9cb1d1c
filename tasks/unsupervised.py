"""How an unsupervised task is registered: text in, tokens, an objective."""

import functools
from collections.abc import Callable, Mapping

import seqio


def features(vocabulary: seqio.Vocabulary) -> dict[str, seqio.Feature]:
    """`inputs`, which an objective may leave out, and `targets`: both with EOS."""
    return {
        "inputs": seqio.Feature(vocabulary=vocabulary, add_eos=True, required=False),
        "targets": seqio.Feature(vocabulary=vocabulary, add_eos=True),
    }


def add_task(
    name: str, source: seqio.DataSource, output_features: Mapping[str, seqio.Feature], *objective: Callable
) -> None:
    """Registers `text` of `source` -> tokens -> `objective` (preprocessors of datasets)."""
    seqio.TaskRegistry.add(
        name, source=source, preprocessors=chain(*objective), output_features=output_features, metric_fns=[]
    )


def chain(*objective: Callable) -> list[Callable]:
    """The preprocessors of such a task."""
    return [
        functools.partial(seqio.preprocessors.rekey, key_map={"inputs": None, "targets": "text"}),
        seqio.preprocessors.tokenize,
        seqio.CacheDatasetPlaceholder(),
        *objective,
    ]
