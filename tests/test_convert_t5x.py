"""Checkpoints written by T5X itself: read, with Adafactor's state, and written again.

tests/fixtures/pack_t5x.py says where the packed checkpoints come from.
"""

import dataclasses
import functools
import pathlib
import shutil
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts
from flax import serialization, traverse_util

from t5x_lite import checkpoints, optimizers
from t5x_lite.errors import UserError
from t5x_lite.interop import formats, native, t5x
from t5x_lite.interop import weights as w
from t5x_lite.jobs.convert import convert
from t5x_lite.losses import Loss
from t5x_lite.models import Model, T5Config
from t5x_lite.partitioning import MeshConfig
from t5x_lite.trainer import Trainer

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
SCANNED_STEP, UNSCANNED_STEP = 12, 16


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5x")
    for name in ("t5x_tiny_v1_0", "t5x_tiny_v1_1_scan"):
        with zipfile.ZipFile(FIXTURES / f"{name}_checkpoint.zip") as archive:
            archive.extractall(folder / name)
    return folder


@pytest.fixture(scope="module")
def unscanned(unpacked):
    return unpacked / "t5x_tiny_v1_0"


@pytest.fixture(scope="module")
def scanned(unpacked):
    return unpacked / "t5x_tiny_v1_1_scan"


def raw(folder, section):
    """Path -> array of `target` or `state/param_states`, read without any of the code under test."""
    tree = serialization.msgpack_restore((folder / "checkpoint").read_bytes())["optimizer"]
    node = functools.reduce(lambda node, key: node[key], section.split("/"), tree)
    leaves = traverse_util.flatten_dict(node, is_leaf=lambda _, x: "driver" in x, sep="/")

    def array(leaf):
        if not isinstance(leaf, dict):
            return leaf
        kvstore = {"driver": "file", "path": str(folder / leaf["kvstore"]["path"])}
        return ts.open({"driver": "zarr", "kvstore": kvstore}).result().read().result()

    return {path: np.asarray(array(leaf)) for path, leaf in leaves.items()}


def logits(config, params, golden):
    names = ("encoder_input_tokens", "decoder_input_tokens")
    apply = jax.jit(Model(config).apply)
    return np.asarray(apply(params, {name: jnp.asarray(golden[name]) for name in names}))


def assert_logits(actual, golden):
    real = golden["decoder_target_tokens"] > 0
    worst = np.abs(actual - golden["logits"])[real].max()
    assert worst <= 1e-5 * max(1.0, np.abs(golden["logits"]).max())


def test_an_unscanned_checkpoint_becomes_ours(unscanned, tmp_path):
    assert convert(str(unscanned), str(tmp_path / "ours")) == 0
    model, params, meta = checkpoints.load_for_inference(tmp_path / "ours")
    assert meta["step"] == UNSCANNED_STEP and model.config.scan_layers
    assert not (tmp_path / "ours" / "checkpoints" / "16" / "opt_state").exists()
    with np.load(FIXTURES / "t5x_tiny_v1_0.npz") as arrays:
        golden = {name.removeprefix("golden/"): arrays[name] for name in arrays if name.startswith("golden/")}
    assert_logits(logits(model.config, params, golden), golden)


def test_a_scanned_checkpoint_becomes_ours(scanned, tmp_path):
    assert convert(str(scanned), str(tmp_path / "ours")) == 0
    model, params, meta = checkpoints.load_for_inference(tmp_path / "ours")
    assert meta["step"] == SCANNED_STEP and model.config.relpos_per_layer
    assert params["encoder"]["layers"]["relpos_bias"]["rel_embedding"].shape == (2, 4, 32)
    with np.load(scanned / "golden.npz") as golden:
        assert_logits(logits(model.config, params, golden), golden)


def opened(folder, **options):
    """What `t5x.read` finds; the model's own field for a bias in each layer is not needed to see the tensors."""
    config = T5Config(384, 64, 4, 16, 128, 2, 2)
    return t5x.read(t5x.steps(folder)[SCANNED_STEP], model=config, **options)


def test_scanned_layers_come_apart_and_their_heads_together(scanned):
    found, theirs = opened(scanned).params, raw(scanned / "checkpoint_12", "target")
    expected = {
        "encoder/layers_1/attention/query/kernel": theirs["encoder/encoder/attention/query/kernel"][:, 1].reshape(
            64, 64
        ),
        "decoder/layers_0/encoder_decoder_attention/out/kernel": theirs[
            "decoder/decoder/encoder_decoder_attention/out/kernel"
        ][:, 0].reshape(64, 64),
        "decoder/layers_1/mlp/wo/kernel": theirs["decoder/decoder/mlp/wo/kernel"][:, 1],
        "decoder/layers_0/pre_cross_attention_layer_norm/scale": theirs[
            "decoder/decoder/pre_cross_attention_layer_norm/scale"
        ][:, 0],
        "encoder/layers_1/relpos_bias/rel_embedding": theirs["encoder/encoder/relpos_bias/rel_embedding"][:, 1],
        "decoder/decoder_norm/scale": theirs["decoder/decoder_norm/scale"],
    }
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path].read(), array, err_msg=path)


