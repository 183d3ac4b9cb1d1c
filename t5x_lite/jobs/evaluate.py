"""The job `eval`: metrics of one checkpoint, the latest, or all of a run."""

import functools
import json

import gin
import jax
from etils import epath

from t5x_lite import checkpoints, configuration, monitor
from t5x_lite.errors import UserError
from t5x_lite.evaluation import Evaluation
from t5x_lite.partitioning import MeshConfig


@gin.configurable(module="t5x_lite")
def evaluate(
    model_dir: str = gin.REQUIRED,
    evaluation: Evaluation = gin.REQUIRED,
    checkpoint: int | str = "latest",
    mesh: MeshConfig | None = None,
    dry_run: bool = False,
) -> int:
    """Prints each checkpoint's metrics and adds them to MODEL_DIR/metrics.jsonl, under `eval/<task>/<metric>`, or
    under `<split>/<task>/<metric>` when the split is not validation.

    Args:
      model_dir: of a run of `train`.
      checkpoint: "latest", "all", or a step.
      dry_run: print what would run, and stop.

    Raises:
      UserError: no such checkpoint, or a vocabulary that does not fit its model.
    """
    partitioner = (mesh or MeshConfig()).build()
    steps = checkpoints.steps(model_dir)
    newest = int(checkpoints.find_step(model_dir).name)
    if checkpoint not in ("latest", "all") and checkpoint not in steps:
        raise UserError(f"evaluate.checkpoint = {checkpoint!r}: use 'latest', 'all' or one of {', '.join(map(str, steps))}")
    chosen = steps if checkpoint == "all" else [newest if checkpoint == "latest" else checkpoint]
    main = jax.process_index() == 0
    say = print if main else (lambda *_: None)
    say(partitioner.describe())
    evaluator = evaluation.open(functools.partial(checkpoints.read_vocabulary, model_dir))
    say(evaluator.describe())
    configuration.check_all_read()  # the tasks' preprocessors are configurables, too
    prefix = "eval" if evaluation.split == "validation" else evaluation.split
    with monitor.MetricsWriter(model_dir, enabled=main) as writer:
        for step in chosen:
            model, params, meta = checkpoints.load_for_inference(model_dir, step)
            if evaluator.vocabulary.vocab_size > model.config.vocab_size:
                raise UserError(f"the tasks' vocabulary has {evaluator.vocabulary.vocab_size} ids, but the model of "
                                f"{model_dir} only {model.config.vocab_size}; use the vocabulary it was trained with")
            if dry_run:
                say(f"would evaluate step {step} of {model_dir}")
                continue
            shardings = partitioner.tree(model.abstract_params(), model.logical_axes())
            results = evaluator.run(model, jax.device_put(params, shardings), partitioner)
            metrics = {prefix + name.removeprefix("eval"): value for name, value in results.metrics.items()}
            writer.write(step, metrics)
            table = monitor.Table(["metric", "value"], title=f"step {step}")
            for name, value in metrics.items():
                table.add(name, value)
            say(str(table))
            if main:
                file = epath.Path(model_dir) / f"samples-{prefix}-{step}.jsonl"
                file.write_text("".join(json.dumps(s, ensure_ascii=False) + "\n" for s in results.samples))
    return 0
