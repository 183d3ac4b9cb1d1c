"""What T5's supervised tasks share: source, tokenization, EOS and vocabulary."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import seqio

from t5x_lite.tasks import c4
from t5x_lite.tasks.tfds_source import TfdsSource

FEATURES = c4.features()


def add_task(
    name: str,
    tfds_name: str,
    splits: Iterable[str] | Mapping[str, str],
    preprocessors: Sequence[Callable],
    metric_fns: Sequence[Callable] = (),
    postprocess_fn: Callable | None = None,
    token_preprocessors: Sequence[Callable] = (),
) -> None:
    """Registers a task on a data set of tensorflow-datasets; nothing is looked up before the task is used.

    Args:
      tfds_name: with its version.
      splits: named here, so that they are known before the data set is there; or task split -> part of the data set.
      preprocessors: from raw examples to `inputs` and `targets` as text.
      token_preprocessors: after tokenization (and a cache), before EOS.
    """
    seqio.TaskRegistry.add(
        name,
        source=TfdsSource(tfds_name=tfds_name, splits=splits),
        preprocessors=[
            *preprocessors,
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            *token_preprocessors,
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features=FEATURES,
        postprocess_fn=postprocess_fn,
        metric_fns=list(metric_fns),
    )


_SENTINEL = "<extra_id_0>"


def add_sentinel_form(name: str) -> None:
    """Registers `name` once more, with inputs that end and targets that begin with `<extra_id_0>`, as in pretraining.

    `_1_sentinel` is put at the end of the name, or before `_train` or `_eval`.
    """
    seqio.experimental.add_task_with_sentinels(name, num_sentinels=1)
    task = seqio.TaskRegistry.get(sentinel_form(name))
    # seqio would ask the vocabulary that the task was registered with for the sentinel's text, and open its file, even
    # where the run has another.
    seqio.TaskRegistry.remove(task.name)
    seqio.TaskRegistry.add_provider(
        task.name,
        task.replace(postprocess_fn=functools.partial(_without_sentinel, seqio.TaskRegistry.get(name).postprocessor)),
    )


def sentinel_form(name: str) -> str:
    """What `add_sentinel_form` calls it."""
    for suffix in ("_train", "_eval"):
        if name.endswith(suffix):
            return f"{name.removesuffix(suffix)}_1_sentinel{suffix}"
    return f"{name}_1_sentinel"


def _without_sentinel(postprocess: Callable | None, text: str, **kwargs):
    if text.startswith(_SENTINEL):
        text = text.removeprefix(_SENTINEL).strip()
    return postprocess(text, **kwargs) if postprocess else text