def test_adafactors_state_of_an_unscanned_checkpoint(unscanned, tmp_path):
    """What optax would have: the same names and shapes as a fresh state, the values of theirs, the counters at 16."""
    convert(str(unscanned), str(tmp_path / "ours"), optimizer_state=True, scan_layers=False)
    _, weights = formats.read(tmp_path / "ours", optimizer_state=True)
    found = {name: tensor.read() for name, tensor in weights.opt_state.items()}
    theirs = raw(unscanned / "checkpoint_16", "state/param_states")
    # The fixture was trained with min_dim_size_to_factor = 32.
    optimizer = optimizers.adafactor(optimizers.constant_rate(), min_dim_size_to_factor=32)
    tree = Model(weights.config).abstract_params()
    fresh = checkpoints.as_dict(jax.eval_shape(optimizer.init, tree))
    assert {name: (a.shape, a.dtype) for name, a in found.items()} == {n: (a.shape, a.dtype) for n, a in fresh.items()}
    for path, array in theirs.items():
        *path, slot = path.split("/")
        if slot != "m":
            name = f"inner_states.single.inner_state.0.{slot}.{'.'.join(path)}"
            np.testing.assert_array_equal(found[name], array, err_msg=name)
    counters = [array for name, array in found.items() if name.endswith(".count")]
    assert counters and all(array == UNSCANNED_STEP for array in counters)


def test_adafactors_state_of_a_scanned_checkpoint(scanned):
    """T5X's rows are the model width, optax's the smaller side and, where both are equal, the first."""
    found = {name: tensor.read() for name, tensor in opened(scanned, optimizer_state=True).opt_state.items()}
    theirs = raw(scanned / "checkpoint_12", "state/param_states")

    def ours(slot, path):
        return found[f"inner_states.single.inner_state.0.{slot}.{path.replace('/', '.')}"]

    query = (
        theirs["decoder/decoder/self_attention/query/kernel/v_row"],
        theirs["decoder/decoder/self_attention/query/kernel/v_col"],
    )
    assert query[0].shape == (64, 2) and query[1].shape == (2, 4, 16)
    np.testing.assert_array_equal(ours("v_row", "decoder/layers_1/self_attention/query/kernel"), query[0][:, 1])
    np.testing.assert_array_equal(ours("v_col", "decoder/layers_1/self_attention/query/kernel"), query[1][1].ravel())
    out = theirs["encoder/encoder/attention/out/kernel/v_row"], theirs["encoder/encoder/attention/out/kernel/v_col"]
    assert out[0].shape == (2, 64) and out[1].shape == (4, 2, 16)
    np.testing.assert_array_equal(ours("v_row", "encoder/layers_0/attention/out/kernel"), out[1][:, 0].ravel())
    np.testing.assert_array_equal(ours("v_col", "encoder/layers_0/attention/out/kernel"), out[0][0])
    wo = theirs["encoder/encoder/mlp/wo/kernel/v_row"], theirs["encoder/encoder/mlp/wo/kernel/v_col"]
    np.testing.assert_array_equal(ours("v_row", "encoder/layers_1/mlp/wo/kernel"), wo[0][1])
    np.testing.assert_array_equal(ours("v_col", "encoder/layers_1/mlp/wo/kernel"), wo[1][:, 1])
    scale = theirs["encoder/encoder/pre_mlp_layer_norm/scale/v"]
    np.testing.assert_array_equal(ours("v", "encoder/layers_1/pre_mlp_layer_norm/scale"), scale[:, 1])
    assert ours("v", "encoder/layers_1/mlp/wo/kernel").shape == (1,)


def test_optax_calls_the_first_axis_of_a_square_matrix_its_rows():
    """What the test above relies on."""
    optimizer = optimizers.adafactor(
        optimizers.constant_rate(1.0),
        min_dim_size_to_factor=2,
        clipping_threshold=None,
        multiply_by_parameter_scale=False,
    )
    rows, columns = np.array([1.0, 2.0, 3.0, 4.0]), np.array([5.0, 1.0, 2.0, 7.0])
    gradient = {"w": jnp.asarray(np.outer(rows, columns), jnp.float32)}
    _, state, _ = optimizer.update(gradient, optimizer.init(gradient), gradient, jnp.int32(0))
    found = checkpoints.as_dict(state)
    (row,) = [array for name, array in found.items() if name.endswith("v_row.w")]
    np.testing.assert_allclose(row / row[0], rows**2, rtol=1e-5)


