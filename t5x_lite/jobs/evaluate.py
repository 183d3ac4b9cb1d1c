"""The job `eval`: metrics of one checkpoint, the latest, or all of a run."""

import functools
import json
from collections.abc import Sequence

from etils import epath

import gin
from t5x_lite import checkpoints, configuration, console, ensembles, monitor, run_folder, together
from t5x_lite.errors import UserError
from t5x_lite.evaluation import Evaluation
from t5x_lite.partitioning import MeshConfig


@gin.configurable(module="t5x_lite")
def evaluate(
    model_dir: str | Sequence[str] = gin.REQUIRED,
    evaluation: Evaluation = gin.REQUIRED,
    checkpoint: int | str = "latest",
    output_dir: str | None = None,
    mesh: MeshConfig | None = None,
    writers: Sequence[monitor.WandB | monitor.MLflow] = (),
    dry_run: bool = False,
) -> int:
    """Prints each checkpoint's metrics and adds them to MODEL_DIR/metrics.jsonl, under `eval/<task>/<metric>`, or
    under `<split>/<task>/<metric>` when the split is not validation.

    Args:
      model_dir: of a run of `train`; or several, as a list or with commas between, each a MODEL_DIR (its newest step)
        or one step's folder: they are evaluated as one model, by the means of their logits.
      checkpoint: "latest", "all", or a step; of one model_dir.
      output_dir: where metrics, samples and config.gin are written; needed for several model_dirs, by default the one.
      writers: as in `train`; a run that was trained with the same is gone on with.
      dry_run: print what would run, and stop.

    Raises:
      UserError: no such checkpoint, several that are not of one configuration or have no output_dir, or a vocabulary
        that does not fit the model.
    """
    partitioner = (mesh or MeshConfig()).build()
    folders = ensembles.paths(model_dir, "MODEL_DIR")
    if len(folders) > 1:
        if output_dir is None or checkpoint != "latest":
            raise UserError(
                "several MODEL_DIRs are evaluated as one: set evaluate.output_dir, and instead of "
                "evaluate.checkpoint name a step's folder, MODEL_DIR/checkpoints/<step>"
            )
        chosen = [folders]
    else:
        steps = checkpoints.steps(folders[0])
        newest = checkpoints.find_step(folders[0])
        if checkpoint not in ("latest", "all") and checkpoint not in steps:
            raise UserError(
                f"evaluate.checkpoint = {checkpoint!r}: use 'latest', 'all' or one of {', '.join(map(str, steps))}"
            )
        wanted = steps if checkpoint == "all" else [newest.name if checkpoint == "latest" else checkpoint]
        chosen = [[str(newest.parent / str(step))] for step in wanted]
    main = together.first()
    say = functools.partial(console.show, level=console.INFO)
    say(partitioner.describe())
    evaluator = evaluation.open(functools.partial(checkpoints.read_vocabulary, folders[0]))
    say(evaluator.describe())
    configuration.check_all_read()  # the tasks' preprocessors are configurables, too
    prefix = "eval" if evaluation.split == "validation" else evaluation.split
    folder = epath.Path(output_dir or folders[0])
    if main and output_dir and not dry_run:
        folder.mkdir(parents=True, exist_ok=True)
        run_folder.write_whole(folder / "config.gin", configuration.operative_config("eval"))
    writes = main and not dry_run
    others = monitor.beside(writers, folder, configuration.operative_values(), console.say) if writes else ()
    with monitor.MetricsWriter(str(folder), enabled=writes, others=others) as writer:
        for paths in chosen:
            model, params, metas = ensembles.load(paths, partitioner)
            step = metas[0]["step"]
            if evaluator.vocabulary.vocab_size > model.config.vocab_size:
                raise UserError(
                    f"the tasks' vocabulary has {evaluator.vocabulary.vocab_size} ids, but the model of "
                    f"{paths[0]} only {model.config.vocab_size}; use the vocabulary it was trained with"
                )
            if dry_run:
                console.show(f"would evaluate {' and '.join(paths)}")
                continue
            together.doing(f"the evaluation of step {step}")
            results = evaluator.run(model, params, partitioner)
            metrics = {prefix + name.removeprefix("eval"): value for name, value in results.metrics.items()}
            writer.write(step, metrics)
            several = f", {len(paths)} models" if len(paths) > 1 else ""
            table = monitor.Table(["metric", "value"], title=f"step {step}{several}")
            for name, value in metrics.items():
                table.add(name, value)
            console.show(str(table), step=step)
            if main:
                file = folder / f"samples-{prefix}-{step}.jsonl"
                file.write_text("".join(json.dumps(s, ensure_ascii=False) + "\n" for s in results.samples))
    return 0
