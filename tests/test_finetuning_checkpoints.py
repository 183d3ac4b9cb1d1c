"""Checkpoints of a run that trains few parameters hold only these, and find the others in their base."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from tiny_models import differing, make_batch, mesh, start

from t5x_lite import checkpoints, optimizers, trainer
from t5x_lite.errors import UserError
from t5x_lite.finetuning import Trainable
from t5x_lite.losses import Loss
from t5x_lite.models import Model, T5Config
from t5x_lite.models.finetuning_config import Adapters, LoRA, PromptTuning
from t5x_lite.partitioning import leaves_by_path as paths
from t5x_lite.stored import Stored

CONFIG = T5Config(
    vocab_size=64, emb_dim=16, num_heads=4, head_dim=8, mlp_dim=24, num_encoder_layers=2, num_decoder_layers=2
)
WITH_LORA = dataclasses.replace(CONFIG, lora=LoRA(4))
LORA = Trainable((".*/lora_[ab]",))
POSITIONS = {"positions": np.arange(4, dtype=np.int64).reshape(2, 2)}


@functools.cache
def make_trainer(config=CONFIG, trainable=trainer.ALL, shape=(1, 1, 1)):
    optimizer = optimizers.adafactor(optimizers.constant_rate(0.01), multiply_by_parameter_scale=False)
    return trainer.Trainer(Model(config), optimizer, Loss(), mesh(shape), 0, 1, trainable)


def batch():
    return make_batch(4, s=5, t=5, v=64)


def save(folder, a_trainer, state, **arguments):
    checkpointer = checkpoints.Checkpointer(folder)
    meta = {"model": a_trainer.model.config.to_dict(), "vocabulary": None, **arguments.pop("meta", {})}
    assert checkpointer.save(state, POSITIONS, meta, **arguments)
    checkpointer.close()


def finetune(base, folder, a_trainer, steps=2):
    """As the job does: parameters from `base`, then only the trained ones saved; the state on the host."""
    state, step = checkpoints.initialise(
        base, start(a_trainer), a_trainer.shardings, may_lack=a_trainer.model.added_paths
    )
    own = a_trainer.trained_paths | a_trainer.model.added_paths
    meta = {"base": checkpoints.base_of(checkpoints.find_step(base, step), state.params, own)}
    for _ in range(steps):
        state, _ = a_trainer.step(state, batch())
    save(folder, a_trainer, state, meta=meta, only=own)
    return jax.tree.map(np.array, state)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A plain model's checkpoint; its folder and its parameters."""
    folder = tmp_path_factory.mktemp("base")
    a_trainer = make_trainer()
    state = start(a_trainer, seed=3)
    save(folder, a_trainer, state)
    return folder, jax.tree.map(np.array, state.params)


