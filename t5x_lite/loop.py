"""The training loop: steps from where a run stands to its end, evaluating, saving and looking after its health.

    batch ── step ── report (one step late) ── evaluate? ── save? ── …
                        └ too many bad steps: back to the newest checkpoint, or stop

Whatever stops a run leaves a checkpoint from which the same run goes on: the same batches, losses and decisions.
"""

import contextlib
import dataclasses
import json
from collections.abc import Collection
from typing import Any

import numpy as np
from etils import epath

from t5x_lite import buckets, checkpoints, console, flops, monitor, run_folder, together
from t5x_lite.data import Batches, gather_positions
from t5x_lite.errors import Preempted, UserError
from t5x_lite.evaluation import Evaluator
from t5x_lite.health import Watch
from t5x_lite.models import T5Config
from t5x_lite.preemption import Notice
from t5x_lite.saving import Saver, is_better_lower
from t5x_lite.trainer import Trainer, TrainState


@dataclasses.dataclass
class Standing:
    """Where a run stands: what its checkpoints hold.

    Attributes:
      positions: of all data streams, int64 [S, 2].
      watch: what went wrong so far.
      best: of early stopping, its value and the evaluations since.
      metrics: of the evaluation at this step; empty where there was none.
    """

    state: TrainState
    positions: np.ndarray
    watch: Watch
    best: dict[str, Any] = dataclasses.field(default_factory=lambda: {"value": None, "bad": 0})
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)

    def meta(self) -> dict[str, Any]:
        """What of it is no array, JSON-able."""
        return {"health": self.watch.state(), "early_stopping": dict(self.best), "metrics": self.metrics}

    def take(self, restored: checkpoints.Restored) -> None:
        """Stands where the checkpoint was saved, but for the data, which only goes forward."""
        self.state = restored.state
        self.watch.went_back(restored.meta.get("health", {}))
        self.best = restored.meta.get("early_stopping", self.best)
        self.metrics = restored.meta.get("metrics", {})


@dataclasses.dataclass(frozen=True)
class Calendar:
    """When things happen, in steps; see `jobs.train.train`."""

    train_steps: int
    log_every: int
    save_every: int
    evaluate_every: int | None
    early_stopping_metric: str | None
    early_stopping_patience: int

    def evaluates(self, step: int) -> bool:
        return step == self.train_steps or (bool(self.evaluate_every) and step % self.evaluate_every == 0)


