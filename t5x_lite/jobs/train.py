"""The job `train`: pretraining and finetuning are the same, from different parameters on different data."""

import json
import math
import time

import gin
import jax
import numpy as np
from etils import epath

from t5x_lite import checkpoints, configuration, flops, monitor
from t5x_lite.data import Batches, NpzSource, SeqioSource, gather_positions
from t5x_lite.errors import UserError
from t5x_lite.evaluation import Evaluation
from t5x_lite.finetuning import Trainable
from t5x_lite.losses import Loss
from t5x_lite.models import Model, T5Config
from t5x_lite.optimizers import Optimizer, set_counts
from t5x_lite.partitioning import MeshConfig, path_name
from t5x_lite.trainer import Trainer, TrainState


@gin.configurable(module="t5x_lite")
def train(
    model_dir: str = gin.REQUIRED,
    model: T5Config = gin.REQUIRED,
    optimizer: Optimizer = gin.REQUIRED,
    data: SeqioSource | NpzSource = gin.REQUIRED,
    train_steps: int = gin.REQUIRED,
    batch_size: int = gin.REQUIRED,
    loss: Loss | None = None,
    mesh: MeshConfig | None = None,
    evaluation: Evaluation | None = None,
    trainable: Trainable | None = None,
    num_microbatches: int = 1,
    seed: int = 0,
    initial_checkpoint_path: str | None = None,
    restore_optimizer_state: bool = False,
    absolute_steps: bool = False,
    log_every: int = 20,
    evaluate_every: int | None = None,
    save_every: int = 1000,
    keep_checkpoints: int | None = 3,
    save_only_trained: bool | None = None,
    early_stopping_metric: str | None = None,
    early_stopping_patience: int = 3,
    dry_run: bool = False,
) -> int:
    """Trains until `train_steps`; started again on the same model_dir, goes on from its newest checkpoint.

    Args:
      train_steps: the step to stop at. Steps count from 0, also when finetuning; the schedule's and the optimizer's
        offsets are their own bindings. `absolute_steps` counts on from the initial checkpoint instead, as T5X does.
      trainable: the parameters to train; by default all.
      num_microbatches: the batch is run in so many parts whose gradients add up; same result, less memory.
      seed: of initial parameters and dropout; the data's is the source's own.
      initial_checkpoint_path: parameters to start from when model_dir has no checkpoint yet; other systems'
        checkpoints are read as they are. It need not have those that the model's finetuning methods add.
      restore_optimizer_state: take the optimizer's state from there too.
      evaluate_every, save_every, log_every: in steps. The last step is always evaluated and saved.
      save_only_trained: checkpoints hold the trained parameters alone, and name the initial checkpoint that has the
        others. By default so where something is frozen and there is an initial checkpoint of this project.
      early_stopping_metric: for example `eval/pydocs_library/accuracy`; training ends after
        `early_stopping_patience` evaluations without a new best. A name that ends in `loss` is minimised.
      dry_run: print what would run, and stop.

    Returns:
      0.

    Raises:
      UserError: anything wrong in the configuration, before the first step.
    """
    # 1. Everything that gin binds is constructed by now, except what is optional.
    started = time.monotonic()
    partitioner = (mesh or MeshConfig()).build()
    trainable = trainable or Trainable()
    trainer = Trainer(Model(model), optimizer, loss or Loss(), partitioner, seed, num_microbatches, trainable)
    for name, value in (("train_steps", train_steps), ("log_every", log_every), ("save_every", save_every)):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"train.{name} must be a whole number of at least 1, not {value!r}")
    if not isinstance(batch_size, int):
        raise UserError(f"BATCH_SIZE must be a whole number, not {batch_size!r}")
    trainer.check_batch_size(batch_size)
    if early_stopping_metric and evaluation is None:
        raise UserError("train.early_stopping_metric needs train.evaluation")
    if model.prompt is not None and getattr(data, "packing", False):
        raise UserError("T5Config.prompt does not go with packed rows; set SeqioSource.packing = False")
    if save_only_trained and not initial_checkpoint_path:
        raise UserError("train.save_only_trained needs INITIAL_CHECKPOINT_PATH, where the other parameters are")
    configuration.check_all_read()
    # Refused now where there is none, not after the data was opened.
    foreign = bool(initial_checkpoint_path) and checkpoints.is_foreign(initial_checkpoint_path)
    if foreign and save_only_trained:
        raise UserError(f"train.save_only_trained: {initial_checkpoint_path} is another system's checkpoint, which this "
                        "run's cannot stand on; bring it in with t5x-lite convert first")

    # 2. Devices and parameters, as shapes; then the data, whose first batch shows its own.
    main = jax.process_index() == 0
    say = print if main else (lambda *_: None)
    say(partitioner.describe())
    shardings = trainer.shardings
    parameters, trained = map(_count, (trainer.abstract_state.params, trainable.split(trainer.abstract_state.params)[0]))
    some = "" if trained == parameters else f", {trained:,} of them trained"
    say(f"{parameters:,} parameters{some}, {model.param_dtype}; computing in {model.dtype}")
    blocks = data.open(model.architecture)
    _check_vocabulary(blocks.vocabulary, model)
    evaluator = evaluation.open() if evaluation and not dry_run else None
    if evaluator:
        say(evaluator.describe())
    if dry_run:
        with Batches(blocks, data.num_streams, batch_size, partitioner.batch) as batches:
            _print_dry_run(trainer, next(batches)[0], say)
        return 0

    # 3. State. The order matters: 1. this run's own checkpoint, 2. another run's parameters, 3. from scratch.
    folder = epath.Path(model_dir)
    if main:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.gin").write_text(configuration.operative_config("train"))
    checkpointer = checkpoints.Checkpointer(model_dir, keep_checkpoints)
    positions, best = np.zeros((data.num_streams, 2), np.int64), {"value": None, "bad": 0}
    # What a checkpoint must hold itself where its base has the rest.
    own = trainer.trained_paths | trainer.model.added_paths
    base = None
    restored = checkpointer.restore(trainer.abstract_state, shardings, {"positions": positions})
    if restored:
        state, positions = restored.state, restored.data["positions"]
        best = restored.meta.get("early_stopping", best)
        # A run that saved everything so far goes on so: its initial checkpoint may have changed since.
        base = None if save_only_trained is False else restored.meta.get("base")
        say(f"going on from step {int(state.step)} of {checkpointer.folder}")
    else:
        state = trainer.init()
        if initial_checkpoint_path:
            state, first = checkpoints.initialise(
                initial_checkpoint_path, state, shardings, restore_optimizer_state=restore_optimizer_state,
                may_lack=trainer.model.added_paths,
            )
            source = None if foreign else checkpoints.find_step(initial_checkpoint_path, first)
            if model.prompt and (foreign or not checkpoints.read_meta(source)["model"].get("prompt")):
                state = state._replace(params=_fresh_prompt(trainer, state.params))
            if not foreign and save_only_trained is not False and trained < parameters:
                base = checkpoints.base_of(source, state.params, own)
            say(f"parameters from step {first} of {initial_checkpoint_path}")
            if absolute_steps:
                state = _at_step(state, first, shardings)
    start = int(state.step)
    meta = {
        "model": model.to_dict(),
        "vocabulary": blocks.vocabulary.to_dict() if blocks.vocabulary is not None else None,
        "feature_lengths": dict(getattr(data, "feature_lengths", {})),
        **({"base": base} if base else {}),
    }
    if base:
        say(f"checkpoints hold the trained parameters; the others stay in {base['path']}")

    # 4. The loop. Metrics are read one step late, so that the devices never wait for the host.
    peak, _ = flops.peak(jax.devices()[0], dtype=model.dtype)
    say(flops.describe_peak(jax.devices()[0], dtype=model.dtype))
    stop = False
    with (
        monitor.MetricsWriter(model_dir, resume_step=start, enabled=main) as writer,
        monitor.Progress(train_steps, start, enabled=main, started=started) as progress,
        Batches(blocks, data.num_streams, batch_size, partitioner.batch, positions) as batches,
    ):
        meter, lagged = None, monitor.Lagged()

        def report(done):
            for step, host in done:
                meter.step(tokens=host.pop("tokens"))
                if not math.isfinite(host["loss"]):
                    raise UserError(f"the loss of step {step} is {host['loss']}; lower the learning rate, or set "
                                    "adafactor.max_grad_norm; the newest checkpoint is as it was")
                if step % log_every == 0 or step == start + 1:
                    host |= meter.window()
                    writer.write(step, {f"train/{k}": v for k, v in host.items()})
                progress.update(step, host)

        def save(step):
            # Waits for the steps that led here: an array is copied when it exists.
            if checkpointer.save(state, {"positions": gather_positions(positions)}, {**meta, "early_stopping": best},
                                 only=own if base else None):
                writer.flush()
                progress.note(f"saving step {step}")

        for step in range(start + 1, train_steps + 1):
            if meter is None:
                batch, positions = next(batches)
                meter = _meter(model, batch, peak * jax.device_count())
            else:
                with meter.waiting(in_flight=lagged.newest):
                    batch, positions = next(batches)
            state, metrics = trainer.step(state, batch)
            report(lagged.push(step, metrics))
            last = step == train_steps
            if evaluator and (last or (evaluate_every and step % evaluate_every == 0)):
                report(lagged.drain())
                with meter.paused():
                    results = evaluator.run(trainer.model, state.params, partitioner)
                    writer.write(step, results.metrics)
                    progress.note(f"step {step}: " + _short(results.metrics))
                    if main and results.samples:
                        _write_samples(folder, step, results.samples)
                    stop = _early_stop(best, results.metrics, early_stopping_metric, early_stopping_patience)
            if last or stop or step % save_every == 0:
                report(lagged.drain())
                with meter.paused():
                    save(step)
            if stop:
                progress.note(f"stopping at step {step}: no better {early_stopping_metric} than {best['value']:.4g}")
                break
        checkpointer.close()
    if meter is None:
        say(f"nothing to do: {model_dir} is at step {start}, TRAIN_STEPS = {train_steps}")
    else:
        totals = ", ".join(f"{name} {value:,.4g}" for name, value in meter.total().items())
        say(f"done: step {int(state.step)}, {totals}")
    return 0


