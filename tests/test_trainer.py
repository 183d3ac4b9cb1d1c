"""A step gives the same numbers whatever the mesh, the microbatches, or the way that layers are laid out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import make_batch, mesh, random_params, start, unstacked

from t5x_lite import optimizers, trainer
from t5x_lite.errors import UserError
from t5x_lite.losses import Loss
from t5x_lite.models import Model, T5Config
from t5x_lite.partitioning import DEFAULT_RULES
from t5x_lite.partitioning import leaves_by_path as paths

# Wide enough for Adafactor to factor (128), heads and widths that eight devices divide, dropout on.
CONFIG = T5Config(
    vocab_size=256,
    emb_dim=128,
    num_heads=8,
    head_dim=16,
    mlp_dim=128,
    num_encoder_layers=2,
    num_decoder_layers=3,
    dropout_rate=0.1,
)
FLOAT64 = dataclasses.replace(CONFIG, dtype="float64", param_dtype="float64")
SEQUENCE_PARALLEL = tuple((name, "tensor" if name == "length" else axes) for name, axes in DEFAULT_RULES)
MESHES = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "tensor": (1, 1, 8), "all": (2, 2, 2)}


@functools.cache  # so that each step is compiled once
def make_trainer(shape=(1, 1, 1), config=CONFIG, num_microbatches=1, rules=DEFAULT_RULES):
    optimizer = optimizers.adafactor(optimizers.inverse_square_root(10, scale=0.1), max_grad_norm=1.0)
    return trainer.Trainer(Model(config), optimizer, Loss(), mesh(shape, rules), num_microbatches=num_microbatches)


def batch_of(a_trainer, step=0):
    return jax.device_put(make_batch(16, s=12, t=7, seed=step), a_trainer.partitioner.batch)


def losses(a_trainer, steps=20):
    state, out = start(a_trainer), []
    for step in range(steps):
        state, metrics = a_trainer.step(state, batch_of(a_trainer, step))
        out.append([float(metrics[name]) for name in ("loss", "grad_norm", "param_norm")])
    return np.array(out)


def gradients(a_trainer):
    """Of the first step, as a flat vector."""
    with a_trainer.partitioner.activate():
        grad = jax.jit(
            lambda params, batch: trainer.loss_and_grads(
                a_trainer.model, a_trainer.loss, params, batch, 0, 0, a_trainer.num_microbatches
            )[0],
            in_shardings=(a_trainer.shardings.params, a_trainer.partitioner.batch),
            out_shardings=a_trainer.shardings.params,
        )(start(a_trainer).params, batch_of(a_trainer))
    return np.concatenate([np.asarray(g).ravel() for g in jax.tree.leaves(grad)])


@functools.cache
def one_device_losses(config):
    return losses(make_trainer(config=config))


@functools.cache
def one_device_gradients():
    return gradients(make_trainer())


# The mesh of all axes stands for the others, which are slow to compile.
EVERY_MESH = [
    pytest.param(shape, id=name, marks=() if name == "all" else pytest.mark.slow) for name, shape in MESHES.items()
]


@pytest.mark.parametrize("shape", EVERY_MESH)
def test_every_mesh_equals_one_device_in_float64(shape):
    """In float64 rounding is out of the way: what is left would be a bug."""
    with jax.enable_x64(True):
        np.testing.assert_allclose(losses(make_trainer(shape, FLOAT64)), one_device_losses(FLOAT64), rtol=1e-10)


def test_sequence_parallelism_equals_one_device():
    """Of the lengths 12 and 7 the mesh divides one."""
    with jax.enable_x64(True):
        found = losses(make_trainer((2, 1, 4), FLOAT64, rules=SEQUENCE_PARALLEL), steps=5)
        np.testing.assert_allclose(found, one_device_losses(FLOAT64)[:5], rtol=1e-10)


@pytest.mark.parametrize("shape", EVERY_MESH)
def test_every_mesh_equals_one_device_in_float32(shape):
    expected, found = one_device_losses(CONFIG), losses(make_trainer(shape))
    np.testing.assert_allclose(found[0, 0], expected[0, 0], rtol=1e-6)
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=1e-4)
    difference = gradients(make_trainer(shape)) - one_device_gradients()
    assert np.linalg.norm(difference) <= 1e-5 * np.linalg.norm(one_device_gradients())


def test_the_initial_state_is_one_devices_and_each_device_holds_its_share():
    """Parameters, optimizer state and batches lie where the rules say, whatever random numbers that takes."""
    state = make_trainer(MESHES["all"]).init()
    expected = make_trainer().init()
    for name, leaf in paths(state).items():
        np.testing.assert_allclose(leaf, paths(expected)[name], rtol=1e-6, atol=1e-7, err_msg=name)
    kernel = state.params["encoder"]["layers"]["mlp"]["wi_0"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size
    rows = [
        leaf
        for name, leaf in paths(state.opt_state).items()
        if "v_row" in name and leaf.shape == (3, 128) and "wo" in name
    ]
    assert rows, "Adafactor keeps a factored row for each decoder layer"
    assert all(row.addressable_shards[0].data.size * 2 == row.size for row in rows)
    tokens = batch_of(make_trainer(MESHES["all"]))["encoder_input_tokens"]
    assert tokens.addressable_shards[0].data.shape == (16 // 4, 12)


def test_factored_moments_are_sharded_as_what_is_left_of_their_kernel():
    shardings = make_trainer(MESHES["all"], dataclasses.replace(CONFIG, mlp_dim=256)).shardings.opt_state
    specs = {
        name.split("/v_")[1].split("/")[0]: tuple(sharding.spec)
        for name, sharding in paths(shardings).items()
        if "/v_" in name and name.endswith("decoder/layers/mlp/wo/kernel")
    }
    # Of [layers, mlp, embed] optax sums the longer side away for the row, the other one for the column.
    assert specs == {"row": (None, "fsdp"), "col": (None, "tensor")}


@pytest.mark.parametrize("num_microbatches", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_microbatches_equal_the_unsplit_step_with_dropout(num_microbatches):
    with jax.enable_x64(True):
        split = losses(make_trainer((2, 1, 1), FLOAT64, num_microbatches), steps=3)
        np.testing.assert_allclose(split, one_device_losses(FLOAT64)[:3], rtol=1e-10)


def test_the_loss_and_its_gradient_are_means_over_the_real_tokens_of_the_batch():
    model, batch = Model(dataclasses.replace(CONFIG, dropout_rate=0.0)), make_batch()
    params = random_params(CONFIG)
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
        a_trainer = make_trainer(config=dataclasses.replace(FLOAT64, scan_layers=False))
        state = start(make_trainer(config=FLOAT64))
        state = jax.device_put(
            trainer.TrainState(state.step, unstacked(state.params), start(a_trainer).opt_state), a_trainer.shardings
        )
        for step in range(5):
            state, metrics = a_trainer.step(state, batch_of(a_trainer, step))
            found = [float(metrics[name]) for name in ("loss", "grad_norm", "param_norm")]
            np.testing.assert_allclose(found, one_device_losses(FLOAT64)[step], rtol=1e-10)


@pytest.mark.parametrize("remat", ["minimal", "offload", "full"])
def test_rematerialisation_changes_nothing(remat):
    difference = gradients(make_trainer(config=dataclasses.replace(CONFIG, remat=remat))) - one_device_gradients()
    assert np.linalg.norm(difference) <= 1e-6 * np.linalg.norm(one_device_gradients())


def test_dropout_is_a_function_of_step_and_global_row():
    keys = trainer.dropout_keys(0, jnp.int32(3), jnp.arange(8))
    half = trainer.dropout_keys(0, jnp.int32(3), jnp.arange(4, 8))
    assert (jax.random.key_data(keys[4:]) == jax.random.key_data(half)).all()
    others = [
        trainer.dropout_keys(0, jnp.int32(4), jnp.arange(8)),
        trainer.dropout_keys(1, jnp.int32(3), jnp.arange(8)),
    ]
    assert all((jax.random.key_data(keys) != jax.random.key_data(other)).any(axis=-1).all() for other in others)
    # And the masks reach the model: two rows with the same text differ, dropout off they do not.
    model = Model(CONFIG)
    twice = {k: np.repeat(v[:1], 2, 0) for k, v in make_batch().items()}
    both = jax.jit(lambda params, keys: (model.apply(params, twice, keys), model.apply(params, twice)))
    dropped, plain = both(random_params(CONFIG), keys[:2])
    assert (plain[0] == plain[1]).all() and not np.allclose(dropped[0], dropped[1])


def test_a_step_drops_what_its_number_and_rows_say():
    a_trainer, batch = make_trainer(), make_batch(16, s=12, t=7)
    state, _ = a_trainer.step(start(a_trainer), batch_of(a_trainer))
    params = jax.tree.map(np.array, state.params)  # at step 1
    _, metrics = a_trainer.step(state, batch_of(a_trainer))

    @jax.jit
    def loss(params, keys):
        logits = a_trainer.model.apply(params, batch, keys)
        sums = a_trainer.loss.sums(logits, batch["decoder_target_tokens"], batch["decoder_loss_weights"])
        return sums["loss"] / sums["weights"]

    found = [float(loss(params, trainer.dropout_keys(a_trainer.seed, jnp.int32(n), jnp.arange(16)))) for n in (0, 1)]
    assert float(metrics["loss"]) == pytest.approx(found[1], rel=1e-5) != pytest.approx(found[0], rel=1e-3)


def test_the_logged_learning_rate_is_the_schedules():
    a_trainer = make_trainer()
    state = start(a_trainer)
    for step in range(12):
        state, metrics = a_trainer.step(state, batch_of(a_trainer))
        assert float(metrics["learning_rate"]) == pytest.approx(0.1 / max(step, 10) ** 0.5, rel=1e-6)
    assert int(state.step) == 12


def test_the_state_is_donated():
    a_trainer = make_trainer()
    state = start(a_trainer)
    a_trainer.step(state, batch_of(a_trainer))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize("batch_size, num_microbatches, nearest", [(12, 1, 8), (3, 1, 8), (24, 2, 16)])
def test_a_batch_that_devices_and_microbatches_do_not_divide_is_refused(batch_size, num_microbatches, nearest):
    with pytest.raises(UserError, match=rf"BATCH_SIZE = {batch_size} .*try {nearest}"):
        make_trainer((8, 1, 1), num_microbatches=num_microbatches).check_batch_size(batch_size)


def test_a_parameter_that_the_mesh_does_not_divide_is_named():
    config = dataclasses.replace(CONFIG, num_heads=6)
    with pytest.raises(UserError, match=r"relpos_bias/rel_embedding: its axis 'heads' of 6 .*'tensor' of 8"):
        _ = make_trainer((1, 1, 8), config).shardings
