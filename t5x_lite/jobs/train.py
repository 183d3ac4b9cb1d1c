"""The job `train`: pretraining and finetuning are the same, from different parameters on different data."""

import contextlib
import functools
import math
import time
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath

import gin
from t5x_lite import batch_texts, checkpoints, configuration, console, flops, monitor, preemption, run_folder, together
from t5x_lite.data import Batches, Blocks, NpzSource, SeqioSource
from t5x_lite.errors import UserError
from t5x_lite.evaluation import Evaluation
from t5x_lite.finetuning import Trainable
from t5x_lite.health import Health, Watch
from t5x_lite.loop import Calendar, Loop, Standing
from t5x_lite.losses import Loss
from t5x_lite.models import Model, T5Config
from t5x_lite.optimizers import Optimizer, set_counts
from t5x_lite.partitioning import MeshConfig, leaves_by_path, place
from t5x_lite.saving import Keep, Retry, Saver
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
    keep: Keep | None = None,
    retry: Retry | None = None,
    health: Health | None = None,
    profile: monitor.Profile | None = None,
    num_microbatches: int = 1,
    seed: int = 0,
    initial_checkpoint_path: str | None = None,
    restore_optimizer_state: bool = False,
    absolute_steps: bool = False,
    log_every: int = 20,
    evaluate_every: int | None = None,
    save_every: int = 1000,
    save_only_trained: bool | None = None,
    early_stopping_metric: str | None = None,
    early_stopping_patience: int = 3,
    watchdog_seconds: float | None = 1800.0,
    writers: Sequence[monitor.WandB | monitor.MLflow] = (),
    allow_config_change: bool = False,
    dry_run: bool = False,
    show_batches: int = 0,
    at_step: int | None = None,
) -> int:
    """Trains until `train_steps`; started again on the same model_dir, goes on from its newest checkpoint.

    However it ended (killed, told to stop, out of disk), what it then does is what the run would have done: the same
    batches, losses and decisions, bit by bit on the same mesh. What metrics.jsonl says of steps after that checkpoint
    is dropped and written anew. SIGTERM has it save and end with exit code 75.

    Args:
      train_steps: the step to stop at. Steps count from 0, also when finetuning; the schedule's and the optimizer's
        offsets are their own bindings. `absolute_steps` counts on from the initial checkpoint instead, as T5X does.
      trainable: the parameters to train; by default all.
      keep: which checkpoints stay; by default the last three.
      retry: what to do when one cannot be saved.
      health: what to do about losses and gradients that are not finite, and about spikes.
      profile: which steps to trace.
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
      watchdog_seconds: the stacks of all threads are printed when no step ends for so long (nor an evaluation, nor what
        comes before the first step); None for never.
      writers: where metrics go besides metrics.jsonl and TensorBoard: `[@WandB()]`, `[@MLflow()]`, or both.
      allow_config_change: go on in model_dir although what the run means has changed: the model's shape, the data or a
        seed. Other changes are only printed.
      dry_run: print what would run, and stop.
      show_batches: print the texts of so many batches in a dry run, with their weights and where they come from.
      at_step: of the first batch to print; by default that of the next step.

    Returns:
      0.

    Raises:
      UserError: anything wrong in the configuration, before the first step; model_dir in use by another run; later too
        many steps in a row without a finite loss, or checkpoints that could not be saved.
      Preempted: told to stop by SIGTERM.
    """
    with contextlib.ExitStack() as until_the_end:
        notice = until_the_end.enter_context(preemption.listening())
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
        if at_step and not show_batches:
            raise UserError("--at_step needs --show_batches=N, the number of batches to show")
        if early_stopping_metric and evaluation is None:
            raise UserError("train.early_stopping_metric needs train.evaluation")
        if model.prompt is not None and getattr(data, "packing", False):
            raise UserError("T5Config.prompt does not go with packed rows; set SeqioSource.packing = False")
        if save_only_trained and not initial_checkpoint_path:
            raise UserError("train.save_only_trained needs INITIAL_CHECKPOINT_PATH, where the other parameters are")
        # Refused now where there is none, not after the data was opened.
        foreign = bool(initial_checkpoint_path) and checkpoints.is_foreign(initial_checkpoint_path)
        if foreign and save_only_trained:
            raise UserError(
                f"train.save_only_trained: {initial_checkpoint_path} is another system's checkpoint, which "
                "this run's cannot stand on; bring it in with t5x-lite convert first"
            )

        # 2. Devices and parameters, as shapes; then the data, whose first batch shows its own.
        main = together.first()
        say = functools.partial(console.show, level=None)
        say(partitioner.describe())
        shardings = trainer.shardings
        shapes = trainer.abstract_state.params
        parameters, trained = _count(shapes), _count(trainable.split(shapes)[0])
        some = "" if trained == parameters else f", {trained:,} of them trained"
        say(f"{parameters:,} parameters{some}, {model.param_dtype}; computing in {model.dtype}")
        if initial_checkpoint_path and not foreign and not checkpoints.steps(model_dir):
            checkpoints.check(initial_checkpoint_path, shapes, trainer.model.added_paths)
        started_from = model_dir if checkpoints.steps(model_dir) else initial_checkpoint_path
        fallback_vocabulary = functools.partial(checkpoints.read_vocabulary, started_from) if started_from else None
        blocks = data.open(model.architecture, fallback_vocabulary)
        _check_vocabulary(blocks, model)
        evaluator = evaluation.open(fallback_vocabulary) if evaluation and not dry_run else None
        if evaluator:
            say(evaluator.describe())
            if early_stopping_metric:
                evaluator.check_name(early_stopping_metric, "train.early_stopping_metric")
        configuration.check_all_read()  # the tasks' preprocessors are configurables, too
        if dry_run:
            with Batches(blocks, data.num_streams, batch_size, partitioner.batch) as batches:
                _print_dry_run(trainer, next(batches)[0])
            if show_batches:
                for text in batch_texts.show(blocks, data.num_streams, batch_size, model_dir, show_batches, at_step):
                    console.show(text)
            return 0

        # 3. State. The order matters: 1. this run's own checkpoint, 2. another run's parameters, 3. from scratch.
        folder = epath.Path(model_dir)
        meaning = run_folder.meaning(model, data, BATCH_SIZE=batch_size, RANDOM_SEED=seed)
        bindings = configuration.operative_values()
        if main:
            until_the_end.enter_context(run_folder.lock(folder))
        watchdog = until_the_end.enter_context(monitor.Watchdog(watchdog_seconds))
        checkpointer = until_the_end.enter_context(checkpoints.Checkpointer(model_dir, keep or Keep()))
        # What a checkpoint must hold itself where its base has the rest.
        own = trainer.trained_paths | trainer.model.added_paths
        base = None
        standing = Standing(None, np.zeros((data.num_streams, 2), np.int64), Watch(health or Health()))
        restored = checkpointer.restore(
            trainer.abstract_state,
            shardings,
            {"positions": standing.positions},
            warn=say,
            check=lambda meta: run_folder.check_unchanged(meta, meaning, bindings, allow_config_change, say),
        )
        if restored:
            standing.positions = restored.data["positions"]
            standing.watch = Watch(health or Health(), restored.meta.get("health"))
            standing.take(restored)
            # A run that saved everything so far goes on so: its initial checkpoint may have changed since.
            base = None if save_only_trained is False else restored.meta.get("base")
            say(f"going on from step {int(standing.state.step)} of {checkpointer.folder}")
        else:
            state = trainer.init()
            if initial_checkpoint_path:
                state, first = checkpoints.initialise(
                    initial_checkpoint_path,
                    state,
                    shardings,
                    restore_optimizer_state=restore_optimizer_state,
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
            standing.state = state
        if main:
            run_folder.write_whole(folder / "config.gin", configuration.operative_config("train"))
        start = int(standing.state.step)
        meta = {
            "model": model.to_dict(),
            "vocabulary": blocks.vocabulary.to_dict() if blocks.vocabulary is not None else None,
            "feature_lengths": dict(getattr(data, "feature_lengths", {})),
            "meaning": meaning,
            "bindings": bindings,
            **({"base": base} if base else {}),
        }
        if base:
            say(f"checkpoints hold the trained parameters; the others stay in {base['path']}")

        # 4. The loop.
        peak, _ = flops.peak(jax.devices()[0], dtype=model.dtype)
        say(flops.describe_peak(jax.devices()[0], dtype=model.dtype))
        if watchdog_seconds is not None:
            say(f"after {watchdog_seconds:,.0f} s without a step all stacks are printed (train.watchdog_seconds)")
        journal = monitor.Journal(model_dir, enabled=main)
        journal.add(f"started: step {start} of {train_steps}, {partitioner.describe()}")
        progress = until_the_end.enter_context(
            monitor.TrainingProgress(train_steps, start, enabled=main, started=started, keep=journal.add)
        )
        writer = until_the_end.enter_context(
            monitor.MetricsWriter(
                model_dir,
                resume_step=start,
                enabled=main,
                say=progress.note,
                others=monitor.beside(writers, model_dir, bindings, progress.note) if main else (),
            )
        )
        profiler = until_the_end.enter_context(
            monitor.Profiler(profile, folder / "profile", progress.note, enabled=main)
        )
        batches = until_the_end.enter_context(
            Batches(blocks, data.num_streams, batch_size, partitioner.batch, standing.positions)
        )

        def sleep(seconds: float) -> None:
            with notice.interruptible():
                time.sleep(seconds)

        loop = Loop(
            trainer=trainer,
            calendar=Calendar(
                train_steps, log_every, save_every, evaluate_every, early_stopping_metric, early_stopping_patience
            ),
            standing=standing,
            folder=folder,
            meta=meta,
            only=own if base else None,
            batches=batches,
            evaluator=evaluator,
            checkpointer=checkpointer,
            saver=Saver(checkpointer, retry or Retry(), progress.note, sleep=sleep),
            writer=writer,
            progress=progress,
            watchdog=watchdog,
            profiler=profiler,
            notice=notice,
            peak=peak * jax.device_count(),
        )
        loop.run()
        progress.close()
        if loop.meter is None:
            console.show(f"nothing to do: {model_dir} is at step {start}, TRAIN_STEPS = {train_steps}")
        else:
            totals = ", ".join(f"{name} {value:,.4g}" for name, value in loop.meter.total().items())
            console.show(f"done: step {loop.step}, {totals}", step=loop.step)
            journal.add(f"done: step {loop.step}, {totals}")
    return 0


def _fresh_prompt(trainer: Trainer, params):
    """A prompt that starts from the vocabulary was sampled from the initial embedding, which is no longer there."""
    key = jax.random.fold_in(jax.random.key(trainer.seed), 2)
    fresh = jax.jit(trainer.model.with_fresh_prompt, out_shardings=trainer.shardings.params, donate_argnums=0)
    return fresh(params, key)


def _count(params) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


def _check_vocabulary(blocks: Blocks, model: T5Config) -> None:
    """Of text, the vocabulary's ids, and of rows without one, those that stand in them."""
    has, ids = "the vocabulary has", blocks.vocabulary.vocab_size if blocks.vocabulary is not None else 0
    if (largest := getattr(blocks, "largest_id", 0)) >= max(ids, model.vocab_size):
        has, ids = f"the data have the token {largest}, which takes", largest + 1
    if ids > model.vocab_size:
        raise UserError(
            f"{has} {ids} ids, but T5Config.vocab_size = {model.vocab_size}; "
            f"set T5Config.vocab_size to {-(-ids // 128) * 128}"
        )


def _at_step(state: TrainState, step: int, shardings: TrainState) -> TrainState:
    """Steps and the optimizer's counters go on from `step`."""
    count_on = jax.jit(functools.partial(set_counts, step=step), out_shardings=shardings.opt_state)
    opt_state = count_on(state.opt_state)
    return TrainState(place(np.int32(step), shardings.step), state.params, opt_state)


def _print_dry_run(trainer: Trainer, batch) -> None:
    say = console.show
    table = monitor.Table(["parameter", "shape", "logical axes", "sharding", "bytes", "trained"], title="parameters")
    total = 0
    axes = leaves_by_path(trainer.model.logical_axes(), lambda x: isinstance(x, tuple))
    shardings = leaves_by_path(trainer.shardings.params)
    for name, leaf in leaves_by_path(trainer.abstract_state.params).items():
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        total += size
        spec = ", ".join("·" if s is None else str(s) for s in shardings[name].spec)
        trained = "yes" if name in trainer.trained_paths else "no"
        table.add(name, "×".join(map(str, leaf.shape)), ", ".join(axes[name]), spec, f"{size:,}", trained)
    say(str(table))
    state_bytes = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(trainer.abstract_state.opt_state))
    say(f"parameters {total:,} bytes, optimizer state {state_bytes:,} bytes")
    for name, array in batch.items():
        say(f"first batch: {name} {'×'.join(map(str, array.shape))} {array.dtype}, {array.sharding.spec}")
