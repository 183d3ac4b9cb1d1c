"""Parts of the training loop that take no training to see; whole runs are in test_faults.py and tasks/test_jobs.py."""

import itertools
import types

import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import checkpoints, loop, monitor
from t5x_lite.errors import UserError
from t5x_lite.health import Health, Watch
from t5x_lite.models import T5Config
from t5x_lite.preemption import Notice
from t5x_lite.saving import Retry, Saver
from t5x_lite.trainer import TrainState

CONFIG = T5Config(
    vocab_size=8, emb_dim=8, num_heads=1, head_dim=8, mlp_dim=8, num_encoder_layers=1, num_decoder_layers=1
)


@pytest.mark.parametrize(
    "name, values",
    [("eval/a/loss", [5.0, 4.0, 4.5, 4.0, 3.0, 3.5, 3.5]), ("eval/a/accuracy", [5.0, 6.0, 5.5, 6.0, 7.0, 6.5, 6.5])],
)
def test_training_stops_after_so_many_evaluations_without_a_new_best(name, values):
    best = {"value": None, "bad": 0}
    stops = [loop._early_stop(best, {name: value}, name, patience=3) for value in [*values, values[-1]]]
    assert stops == [False] * 7 + [True] and best == {"value": values[4], "bad": 3}
    assert not loop._early_stop(best, {}, None, patience=3)
    with pytest.raises(UserError, match="early_stopping_metric = 'eval/b' is not evaluated; there are eval/a"):
        loop._early_stop(best, {"eval/a": 1.0}, "eval/b", patience=3)


class Batches:
    """Batches without end, and where the data stand after each."""

    def __init__(self):
        self._numbers = itertools.count(1)

    def __next__(self):
        zeros = jnp.zeros((2, 3), jnp.int32)
        batch = {"encoder_input_tokens": zeros, "decoder_target_tokens": zeros}
        return batch, np.full((1, 2), next(self._numbers), np.int64)


class Steps:
    """Stands for a trainer: a step only counts, and leaves its update out where it is told to."""

    def __init__(self, bad):
        self._bad, self.model = bad, types.SimpleNamespace(config=CONFIG)

    def step(self, state, batch):
        step = int(state.step) + 1
        bad = step in self._bad
        metrics = {"loss": jnp.float32(jnp.nan if bad else 1.0), "skipped": jnp.int32(bad), "tokens": jnp.int32(6)}
        return TrainState(jnp.int32(step), state.params, state.opt_state), metrics


def run(folder, bad, train_steps, save_every):
    """Runs the loop; the lines that it said."""
    said = []
    with checkpoints.Checkpointer(folder, asynchronous=False) as checkpointer:
        state = TrainState(jnp.int32(0), {"w": jnp.ones(2)}, (jnp.zeros(1),))
        loop.Loop(
            trainer=Steps(bad),
            calendar=loop.Calendar(train_steps, 1, save_every, None, None, 3),
            standing=loop.Standing(state, np.zeros((1, 2), np.int64), Watch(Health())),
            folder=folder,
            meta={"model": CONFIG.to_dict()},
            only=None,
            batches=Batches(),
            evaluator=None,
            checkpointer=checkpointer,
            saver=Saver(checkpointer, Retry(), said.append),
            writer=monitor.MetricsWriter(folder, enabled=False),
            progress=monitor.TrainingProgress(train_steps, enabled=False),
            watchdog=monitor.Watchdog(None),
            profiler=monitor.Profiler(None, folder),
            notice=Notice(),
            peak=None,
        ).run()
    return said


def test_a_save_that_falls_among_bad_steps_waits_until_they_are_over(tmp_path):
    """The state is as healthy as before them, but what it would be saved with is not: the next start would not know of
    the bad steps so far, and count anew."""
    run(tmp_path, bad={4, 6, 7, 8}, train_steps=9, save_every=2)
    assert checkpoints.steps(tmp_path) == [2, 5, 9], "due at 4, 6 and 8; the last step is always saved"
    positions = [checkpoints.read_positions(checkpoints.find_step(tmp_path, step)) for step in (2, 5, 9)]
    assert [p[0, 0] for p in positions] == [2, 5, 9]
