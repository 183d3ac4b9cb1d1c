"""The examples and metrics of seqio tasks for `evaluation.py`; metrics are computed by seqio's own Evaluator."""

from collections.abc import Callable

import numpy as np
import seqio

from t5x_lite import seqio_blocks, seqio_names, seqio_sources, together
from t5x_lite.errors import UserError

# Random preprocessing (span corruption) of evaluation examples: the same in every evaluation of every run.
SEED = 42
SAMPLES = 3


class EvaluationData:
    """Tokenized examples of each task, and the metrics of decoded ones.

    Attributes:
      examples: task name -> {feature name: int32 [n, length]}, unpacked.
      vocabulary: the targets', TensorFlow-free.
    """

    def __init__(self, config, fallback_vocabulary=None):
        provider = seqio_names.find(config, fallback_vocabulary)
        seqio_names.check_lengths(provider, config.feature_lengths)
        self._config, self._provider = config, provider
        self.vocabulary = seqio_names.vocabulary_of(provider)
        self.examples: dict[str, dict[str, np.ndarray]] = {}
        for task in seqio_sources.tasks_with_split(provider, config.split):
            self.examples[seqio_sources.plain_name(task.name)] = self._read(task)
        self._evaluator: seqio.Evaluator | None = None

    def _read(self, task: seqio.Task) -> dict[str, np.ndarray]:
        dataset = task.get_dataset(
            sequence_length=dict(self._config.feature_lengths),
            split=self._config.split,
            shuffle=False,
            seed=SEED,
            try_in_mem_cache=False,
        )
        dataset = dataset.map(lambda example: {key: example[key] for key in task.output_features if key in example})
        lengths, inputs = self._config.feature_lengths, "inputs" in dataset.element_spec
        dataset = seqio_blocks.convert(dataset, lengths, packing=False, architecture=_architecture(inputs))
        if self._config.num_examples is not None:
            dataset = dataset.take(self._config.num_examples)
        rows = list(seqio_blocks.steady(dataset).as_numpy_iterator())
        if not rows:
            raise UserError(f"{seqio_sources.plain_name(task.name)} has no examples in split {self._config.split!r}")
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def decoded_metrics(self, decode: Callable[[np.ndarray], np.ndarray]):
        """{task: ({metric: value}, samples)} of the tasks that have metrics; process 0 computes them for all.

        Args:
          decode: encoder tokens int32 [n, s] -> ids int32 [n, t].
        """
        if self._evaluator is None:
            with seqio_blocks.BUILDING:
                self._evaluator = seqio.Evaluator(
                    self._provider.name,
                    feature_converter=_converter(self._provider),
                    eval_split=self._config.split,
                    sequence_length=dict(self._config.feature_lengths),
                    num_examples=self._config.num_examples,
                    seed=SEED,
                    async_compute_metrics=False,
                )
        if not self._evaluator.eval_tasks:
            return {}

        def predict(dataset, model_feature_shapes=None):
            del model_feature_shapes
            rows = seqio_blocks.steady(dataset).as_numpy_iterator()
            indexed = [(int(i), row["encoder_input_tokens"]) for i, row in rows]
            ids = decode(np.stack([tokens for _, tokens in indexed]))
            return [(i, row.tolist()) for (i, _), row in zip(indexed, ids, strict=True)]

        metrics, outputs = self._evaluator.evaluate(
            compute_metrics=together.first(), predict_fn=predict, score_fn=_no_scores
        )
        return together.from_first("metrics", lambda: self._results(metrics.result(), outputs))

    def _results(self, metrics, outputs) -> dict[str, tuple[dict[str, float], list[dict[str, str]]]]:
        result = {}
        for task in self._evaluator.eval_tasks:
            # A metric is a number, seqio's Scalar around one, or something to look at (a histogram, text), left out.
            named = {name: getattr(value, "value", value) for name, value in metrics[task.name].items()}
            values = {name: float(value) for name, value in named.items() if np.isscalar(value) or np.ndim(value) == 0}
            predictions = next(iter(outputs[task.name].values()), [])
            result[seqio_sources.plain_name(task.name)] = values, self._samples(task, predictions)
        return result

    def _samples(self, task: seqio.Task, predictions) -> list[dict[str, str]]:
        samples = []
        examples = self._evaluator.cached_task_datasets[task.name].take(SAMPLES).as_numpy_iterator()
        for example, ids in zip(examples, predictions):
            texts = {
                key: example[f"{key}_pretokenized"].decode("utf-8", "replace")
                for key in ("inputs", "targets")
                if f"{key}_pretokenized" in example
            }
            prediction = self.vocabulary.decode([int(i) for i in ids])
            samples.append({"task": seqio_sources.plain_name(task.name), **texts, "prediction": prediction})
        return samples


def _converter(provider) -> seqio.FeatureConverter:
    inputs = "inputs" in provider.output_features
    return seqio_blocks.converter_class(inputs, _architecture(inputs))(pack=False)


def _architecture(inputs: bool) -> str:
    """Inputs and targets apart, whatever the model (it joins them itself if need be); targets alone if that is all."""
    return "encoder_decoder" if inputs else "causal_lm"


def _no_scores(dataset, model_feature_shapes=None):
    raise UserError("a task's metric asks for scores of targets, which evaluation does not compute yet")