@pytest.fixture(scope="module")
def finetuned(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    return folder, finetune(base[0], folder, make_trainer(WITH_LORA, LORA, (2, 2, 1)))


def test_plain_parameters_come_from_the_base_and_new_ones_keep_their_start(base):
    folder, plain = base
    a_trainer = make_trainer(WITH_LORA, LORA, (2, 2, 1))
    fresh = jax.tree.map(np.array, start(a_trainer))
    state, step = checkpoints.initialise(
        folder, start(a_trainer), a_trainer.shardings, may_lack=a_trainer.model.added_paths
    )
    assert step == 0
    found = paths(state.params)
    for name, value in paths(fresh.params).items():
        expected = value if name in a_trainer.model.added_paths else paths(plain)[name]
        assert np.asarray(found[name]).tobytes() == expected.tobytes(), name
        assert found[name].sharding == paths(a_trainer.shardings.params)[name]
    assert any(paths(plain)[n].tobytes() != paths(fresh.params)[n].tobytes() for n in paths(plain)), "another seed's"


def test_nothing_else_may_be_missing(base, tmp_path):
    folder, _ = base
    a_trainer = make_trainer(WITH_LORA, LORA, (2, 2, 1))
    with pytest.raises(UserError, match="query/lora_a missing.* and 9 more"):
        checkpoints.initialise(folder, start(a_trainer), a_trainer.shardings)
    tied = dataclasses.replace(CONFIG, logits_via_embedding=True)
    save(tmp_path, make_trainer(tied), start(make_trainer(tied)))
    with pytest.raises(UserError, match="does not fit the configured model: decoder/logits_dense/kernel missing; use"):
        checkpoints.initialise(tmp_path, start(a_trainer), a_trainer.shardings, may_lack=a_trainer.model.added_paths)


def test_only_what_was_trained_is_written(finetuned, base):
    folder, _ = finetuned
    written = Stored(checkpoints.find_step(folder)).shapes("params")
    assert written.keys() == Model(WITH_LORA).added_paths
    bytes_of = {
        f: sum(p.stat().st_size for p in f.rglob("*") if p.is_file() and "params" in p.parts) for f in (folder, base[0])
    }
    assert bytes_of[folder] < bytes_of[base[0]] / 2
    assert checkpoints.read_meta(checkpoints.find_step(folder))["base"]["path"] == str(base[0] / "checkpoints" / "0")


def test_reading_for_inference_gives_every_bit_back(finetuned):
    folder, state = finetuned
    model, params, _ = checkpoints.load_for_inference(folder)
    assert model.config == WITH_LORA
    assert not differing(params, state.params)


@pytest.mark.parametrize("shape", [(2, 2, 1), (1, 1, 1)])
def test_a_run_goes_on_from_it_on_any_mesh(finetuned, shape):
    folder, state = finetuned
    a_trainer = make_trainer(WITH_LORA, LORA, shape)
    restored = checkpoints.Checkpointer(folder).restore(a_trainer.abstract_state, a_trainer.shardings, POSITIONS)
    assert not differing(restored.state, state)
    assert all(
        leaf.sharding == sharding
        for leaf, sharding in zip(
            jax.tree.leaves(restored.state.params), jax.tree.leaves(a_trainer.shardings.params), strict=True
        )
    )


@pytest.mark.slow
def test_a_base_may_have_a_base(finetuned, tmp_path):
    """Prompt tuning on top of a LoRA run: three checkpoints, one model."""
    folder, below = finetuned
    config = dataclasses.replace(WITH_LORA, prompt=PromptTuning(3))
    a_trainer = make_trainer(config, Trainable(("prompt/embedding", "encoder/encoder_norm/scale")))
    state = finetune(folder, tmp_path, a_trainer)
    assert not differing(checkpoints.load_for_inference(tmp_path)[1], state.params)
    lora = {n: x for n, x in paths(below.params).items() if "lora" in n}
    assert all(paths(state.params)[n].tobytes() == x.tobytes() for n, x in lora.items())
    # What is added but not trained has no base to be in; here all of it has been trained or was below.
    assert Stored(checkpoints.find_step(tmp_path)).shapes("params").keys() >= {"prompt/embedding", *lora}


@pytest.mark.slow
def test_what_is_added_but_frozen_is_written_too(base, tmp_path):
    config = dataclasses.replace(CONFIG, lora=LoRA(4), adapters=Adapters(8))
    state = finetune(base[0], tmp_path, make_trainer(config, LORA))
    assert not differing(checkpoints.load_for_inference(tmp_path)[1], state.params)


def test_a_base_that_is_gone_or_changed_is_named(base, finetuned, tmp_path):
    moved, run = tmp_path / "base", tmp_path / "run"
    shutil.copytree(base[0], moved)
    finetune(moved, run, make_trainer(WITH_LORA, LORA, (2, 2, 1)), steps=1)
    gone = moved / "checkpoints" / "0"
    shutil.move(gone, tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"its base checkpoint {gone} is gone") as e:
        checkpoints.load_for_inference(run)
    assert "\n" not in str(e.value)
    other = make_trainer()
    shutil.rmtree(moved)
    save(moved, other, start(other, seed=4))
    with pytest.raises(UserError, match=rf"was trained on top of {gone}, which holds other parameters now"):
        checkpoints.load_for_inference(run)


def test_other_parameters_trained_need_another_folder(finetuned):
    folder, _ = finetuned
    a_trainer = make_trainer(WITH_LORA, Trainable((".*/lora_b",)))
    with pytest.raises(UserError, match="has another optimizer's state .*Trainable.patterns"):
        checkpoints.Checkpointer(folder).restore(a_trainer.abstract_state, a_trainer.shardings, POSITIONS)


def test_a_plain_model_does_not_read_it_by_mistake(finetuned):
    a_trainer = make_trainer()
    with pytest.raises(UserError, match="query/lora_a not in the model"):
        checkpoints.initialise(finetuned[0], start(a_trainer), a_trainer.shardings)


def test_a_checkpoint_from_before_finetuning_methods_is_read(base, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(base[0], folder)
    file = folder / "checkpoints" / "0" / "meta" / "metadata"
    meta = json.loads(file.read_text())
    assert not {"adapters", "lora", "base"} & (meta.keys() | meta["model"].keys())
    model, params, _ = checkpoints.load_for_inference(folder)
    assert model.config == CONFIG
    assert not differing(params, base[1])