@pytest.mark.parametrize("optimizer_state", [False, True])
def test_what_is_written_for_t5x_is_what_t5x_wrote(unscanned, tmp_path, optimizer_state):
    convert(str(unscanned), str(tmp_path / "ours"), optimizer_state=True)  # through stacked layers and back
    convert(str(tmp_path / "ours"), str(tmp_path / "theirs"), "t5x", optimizer_state=optimizer_state)
    written, original = tmp_path / "theirs" / "checkpoint_16", unscanned / "checkpoint_16"
    for section in ("target", "state/param_states"):
        found, expected = raw(written, section), raw(original, section)
        assert found.keys() == (expected.keys() if section == "target" or optimizer_state else set())
        for path in found:
            np.testing.assert_array_equal(found[path], expected[path], err_msg=path)
    trees = [serialization.msgpack_restore((at / "checkpoint").read_bytes()) for at in (written, original)]
    assert trees[0]["version"] == trees[1]["version"] == 3
    steps = [tree["optimizer"]["state"]["step"] for tree in trees]
    assert steps[0] == steps[1] == 16 and steps[0].dtype == steps[1].dtype
    leaf = [tree["optimizer"]["target"]["decoder"]["layers_0"]["mlp"]["wi"]["kernel"] for tree in trees]
    assert leaf[0].keys() == leaf[1].keys() and leaf[0]["kvstore"] == leaf[1]["kvstore"]
    # Each zarr folder's own metadata, too.
    name = "target.decoder.layers_0.mlp.wi.kernel/.zarray"
    assert (written / name).read_text() == (original / name).read_text()


def test_bfloat16_stored_as_uint16_is_read_as_such(tmp_path):
    """T5X's version 2 did so."""
    values = jnp.asarray([[1.5, -2.0], [0.25, 3.0]], jnp.bfloat16)
    store = ts.open(
        {
            "driver": "zarr",
            "dtype": "uint16",
            "metadata": {"shape": [2, 2]},
            "kvstore": {"driver": "file", "path": str(tmp_path / "target.w")},
        },
        create=True,
    ).result()
    store.write(np.asarray(values).view(np.uint16)).result()
    tensor = t5x._tensor(t5x.epath.Path(tmp_path), "w", {"driver": "zarr", "kvstore": {"path": "elsewhere/target.w/"}})
    assert tensor.dtype == jnp.bfloat16
    np.testing.assert_array_equal(tensor.read(), values)


@pytest.mark.parametrize("step, match", [(16, None), (7, "no checkpoint of step 7 under .*; there are 16")])
def test_a_step_is_chosen(unscanned, step, match):
    if match is None:
        assert formats.detect(unscanned, step) == ("t5x", t5x.epath.Path(unscanned / "checkpoint_16"))
    else:
        with pytest.raises(UserError, match=match):
            formats.detect(unscanned, step)


def test_a_lost_array_is_named(unscanned, tmp_path):
    broken = tmp_path / "checkpoint_16"
    shutil.copytree(unscanned / "checkpoint_16", broken)
    shutil.rmtree(broken / "target.decoder.layers_1.mlp.wo.kernel")
    with pytest.raises(UserError, match="decoder/layers_1/mlp/wo/kernel cannot be read"):
        convert(str(broken), str(tmp_path / "ours"))
    assert not (tmp_path / "ours").exists()


def test_training_starts_from_t5x_as_it_is(unscanned):
    config = dataclasses.replace(formats.read(unscanned)[1].config, scan_layers=True)
    optimizer = optimizers.adafactor(optimizers.constant_rate(), min_dim_size_to_factor=32)
    partitioner = MeshConfig(shape={"data": 2, "fsdp": 2, "tensor": 2}).build()
    trainer = Trainer(Model(config), optimizer, Loss(), partitioner)
    fresh = trainer.init()
    state, step = checkpoints.initialise(unscanned, fresh, trainer.shardings, restore_optimizer_state=True)
    assert step == UNSCANNED_STEP and int(state.step) == 0
    theirs = raw(unscanned / "checkpoint_16", "target")
    wi = state.params["decoder"]["layers"]["mlp"]["wi"]["kernel"]
    assert wi.sharding == trainer.shardings.params["decoder"]["layers"]["mlp"]["wi"]["kernel"]
    np.testing.assert_array_equal(wi[1], theirs["decoder/layers_1/mlp/wi/kernel"])
    slots = raw(unscanned / "checkpoint_16", "state/param_states")
    found = checkpoints.as_dict(state.opt_state)
    np.testing.assert_array_equal(
        found["inner_states.stack_of_2.inner_state.0.v_row.encoder.layers.mlp.wi.kernel"][1],
        slots["encoder/layers_1/mlp/wi/kernel/v_row"],
    )
    assert (np.asarray(found["inner_states.stack_of_2.inner_state.0.count"]) == UNSCANNED_STEP).all()
    other = Trainer(Model(dataclasses.replace(config, mlp_dim=64)), optimizer, Loss(), partitioner)
    with pytest.raises(UserError, match=r"encoder/layers/mlp/wi/kernel is \(2, 64, 128\), not \(2, 64, 64\)"):
        checkpoints.initialise(unscanned, other.init(), other.shardings)


def test_native_reader_sees_what_was_written(unscanned, tmp_path):
    convert(str(unscanned), str(tmp_path / "ours"))
    found = native.read(tmp_path / "ours")
    for path, array in raw(unscanned / "checkpoint_16", "target").items():
        np.testing.assert_array_equal(found.params[path].read(), array, err_msg=path)
    assert w.expected_params(found.config).keys() == found.params.keys()
