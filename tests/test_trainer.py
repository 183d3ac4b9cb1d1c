"""A step gives the same numbers whatever the mesh, the microbatches, or the way that layers are laid out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import optimizers, trainer
from t5x_lite.errors import UserError
from t5x_lite.losses import Loss
from t5x_lite.models import Model, T5Config
from t5x_lite.partitioning import MeshConfig

# Wide enough for Adafactor to factor (128), heads and widths that eight devices divide, dropout on.
CONFIG = T5Config(
    vocab_size=256, emb_dim=128, num_heads=8, head_dim=16, mlp_dim=128, num_encoder_layers=2, num_decoder_layers=3,
    dropout_rate=0.1,
)
MESHES = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "tensor": (1, 1, 8), "all": (2, 2, 2)}


def make_batch(rows=16, s=12, t=7, seed=0):
    """Rows of very unequal length, so that a mean of means would differ from the mean over tokens."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(2, 256, (rows, t)) * (np.arange(t) < rng.integers(1, t + 1, (rows, 1)))
    return {
        "encoder_input_tokens": (rng.integers(2, 256, (rows, s)) * (np.arange(s) < rng.integers(2, s + 1, (rows, 1)))),
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": targets > 0,
    }


def make_trainer(shape=(1, 1, 1), config=CONFIG, num_microbatches=1, **loss):
    devices = jax.devices()[: int(np.prod(shape))]
    partitioner = MeshConfig(shape=dict(zip(("data", "fsdp", "tensor"), shape))).build(devices)
    optimizer = optimizers.adafactor(optimizers.inverse_square_root(10, scale=0.1), max_grad_norm=1.0)
    return trainer.Trainer(Model(config), optimizer, Loss(**loss), partitioner, num_microbatches=num_microbatches)


def losses(a_trainer, steps=20):
    state, out = a_trainer.init(), []
    for step in range(steps):
        batch = {k: v.astype(np.int32) for k, v in make_batch(seed=step).items()}
        state, metrics = a_trainer.step(state, jax.device_put(batch, a_trainer.partitioner.batch))
        out.append([float(metrics[name]) for name in ("loss", "grad_norm", "param_norm")])
    return np.array(out)


def gradients(a_trainer):
    """Of the first step, as a flat vector."""
    state = a_trainer.init()
    batch = {k: v.astype(np.int32) for k, v in make_batch().items()}
    with a_trainer.partitioner.activate():
        grad = jax.jit(
            lambda params, batch: trainer.loss_and_grads(
                a_trainer.model, a_trainer.loss, params, batch, 0, 0, a_trainer.num_microbatches
            )[0],
            in_shardings=(a_trainer.shardings.params, a_trainer.partitioner.batch),
            out_shardings=a_trainer.shardings.params,
        )(state.params, jax.device_put(batch, a_trainer.partitioner.batch))
    return np.concatenate([np.asarray(g).ravel() for g in jax.tree.leaves(grad)])


@functools.cache
def one_device(dtype):
    config = dataclasses.replace(CONFIG, dtype=dtype, param_dtype=dtype)
    return losses(make_trainer(config=config)), gradients(make_trainer(config=config))


@pytest.mark.parametrize("mesh", MESHES)
def test_every_mesh_equals_one_device_in_float64(mesh):
    """In float64 rounding is out of the way: what is left would be a bug."""
    with jax.enable_x64(True):
        config = dataclasses.replace(CONFIG, dtype="float64", param_dtype="float64")
        expected, _ = one_device("float64")
        np.testing.assert_allclose(losses(make_trainer(MESHES[mesh], config)), expected, rtol=1e-10)


@pytest.mark.parametrize("mesh", MESHES)
def test_every_mesh_equals_one_device_in_float32(mesh):
    expected, expected_gradients = one_device("float32")
    found = losses(make_trainer(MESHES[mesh]))
    np.testing.assert_allclose(found[0, 0], expected[0, 0], rtol=1e-6)
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=1e-4)
    difference = gradients(make_trainer(MESHES[mesh])) - expected_gradients
    assert np.linalg.norm(difference) <= 1e-5 * np.linalg.norm(expected_gradients)


@pytest.mark.parametrize("mesh", ["data", "all"])
def test_shards_are_shares(mesh):
    """Parameters, optimizer state and batches lie where the rules say, no device holding more than its share."""
    a_trainer = make_trainer(MESHES[mesh])
    state = a_trainer.init()
    kernel = state.params["encoder"]["layers"]["mlp"]["wi_0"]["kernel"]
    parts = MESHES[mesh][1] * MESHES[mesh][2]
    assert kernel.addressable_shards[0].data.size * parts == kernel.size
    rows = [
        leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(state.opt_state)[0]
        if "v_row" in str(path) and leaf.shape == (3, 128) and "wo" in str(path)
    ]
    assert rows, "Adafactor keeps a factored row for each decoder layer"
    assert all(row.addressable_shards[0].data.size * (2 if mesh == "all" else 1) == row.size for row in rows)


@pytest.mark.parametrize("num_microbatches", [2, 4])
def test_microbatches_equal_the_unsplit_step_with_dropout(num_microbatches):
    with jax.enable_x64(True):
        config = dataclasses.replace(CONFIG, dtype="float64", param_dtype="float64")
        split = losses(make_trainer((2, 1, 1), config, num_microbatches), steps=3)
        np.testing.assert_allclose(split, one_device("float64")[0][:3], rtol=1e-10)