def _meter(model: T5Config, batch, peak: float) -> monitor.Meter:
    rows, t = batch["decoder_target_tokens"].shape
    s = batch["encoder_input_tokens"].shape[1] if "encoder_input_tokens" in batch else 0
    s += model.prompt.length if model.prompt else 0
    return monitor.Meter(rows * flops.train_flops_per_example(model, s, t), peak)


def _fresh_prompt(trainer: Trainer, params):
    """A prompt that starts from the vocabulary was sampled from the initial embedding, which is no longer there."""
    key = jax.random.fold_in(jax.random.key(trainer.seed), 2)
    fresh = jax.jit(trainer.model.with_fresh_prompt, out_shardings=trainer.shardings.params, donate_argnums=0)
    return fresh(params, key)


def _count(params) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


def _check_vocabulary(vocabulary, model: T5Config) -> None:
    if vocabulary is not None and vocabulary.vocab_size > model.vocab_size:
        raise UserError(f"the vocabulary has {vocabulary.vocab_size} ids, but T5Config.vocab_size = {model.vocab_size}; "
                        f"set T5Config.vocab_size to {-(-vocabulary.vocab_size // 128) * 128}")


def _at_step(state: TrainState, step: int, shardings: TrainState) -> TrainState:
    """Steps and the optimizer's counters go on from `step`."""
    opt_state = jax.device_put(set_counts(state.opt_state, step), shardings.opt_state)
    return TrainState(jax.device_put(np.int32(step), shardings.step), state.params, opt_state)


