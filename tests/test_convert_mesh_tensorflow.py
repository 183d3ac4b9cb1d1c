"""Mesh TensorFlow's checkpoints: its variables' names, written with TensorFlow, and weights whose logits are known.

The names below are a list of their own, spelled as T5X's importer reads them
(https://github.com/google-research/t5x/blob/main/t5x/checkpoint_importer.py), not made from the reader's tables.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import checkpoints, cli, configuration
from t5x_lite.errors import UserError
from t5x_lite.interop import formats, mesh_tensorflow
from t5x_lite.models import Model

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


def stored(name):
    with np.load(FIXTURES / f"{name}.npz") as arrays:
        params, golden = (
            {key.removeprefix(prefix): arrays[key] for key in arrays if key.startswith(prefix)}
            for prefix in ("params/", "golden/")
        )
        return json.loads(arrays["config"].item()), params, golden


def variables(params, norm="layer_norm", last_norm="final_layer_norm"):
    """T5X's unscanned parameters under Mesh TensorFlow's names; with slots, a counter and the table nobody reads."""
    out = {"shared/embedding": params["token_embedder/embedding"], "global_step": np.int64(1000)}
    if "decoder/logits_dense/kernel" in params:
        out["decoder/logits/kernel"] = params["decoder/logits_dense/kernel"]
    for stack, attentions in (
        ("encoder", [("attention", "SelfAttention", "pre_attention_layer_norm")]),
        (
            "decoder",
            [
                ("self_attention", "SelfAttention", "pre_self_attention_layer_norm"),
                ("encoder_decoder_attention", "EncDecAttention", "pre_cross_attention_layer_norm"),
            ],
        ),
    ):
        out[f"{stack}/{last_norm}/scale"] = params[f"{stack}/{stack}_norm/scale"]
        out[f"{stack}/block_000/layer_000/SelfAttention/relative_attention_bias"] = params[
            f"{stack}/relpos_bias/rel_embedding"
        ]
        for i in range(2):
            for n, (ours, theirs, our_norm) in enumerate(attentions):
                layer = f"{stack}/block_{i:03d}/layer_{n:03d}"
                out[f"{layer}/{norm}/scale"] = params[f"{stack}/layers_{i}/{our_norm}/scale"]
                for kernel, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
                    out[f"{layer}/{theirs}/{letter}"] = params[f"{stack}/layers_{i}/{ours}/{kernel}/kernel"]
                    out[f"{layer}/{theirs}/{letter}_slot_vr"] = np.zeros(64, np.float32)
            layer = f"{stack}/block_{i:03d}/layer_{len(attentions):03d}"
            out[f"{layer}/{norm}/scale"] = params[f"{stack}/layers_{i}/pre_mlp_layer_norm/scale"]
            for kernel in ("wi", "wi_0", "wi_1", "wo"):
                if f"{stack}/layers_{i}/mlp/{kernel}/kernel" in params:
                    out[f"{layer}/DenseReluDense/{kernel}/kernel"] = params[f"{stack}/layers_{i}/mlp/{kernel}/kernel"]
    out["decoder/block_000/layer_001/EncDecAttention/relative_attention_bias"] = np.zeros((4, 32), np.float32)
    return out


def write(folder, arrays, step=1000):
    tf = pytest.importorskip("tensorflow")
    folder.mkdir(parents=True, exist_ok=True)
    names = list(arrays)
    with tf.device("CPU"):
        tensors = [tf.constant(arrays[name]) for name in names]
        tf.raw_ops.SaveV2(
            prefix=str(folder / f"model.ckpt-{step}"),
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=tensors,
        )
    return folder


@pytest.mark.parametrize(
    "name, norms, config",
    [
        ("t5x_tiny_v1_0", ("layer_norm", "final_layer_norm"), ""),
        (
            "t5x_tiny_v1_1",
            ("rms_norm", "rms_norm"),
            "DenseReluDense.dropout_rate = 0.0\n"
            "transformer_layers.DenseReluDense.activation = \\\n    ['gelu', 'linear']\n",
        ),
    ],
)
def test_logits_of_an_imported_model(name, norms, config, tmp_path):
    _, params, golden = stored(name)
    theirs = write(tmp_path / "theirs", variables(params, *norms))
    (theirs / "operative_config.gin").write_text(config)
    assert cli.main(["convert", f"--from={theirs}", f"--to={tmp_path}/ours"]) == 0
    configuration.clear()
    model, params, meta = checkpoints.load_for_inference(tmp_path / "ours")
    assert meta["step"] == 1000 and model.config.num_heads == 4 and model.config.head_dim == 16
    apply = jax.jit(Model(model.config).apply)
    batch = {key: jnp.asarray(golden[key]) for key in ("encoder_input_tokens", "decoder_input_tokens")}
    real = golden["decoder_target_tokens"] > 0
    worst = np.abs(np.asarray(apply(params, batch)) - golden["logits"])[real].max()
    assert worst <= 1e-5 * max(1.0, np.abs(golden["logits"]).max())


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """Two checkpoints, the newer one with a variable of no T5."""
    arrays = variables(stored("t5x_tiny_v1_0")[1])
    folder = write(tmp_path_factory.mktemp("mtf"), arrays)
    return write(folder, {**arrays, "decoder/block_000/layer_000/Memory/q": np.zeros(3, np.float32)}, 2000)


@pytest.mark.parametrize(
    "name, step, found",
    [
        ("", 1000, "model.ckpt-1000"),
        ("", None, "model.ckpt-2000"),
        ("model.ckpt-1000", None, "model.ckpt-1000"),
        ("model.ckpt-1000.index", None, "model.ckpt-1000"),
    ],
)
def test_a_checkpoint_is_named_by_its_folder_or_prefix(theirs, name, step, found):
    kind, path = formats.detect(theirs / name, step)
    assert (kind, path.name) == ("mesh_tensorflow", found)


def test_what_is_no_t5_is_named_and_can_be_dropped(theirs):
    with pytest.raises(UserError, match="no encoder-decoder T5 has: decoder/block_000/layer_000/Memory/q;"):
        formats.read(theirs)
    _, weights = formats.read(theirs, rules=[(".*/Memory/q", None)])
    assert weights.step == 2000 and weights.config.mlp_activations == ("relu",) and weights.config.logits_via_embedding
    np.testing.assert_array_equal(
        weights.params["decoder/layers_1/encoder_decoder_attention/out/kernel"].read(),
        stored("t5x_tiny_v1_0")[1]["decoder/layers_1/encoder_decoder_attention/out/kernel"],
    )


def test_the_operative_configuration_tells_the_activation(theirs, tmp_path):
    (tmp_path / "operative_config.gin").write_text("encoder/DenseReluDense.activation = 'silu'\n")
    assert mesh_tensorflow._operative(formats.epath.Path(tmp_path)) == {"mlp_activations": ["silu"]}
    (tmp_path / "operative_config.gin").write_text("DenseReluDense.activation = @mtf.gelu\n")
    with pytest.raises(UserError, match="DenseReluDense.activation = @mtf.gelu is no list"):
        mesh_tensorflow._operative(formats.epath.Path(tmp_path))


def test_without_tensorflow(theirs, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match="can only be read with TensorFlow"):
        formats.read(theirs, step=1000)