def test_the_loss_and_its_gradient_are_means_over_the_real_tokens_of_the_batch():
    config = dataclasses.replace(CONFIG, dropout_rate=0.0, num_encoder_layers=1, num_decoder_layers=1)
    model, batch = Model(config), {k: v.astype(np.int32) for k, v in make_batch().items()}
    params = model.init(jax.random.key(0))
    rows, places = np.nonzero(batch["decoder_target_tokens"])
    assert len(rows) < batch["decoder_target_tokens"].size, "some of it is padding"

    def mean(params):
        log_p = jax.nn.log_softmax(model.apply(params, batch))
        return -jnp.mean(log_p[rows, places, batch["decoder_target_tokens"][rows, places]])

    expected_loss, expected = jax.jit(jax.value_and_grad(mean))(params)
    grads, sums = jax.jit(lambda p: trainer.loss_and_grads(model, Loss(z_loss=0.0), p, batch, 0, 0))(params)
    assert float(sums["loss"] / sums["weights"]) == pytest.approx(float(expected_loss), rel=1e-6)
    for found, wanted in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5 * float(jnp.abs(wanted).max()))


def test_scanned_and_unrolled_layers_get_the_same_updates():
    with jax.enable_x64(True):
        config = dataclasses.replace(CONFIG, dtype="float64", param_dtype="float64", scan_layers=False)
        np.testing.assert_allclose(losses(make_trainer(config=config), 5), one_device("float64")[0][:5], rtol=1e-10)


@pytest.mark.parametrize("remat", ["minimal", "full"])
def test_rematerialisation_changes_nothing(remat):
    difference = gradients(make_trainer(config=dataclasses.replace(CONFIG, remat=remat))) - one_device("float32")[1]
    assert np.linalg.norm(difference) <= 1e-6 * np.linalg.norm(one_device("float32")[1])


def test_dropout_is_a_function_of_step_and_global_row():
    keys = trainer.dropout_keys(0, jnp.int32(3), jnp.arange(8))
    half = trainer.dropout_keys(0, jnp.int32(3), jnp.arange(4, 8))
    assert (jax.random.key_data(keys[4:]) == jax.random.key_data(half)).all()
    others = [trainer.dropout_keys(0, jnp.int32(4), jnp.arange(8)), trainer.dropout_keys(1, jnp.int32(3), jnp.arange(8))]
    assert all((jax.random.key_data(keys) != jax.random.key_data(other)).any(axis=-1).all() for other in others)
    # And the masks reach the model: two rows with the same text differ, dropout off they do not.
    model = Model(CONFIG)
    params = model.init(jax.random.key(0))
    twice = {k: jnp.asarray(np.repeat(v[:1], 2, 0), jnp.int32) for k, v in make_batch().items()}
    dropped, plain = model.apply(params, twice, keys[:2]), model.apply(params, twice)
    assert (plain[0] == plain[1]).all() and not np.allclose(dropped[0], dropped[1])


def test_the_logged_learning_rate_is_the_one_used():
    a_trainer = make_trainer()
    state = a_trainer.init()
    for step in range(12):
        state, metrics = a_trainer.step(state, {k: v.astype(np.int32) for k, v in make_batch().items()})
        assert float(metrics["learning_rate"]) == pytest.approx(0.1 / max(step, 10) ** 0.5, rel=1e-6)
    # Used: with a rate of zero nothing moves.
    still = dataclasses.replace(a_trainer, optimizer=optimizers.adafactor(optimizers.constant_rate(0.0)))
    state = still.init()
    before = jax.tree.map(np.array, state.params)
    state, metrics = still.step(state, {k: v.astype(np.int32) for k, v in make_batch().items()})
    assert float(metrics["learning_rate"]) == 0.0 and float(metrics["update_norm"]) == 0.0
    assert all((np.asarray(a) == b).all() for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(before)))


def test_the_state_is_donated():
    a_trainer = make_trainer()
    state = a_trainer.init()
    a_trainer.step(state, {k: v.astype(np.int32) for k, v in make_batch().items()})
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize("batch_size, nearest", [(12, 8), (3, 8)])
def test_a_batch_that_the_devices_do_not_divide_is_refused(batch_size, nearest):
    with pytest.raises(UserError, match=rf"BATCH_SIZE = {batch_size} .*try {nearest}"):
        make_trainer((8, 1, 1)).check_batch_size(batch_size)


def test_a_parameter_that_the_mesh_does_not_divide_is_named():
    config = dataclasses.replace(CONFIG, num_heads=6)
    with pytest.raises(UserError, match=r"relpos_bias/rel_embedding: its axis 'heads' of 6 .*'tensor' of 8"):
        _ = make_trainer((1, 1, 8), config).shardings


@pytest.mark.parametrize(
    "shape, message",
    [({"data": 3}, "does not fit the 8"), ({"dta": 8}, "unknown axes"), ({"data": -1, "fsdp": -1}, "one of them may be")],
)
def test_a_mesh_that_does_not_fit_is_refused(shape, message):
    with pytest.raises(UserError, match=message):
        MeshConfig(shape=shape).build()
