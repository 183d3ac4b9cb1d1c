"""What was saved comes back: bit by bit, on other meshes, into other runs."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from tiny_models import differing, make_batch, mesh, start

from t5x_lite import checkpoints, optimizers, trainer
from t5x_lite.errors import UserError
from t5x_lite.losses import Loss
from t5x_lite.models import Model, T5Config

CONFIG = T5Config(
    vocab_size=256, emb_dim=128, num_heads=4, head_dim=8, mlp_dim=128, num_encoder_layers=2, num_decoder_layers=2
)
META = {"model": CONFIG.to_dict(), "vocabulary": None}
POSITIONS = {"positions": np.arange(8, dtype=np.int64).reshape(4, 2)}


@functools.cache  # so that each step is compiled once
def make_trainer(shape=(1, 1, 1), config=CONFIG):
    return trainer.Trainer(Model(config), optimizers.adafactor(optimizers.constant_rate(0.01)), Loss(), mesh(shape))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run that saved at step 2 in the background and went on at once; (folder, state at step 2, loss of step 4)."""
    folder = tmp_path_factory.mktemp("run")
    a_trainer = make_trainer((2, 2, 1))
    checkpointer = checkpoints.Checkpointer(folder)
    state, at_two = start(a_trainer), None
    for step in range(1, 5):
        state, metrics = a_trainer.step(state, make_batch(s=6))
        if step == 2:
            at_two = jax.tree.map(np.array, state)
            assert checkpointer.save(state, POSITIONS, META)
            assert not checkpointer.save(state, POSITIONS, META), "a step is saved once"
    checkpointer.close()
    return folder, at_two, float(metrics["loss"])


def test_a_save_that_steps_overtake_equals_the_state_it_was_given(saved):
    folder, at_two, _ = saved
    a_trainer = make_trainer((2, 2, 1))
    restored = checkpoints.Checkpointer(folder).restore(a_trainer.abstract_state, a_trainer.shardings, POSITIONS)
    assert not differing(restored.state, at_two)
    assert (restored.data["positions"] == POSITIONS["positions"]).all()
    assert restored.meta["step"] == 2 and restored.meta["model"] == CONFIG.to_dict()


def test_no_buffer_that_a_step_reuses_is_left_to_the_writer(tmp_path, monkeypatch):
    """The writer may come to an array long after the next step; that it came in time in a test would be luck."""
    a_trainer = make_trainer((2, 2, 1))
    checkpointer = checkpoints.Checkpointer(tmp_path)
    given = []
    monkeypatch.setattr(checkpointer._manager, "save", lambda step, args: given.append(args))
    state = start(a_trainer)
    before = jax.tree.map(np.array, state.params)
    checkpointer.save(state, POSITIONS, META)
    a_trainer.step(state, make_batch(s=6))
    (args,) = given
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not differing(args["params"].item, before)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(args["opt_state"].item))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 2)])
def test_a_run_goes_on_on_another_mesh(saved, shape):
    folder, at_two, loss = saved
    a_trainer = make_trainer(shape)
    state = checkpoints.Checkpointer(folder).restore(a_trainer.abstract_state, a_trainer.shardings, POSITIONS).state
    assert not differing(state, at_two)
    for _ in range(2):
        state, metrics = a_trainer.step(state, make_batch(s=6))
    assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-4)


def test_finetuning_takes_parameters_and_only_if_asked_the_optimizers_state(saved):
    folder, at_two, _ = saved
    a_trainer = make_trainer()
    fresh = jax.tree.map(np.array, start(a_trainer, seed=1))
    state, step = checkpoints.initialise(folder, start(a_trainer, seed=1), a_trainer.shardings)
    assert step == 2 and int(state.step) == 0
    assert not differing(state.params, at_two.params) and not differing(state.opt_state, fresh.opt_state)
    state, _ = checkpoints.initialise(folder, start(a_trainer), a_trainer.shardings, restore_optimizer_state=True)
    assert not differing(state.opt_state, at_two.opt_state) and differing(at_two.opt_state, fresh.opt_state)


@pytest.mark.parametrize("below", ["", "checkpoints", "checkpoints/2"])
def test_inference_needs_nothing_but_the_path(saved, below):
    folder, at_two, _ = saved
    model, params, meta = checkpoints.load_for_inference(folder / below)
    assert model.config == CONFIG and meta["step"] == 2 and not differing(params, at_two.params)


def test_what_is_not_there_is_said(saved, tmp_path):
    folder, _, _ = saved
    with pytest.raises(UserError, match="no checkpoint under"):
        checkpoints.load_for_inference(tmp_path)
    with pytest.raises(UserError, match="no checkpoint of step 7 .* there are 2"):
        checkpoints.load_for_inference(folder, step=7)
    other = make_trainer(config=dataclasses.replace(CONFIG, mlp_dim=64))
    with pytest.raises(UserError, match=r"wi_0/kernel is \(2, 128, 128\), not \(2, 128, 64\)"):
        checkpoints.initialise(folder, start(other), other.shardings)


def test_only_so_many_checkpoints_are_kept(tmp_path):
    a_trainer = make_trainer()
    checkpointer = checkpoints.Checkpointer(tmp_path, checkpoints.Keep(last=2))
    state = start(a_trainer)
    for _ in range(4):
        state, _ = a_trainer.step(state, make_batch(s=6))
        checkpointer.save(state, POSITIONS, META)
    checkpointer.close()
    assert checkpoints.steps(tmp_path) == [3, 4]
    assert checkpoints.find_step(tmp_path).name == "4" and checkpoints.find_step(tmp_path, 3).name == "3"
    assert checkpoints.load_for_inference(tmp_path)[2]["step"] == 4