def _early_stop(best: dict, metrics: dict[str, float], name: str | None, patience: int) -> bool:
    """Updates `best`; True when the metric has not improved for `patience` evaluations."""
    if name is None:
        return False
    if name not in metrics:
        raise UserError(f"train.early_stopping_metric = {name!r} is not evaluated; there are {', '.join(sorted(metrics))}")
    sign = -1 if name.endswith("loss") else 1
    if best["value"] is None or sign * metrics[name] > sign * best["value"]:
        best.update(value=metrics[name], bad=0)
    else:
        best["bad"] += 1
    return best["bad"] >= patience


def _write_samples(folder: epath.Path, step: int, samples: list[dict[str, str]]) -> None:
    lines = [json.dumps({"step": step, **sample}, ensure_ascii=False) for sample in samples]
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")


def _short(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name.removeprefix('eval/')} {value:.4g}" for name, value in metrics.items())


def _print_dry_run(trainer: Trainer, batch, say) -> None:
    axes = trainer.model.logical_axes()
    table = monitor.Table(["parameter", "shape", "logical axes", "sharding", "bytes", "trained"], title="parameters")
    total = 0
    flat = jax.tree_util.tree_flatten_with_path(trainer.abstract_state.params)[0]
    shardings = jax.tree.leaves(trainer.shardings.params)
    for (path, leaf), sharding in zip(flat, shardings, strict=True):
        names = axes
        for key in path:
            names = names[key.key]
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        total += size
        spec = ", ".join("·" if s is None else str(s) for s in sharding.spec)
        name = path_name(path)
        trained = "yes" if name in trainer.trained_paths else "no"
        table.add(name, "×".join(map(str, leaf.shape)), ", ".join(names), spec, f"{size:,}", trained)
    say(str(table))
    state_bytes = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(trainer.abstract_state.opt_state))
    say(f"parameters {total:,} bytes, optimizer state {state_bytes:,} bytes")
    for name, array in batch.items():
        say(f"first batch: {name} {'×'.join(map(str, array.shape))} {array.dtype}, {array.sharding.spec}")