@dataclasses.dataclass
class Loop:
    """
    Attributes:
      meta: what every checkpoint's meta says besides `Standing.meta`.
      only: paths of the parameters that checkpoints hold; None for all.
      peak: FLOP/s of all devices, or None.
    """

    trainer: Trainer
    calendar: Calendar
    standing: Standing
    folder: epath.Path
    meta: dict[str, Any]
    only: Collection[str] | None
    batches: Batches
    evaluator: Evaluator | None
    checkpointer: checkpoints.Checkpointer
    saver: Saver
    writer: monitor.MetricsWriter
    progress: monitor.TrainingProgress
    watchdog: monitor.Watchdog
    profiler: monitor.Profiler
    notice: Notice
    peak: float | None

    def __post_init__(self):
        self.step = self._start = int(self.standing.state.step)
        self.meter: monitor.Meter | None = None
        self._lagged = monitor.Lagged()
        self._save_wanted = False

    def run(self) -> None:
        """
        Raises:
          Preempted: told to stop; what could be saved is saved.
          UserError: too many bad steps, or checkpoints that could not be saved.
        """
        with self.notice.held():
            try:
                self._run()
            except Preempted:
                self._save_before_leaving()
                raise

    def _run(self) -> None:
        # A run that was told to stop may have saved a step without the evaluation that was due there.
        owed = self.step > 0 and self.calendar.evaluates(self.step) and not self.standing.metrics
        stop = bool(owed and self.evaluator and self._evaluate())
        while self.step < self.calendar.train_steps and not stop:
            batch, positions = self._next_batch()
            self.profiler.before(self.step + 1)
            self.standing.state, metrics = self.trainer.step(self.standing.state, batch)
            self.profiler.after(self.step + 1, self.standing.state)
            self.standing.positions, self.standing.metrics = positions, {}
            self.step += 1
            self.watchdog.alive()
            together.doing(f"step {self.step}")
            last = self.step == self.calendar.train_steps
            evaluates = self.evaluator is not None and self.calendar.evaluates(self.step)
            self._save_wanted |= self.step % self.calendar.save_every == 0 or self.saver.due(self.step)
            # Metrics are read one step late, so that the devices never wait for the host.
            self._report(self._lagged.push(self.step, metrics))
            if evaluates or last or self._save_wanted:
                self._report(self._lagged.drain())
            if self.standing.watch.ill:
                self._go_back()
                continue
            if self.notice.reached(self.step):
                raise Preempted()
            if evaluates:
                stop = self._evaluate()
            if last or stop:
                with self.meter.paused():
                    self.progress.note(f"saving step {self.step}")
                    self.saver.finish(self.step, self._save)
            elif self._save_wanted and not self.standing.watch.in_a_row:
                # Checkpoints are of healthy states: what follows bad steps waits until they are over.
                with self.meter.paused():
                    if self.saver.save(self.step, self._save):
                        self.standing.watch.saved()
                        self.progress.note(f"saving step {self.step}")
                self._save_wanted = False
        self.saver.wait()

    def _next_batch(self):
        together.doing(f"the data of step {self.step + 1}")
        with self.notice.interruptible():
            if self.meter is None:
                item = next(self.batches)
                self.meter = _meter(self.trainer.model.config, item[0], self.peak)
                return item
            with self.meter.waiting(in_flight=self._lagged.newest):
                return next(self.batches)

    def _report(self, done) -> None:
        watch = self.standing.watch
        for step, host in done:
            self.meter.step(tokens=host.pop("tokens"))
            problem = watch.see(step, host["loss"], skipped=host.pop("skipped") > 0)
            if problem:
                self.progress.note(
                    f"warning: step {step}: {problem} ({watch.in_a_row} bad in a row; {watch.skipped} "
                    "updates left out so far)"
                )
            if step % self.calendar.log_every == 0 or step == 1:
                host |= self.meter.window() | {"skipped_updates": watch.skipped}
                if (peak := monitor.peak_memory()) is not None:
                    host["peak_memory_gib"] = peak
                self.writer.write(step, {f"train/{k}": v for k, v in host.items()})
            self.progress.update(step, host)

    def _evaluate(self) -> bool:
        """Whether training is to end early."""
        together.doing(f"the evaluation of step {self.step}")
        calendar, standing = self.calendar, self.standing
        paused = self.meter.paused() if self.meter else contextlib.nullcontext()
        with paused, self.notice.interruptible():
            results = self.evaluator.run(self.trainer.model, standing.state.params, self.trainer.partitioner)
        self.watchdog.alive()
        standing.metrics = results.metrics
        self.writer.write(self.step, results.metrics)
        self.progress.note(f"step {self.step}: " + _short(results.metrics), console.RESULT)
        if results.samples and together.first():
            lines = [json.dumps({"step": self.step, **sample}, ensure_ascii=False) for sample in results.samples]
            with buckets.survived():  # a look at the run, nothing to stop it for
                run_folder.write_whole(self.folder / "samples.jsonl", "\n".join(lines) + "\n")
        name, best = calendar.early_stopping_metric, standing.best
        if not _early_stop(best, results.metrics, name, calendar.early_stopping_patience):
            return False
        self.progress.note(f"stopping at step {self.step}: no better {name} than {best['value']:.4g}")
        return True

    def _save(self) -> bool:
        # Rows first: a checkpoint is never without those of its steps.
        self.writer.flush()
        data = {"positions": gather_positions(self.standing.positions)}
        return self.checkpointer.save(self.standing.state, data, {**self.meta, **self.standing.meta()}, self.only)

    def _save_before_leaving(self) -> None:
        if self.step == self._start:
            return
        self._report(self._lagged.drain())
        if self.standing.watch.in_a_row:
            self.progress.note(f"told to stop among bad steps: the next start goes on from before step {self.step}")
        elif self.saver.save_now(self.step, self._save):
            self.progress.note(f"told to stop: step {self.step} is saved")

    def _go_back(self) -> None:
        watch, standing = self.standing.watch, self.standing
        bad = f"bad steps in a row up to step {watch.last_bad} (Health.max_bad_steps)"
        if not watch.rolls_back():
            raise UserError(
                f"{bad}; lower the learning rate, set adafactor.max_grad_norm, or see Health.action and "
                "Health.max_rollbacks; the newest checkpoint is from before them"
            )
        with self.meter.paused():
            self._lagged.drain()
            self.saver.wait()
            standing.state = None  # gives its memory back before another one comes
            trainer = self.trainer
            restored = self.checkpointer.restore(
                trainer.abstract_state, trainer.shardings, {"positions": standing.positions}, warn=self.progress.note
            )
            if restored is None:
                raise UserError(f"{bad}, and there is no checkpoint to go back to: save more often (train.save_every)")
            standing.take(restored)
        self.step = int(restored.state.step)
        self._save_wanted = False
        self.writer.rewind(self.step)
        self.watchdog.alive()
        self.progress.note(f"warning: {bad}: back to step {self.step}, and on with the data that comes next")


def _meter(model: T5Config, batch, peak: float | None) -> monitor.Meter:
    rows, t = batch["decoder_target_tokens"].shape
    s = batch["encoder_input_tokens"].shape[1] if "encoder_input_tokens" in batch else 0
    s += model.prompt.length if model.prompt else 0
    return monitor.Meter(rows * flops.train_flops_per_example(model, s, t), peak)


def _early_stop(best: dict, metrics: dict[str, float], name: str | None, patience: int) -> bool:
    """Updates `best`; True when the metric has not improved for `patience` evaluations."""
    if name is None:
        return False
    if name not in metrics:
        raise UserError(
            f"train.early_stopping_metric = {name!r} is not evaluated; there are {', '.join(sorted(metrics))}"
        )
    sign = -1 if is_better_lower(name) else 1
    if best["value"] is None or sign * metrics[name] > sign * best["value"]:
        best.update(value=metrics[name], bad=0)
    else:
        best["bad"] += 1
    return best["bad"] >= patience


def _short(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name.removeprefix('eval/')} {value:.4g}" for name, value in metrics.items())
