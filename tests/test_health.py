"""A bad update reaches no device; when bad steps become too many is decided alike however often a run was stopped."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import losses, optimizers, trainer
from t5x_lite.errors import UserError
from t5x_lite.finetuning import GradualUnfreezing, Trainable
from t5x_lite.health import Health, Watch
from t5x_lite.models import Model, T5Config
from t5x_lite.partitioning import MeshConfig, leaves_by_path

CONFIG = T5Config(
    vocab_size=32, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16, num_encoder_layers=2, num_decoder_layers=2
)


@dataclasses.dataclass(frozen=True)
class Poisoned(losses.Loss):
    """Where a target is 7, the loss is no number; where one is 8, the loss is fine and its gradient is infinite."""

    def sums(self, logits, targets, weights):
        sums = super().sums(logits, targets, weights)
        slope = jnp.where((targets == 8).any(), 3e38, 0.0)
        nothing = jnp.sum(logits - jax.lax.stop_gradient(logits))  # zero, with a slope of one in every logit
        loss = sums["loss"] + jnp.where((targets == 7).any(), jnp.nan, 0.0) + slope * nothing
        return {**sums, "loss": loss}


def batch(first):
    """Only one row of eight, which is one device's, is bad."""
    tokens = np.random.default_rng(0).integers(10, 32, (8, 6)).astype(np.int32)
    targets = tokens.copy()
    targets[5, 0] = first
    return {
        "encoder_input_tokens": tokens,
        "decoder_input_tokens": tokens,
        "decoder_target_tokens": targets,
        "decoder_loss_weights": np.ones_like(tokens),
    }


UNFREEZING = Trainable(unfreezing=GradualUnfreezing(total_steps=100, episodes=2))


@pytest.mark.parametrize(
    "trainable", [Trainable(), pytest.param(UNFREEZING, marks=pytest.mark.slow)], ids=["all", "unfreezing"]
)
def test_a_bad_update_changes_nothing_on_any_device(trainable):
    partitioner = MeshConfig(shape={"data": 4, "fsdp": 2}).build()
    optimizer = optimizers.adafactor(optimizers.constant_rate(0.01), momentum=0.9)
    a_trainer = trainer.Trainer(Model(CONFIG), optimizer, Poisoned(), partitioner, trainable=trainable)
    state, metrics = a_trainer.step(a_trainer.init(), batch(9))
    assert metrics["skipped"] == 0
    for first in (7, 8):
        before = jax.tree.map(np.array, state)
        state, metrics = a_trainer.step(state, batch(first))
        assert metrics["skipped"] == 1 and bool(jnp.isfinite(metrics["loss"])) == (first == 8)
        assert int(state.step) == int(before.step) + 1
        for (name, leaf), old in zip(leaves_by_path(state[1:]).items(), jax.tree.leaves(before[1:]), strict=True):
            for shard in leaf.addressable_shards:
                assert (np.asarray(shard.data) == old[shard.index]).all(), name
    before = jax.tree.map(np.array, state)
    state, metrics = a_trainer.step(state, batch(9))
    assert metrics["skipped"] == 0
    embedding, old = (tree.params["token_embedder"]["embedding"] for tree in (state, before))
    assert (np.asarray(embedding) != old).any()


def test_bad_steps_in_a_row_make_it_ill():
    watch = Watch(Health(max_bad_steps=3))
    for step, bad in enumerate([1, 1, 0, 1, 1], 1):
        problem = watch.see(step, float("nan") if bad else 1.0, skipped=bool(bad))
        assert bool(problem) == bool(bad) and not watch.ill
    watch.see(6, float("nan"), skipped=True)
    assert watch.ill and watch.skipped == 5 and watch.last_bad == 6
    watch.see(7, 1.0, skipped=False)
    watch.see(8, float("nan"), skipped=True)
    assert watch.ill, "the steps that were already under way do not heal it"
    watch.went_back({})
    assert not watch.ill and watch.in_a_row == 0 and watch.skipped == 6


def test_spikes_are_measured_against_the_last_good_losses():
    rng = np.random.default_rng(0)
    watch = Watch(Health(spike_deviations=5.0, spike_window=20))
    assert watch.see(0, 1e6, skipped=False) is None, "nothing to compare with yet"
    normal = rng.normal(3.0, 0.1, 60)
    assert not any(watch.see(step, loss, skipped=False) for step, loss in enumerate(normal))
    mean, deviation = np.mean(normal[-20:]), np.std(normal[-20:])
    spike = mean + 5.1 * deviation
    assert watch.see(61, spike, skipped=False) == f"its loss of {spike:.4g} is a spike"
    assert watch.see(62, mean + 4.9 * deviation, skipped=False) is None, "the spike itself does not count"
    assert watch.see(63, mean - 50 * deviation, skipped=False) is None


def test_stopped_and_started_it_decides_alike():
    health = Health(spike_deviations=3.0, spike_window=8)
    rng = np.random.default_rng(1)
    values = rng.normal(3.0, 0.5, 100) + 3.0 * (rng.random(100) < 0.1)
    whole, parts = Watch(health), Watch(health)
    for step, loss in enumerate(values):
        if step % 7 == 0 and not parts.in_a_row:
            parts = Watch(health, json.loads(json.dumps(parts.state())))
        assert whole.see(step, loss, skipped=False) == parts.see(step, loss, skipped=False)
    assert whole.state() == parts.state()


def test_it_goes_back_so_often_and_no_more():
    watch = Watch(Health(action="roll_back", max_rollbacks=2))
    assert [watch.rolls_back() for _ in range(3)] == [True, True, False]
    watch.saved()
    assert watch.rolls_back()
    assert not Watch(Health()).rolls_back(), "by default it stops"


@pytest.mark.parametrize("wrong", [{"action": "rollback"}, {"max_bad_steps": 0}, {"spike_deviations": 0}])
def test_what_is_wrong_is_said(wrong):
    with pytest.raises(UserError, match=f"Health.{next(iter(wrong))}"):
        Health(**wrong)
