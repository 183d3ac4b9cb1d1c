"""Evaluation of parameters on seqio tasks: teacher-forced loss, and metrics of decoded text.

Nothing is packed here. Which examples count is fixed when the evaluation is opened, and they stay in memory.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

import gin
from t5x_lite import decoding, incremental, monitor
from t5x_lite.data import FallbackVocabulary
from t5x_lite.errors import UserError, did_you_mean, nearest
from t5x_lite.models import Model
from t5x_lite.partitioning import Partitioner, place
from t5x_lite.text_files import TextFiles
from t5x_lite.trainer import eval_step
from t5x_lite.vocabularies import Vocabulary


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What to evaluate on.

    Attributes:
      mixture_or_task_name: a mixture is evaluated task by task.
      feature_lengths: inputs and targets are cut to these.
      split, num_examples: the first `num_examples` of the split of each task; None for all.
      batch_size: examples at a time; rounded up to what the devices divide.
      decode: compute the tasks' own metrics from decoded text too, where a task has some.
      decoder: how to decode; `Decoder()` by default, with targets' length as the limit.
      task_modules, vocabulary, text_files, named_files: as in SeqioSource.
    """

    mixture_or_task_name: str | Mapping[str, float]
    feature_lengths: Mapping[str, int]
    split: str = "validation"
    num_examples: int | None = None
    batch_size: int = 32
    decode: bool = True
    decoder: decoding.Decoder | None = None
    task_modules: Sequence[str] = ("t5x_lite.tasks",)
    vocabulary: Vocabulary | None = None
    text_files: TextFiles | None = None
    named_files: Mapping[str, TextFiles] = dataclasses.field(default_factory=dict)

    def open(self, fallback_vocabulary: FallbackVocabulary = None) -> "Evaluator":
        """Reads and tokenizes the examples; imports TensorFlow.

        Args:
          fallback_vocabulary: called for the vocabulary of data that have none of their own.
        """
        return Evaluator(self, fallback_vocabulary)


@dataclasses.dataclass
class Results:
    """Of one evaluation: `eval/<task>/<metric>` -> value, and some decoded examples."""

    metrics: dict[str, float]
    samples: list[dict[str, str]]


class Evaluator:
    """Examples that have been read, and the compiled programs that evaluate a model on them, again and again."""

    def __init__(self, config: Evaluation, fallback_vocabulary: FallbackVocabulary = None):
        from t5x_lite import seqio_evaluation  # TensorFlow

        self.config = config
        decoder = config.decoder or decoding.Decoder(max_length=config.feature_lengths["targets"])
        self._decoder = dataclasses.replace(decoder, num_return_sequences=1)  # metrics are of one answer
        self._data = seqio_evaluation.EvaluationData(config, fallback_vocabulary)
        self._compiled: dict[Any, Any] = {}

    @property
    def vocabulary(self):
        """Of the targets; TensorFlow-free."""
        return self._data.vocabulary

    def check_name(self, name: str, binding: str) -> None:
        """Raises UserError for a metric that is known not to come: of another task, or of none that decodes.

        Args:
          binding: where it was given.
        """
        tasks = list(self._data.examples)
        sure = [f"eval/{task}/{metric}" for task in tasks for metric in ("loss", "token_accuracy")]
        task = name.removeprefix("eval/").rpartition("/")[0]
        if name in sure or (self.config.decode and name.startswith("eval/") and task in tasks):
            return
        more = (
            ", and the tasks' own, eval/<task>/<metric>" if self.config.decode else ", with Evaluation.decode = False"
        )
        raise UserError(
            f"{binding} = {name!r} will not be evaluated{did_you_mean(nearest(name, sure))}: there are "
            f"{', '.join(sure[:4])}{' …' if len(sure) > 4 else ''}{more}"
        )

    def describe(self) -> str:
        counts = ", ".join(
            f"{name} {len(rows['decoder_target_tokens']):,}" for name, rows in self._data.examples.items()
        )
        return f"evaluation on {self.config.split}: {counts} examples"

    def run(self, model: Model, params, partitioner: Partitioner, decode: bool | None = None) -> Results:
        """Metrics of parameters that lie on the partitioner's mesh.

        Args:
          params: a parameter tree, or several of one model, whose logits are averaged.
          decode: overrides `Evaluation.decode`.
        """
        decode = self.config.decode if decode is None else decode
        metrics, samples = {}, []
        with partitioner.activate():
            for task, rows in self._data.examples.items():
                scores = self._teacher_forced(model, params, partitioner, rows, task)
                metrics |= {f"eval/{task}/{k}": v for k, v in scores.items()}
            if decode:
                for task, (values, examples) in self._data.decoded_metrics(
                    lambda tokens: self._decode(model, params, partitioner, tokens)
                ).items():
                    metrics |= {f"eval/{task}/{name}": value for name, value in values.items()}
                    samples += examples
        return Results(metrics, samples)

    def _teacher_forced(self, model, params, partitioner, rows, task: str) -> dict[str, float]:
        step = self._compile(
            "score", model, partitioner, lambda params, batch: eval_step(incremental.of(model, params), params, batch)
        )
        totals: dict[str, float] = {}
        for batch in self._batches(rows, partitioner, f"evaluation: {task}, loss"):
            sums = jax.device_get(step(params, batch))
            totals = {k: totals.get(k, 0.0) + float(v) for k, v in sums.items()}
        if not totals.get("weights"):
            raise UserError(f"evaluation on {self.config.split} has no target tokens")
        # Apart from the tasks' own `accuracy`, which is of whole decoded answers, in percent.
        return {"loss": totals["loss"] / totals["weights"], "token_accuracy": totals["correct"] / totals["weights"]}

    def _decode(self, model, params, partitioner, tokens: np.ndarray) -> np.ndarray:
        """int32 [n, s] -> ids int32 [n, t], 0 after EOS."""
        step = self._compile(
            "decode", model, partitioner, lambda params, batch: self._decoder(model, params, batch["tokens"])[0]
        )
        out = [np.asarray(step(params, batch)) for batch in self._batches({"tokens": tokens}, partitioner, "decoding")]
        return np.concatenate(out)[: len(tokens)]

    def _batches(self, rows: Mapping[str, np.ndarray], partitioner: Partitioner, what: str):
        """Batches of one shape on the devices, the last one padded with empty rows; shows how far their user is."""
        shards = partitioner.batch_shards
        size = -(-self.config.batch_size // shards) * shards
        total = len(next(iter(rows.values())))
        with monitor.Progress(what, total, "examples") as progress:
            for start in range(0, total, size):
                part = {name: column[start : start + size] for name, column in rows.items()}
                real = len(next(iter(part.values())))
                part = {n: np.pad(c, ((0, size - real), *((0, 0),) * (c.ndim - 1))) for n, c in part.items()}
                # Every process has all examples.
                yield {n: place(c, partitioner.batch) for n, c in part.items()}
                progress.add(real)

    def _compile(self, name, model, partitioner, function):
        key = (name, model, id(partitioner))
        if key not in self._compiled:
            self._compiled[key] = jax.jit(function, out_shardings=partitioner.replicated)
        return self._compiled[key]
