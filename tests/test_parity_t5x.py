"""T5X's own checkpoints and outputs: logits, losses, scores, packing and greedy text.

tests/fixtures/pack_t5x.py says where the stored values come from.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import decoding
from t5x_lite.losses import Loss
from t5x_lite.models import Model, T5Config

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
TOLERANCE = 1e-5
CONFIG_KEYS = {
    **{
        name: name
        for name in (
            "vocab_size",
            "emb_dim",
            "num_heads",
            "head_dim",
            "mlp_dim",
            "num_encoder_layers",
            "num_decoder_layers",
            "mlp_activations",
            "logits_via_embedding",
        )
    },
    "relative_attention_num_buckets": "relpos_buckets",
    "relative_attention_max_distance": "relpos_max_distance",
}
BATCH = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights")
SEGMENTS = ("encoder_segment_ids", "encoder_positions", "decoder_segment_ids", "decoder_positions")


@functools.cache
def stored(name):
    """Configuration, parameters by path, golden arrays by name."""
    with np.load(FIXTURES / f"{name}.npz") as arrays:
        config = json.loads(arrays["config"].item())
        params, golden = (
            {key.removeprefix(prefix): arrays[key] for key in arrays if key.startswith(prefix)}
            for prefix in ("params/", "golden/")
        )
    return config, params, golden


@functools.cache
def build(name, scanned):
    values, flat, _ = stored(name)
    config = T5Config.from_dict(
        {ours: values[theirs] for theirs, ours in CONFIG_KEYS.items()} | {"scan_layers": scanned}
    )
    params = {}
    for path, array in stack_layers(flat).items() if scanned else flat.items():
        *parents, leaf = path.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, params)[leaf] = jnp.asarray(array)
    return Model(config), params


def stack_layers(flat):
    """encoder/layers_0/x, encoder/layers_1/x -> encoder/layers/x with a leading axis."""
    stacked = {}
    for path, array in flat.items():
        stack, _, rest = path.partition("/layers_")
        number, _, rest = rest.partition("/")
        if not rest:
            stacked[path] = array
        elif number == "0":
            depth = sum(other.startswith(f"{stack}/layers_") and other.endswith(f"/{rest}") for other in flat)
            stacked[f"{stack}/layers/{rest}"] = np.stack([flat[f"{stack}/layers_{i}/{rest}"] for i in range(depth)])
    return stacked


def outputs(model, params, batch):
    """The loss as a sum over target tokens, and what led to it."""
    logits = model.apply(params, batch)
    sums = Loss(z_loss=1e-4).sums(logits, batch["decoder_target_tokens"], batch["decoder_loss_weights"])
    scores = decoding.score(model, params, batch)
    return sums["loss"], (logits, model.encode(params, batch["encoder_input_tokens"]), scores)


@functools.cache
def run(name, scanned, packed):
    """loss, logits, encoder output (of no use when packed), sequence scores, gradients."""
    model, params = build(name, scanned)
    golden = stored(name)[2]
    batch = {key: golden[f"packed_{key}"] for key in BATCH + SEGMENTS} if packed else {k: golden[k] for k in BATCH}
    function = jax.jit(jax.value_and_grad(outputs, argnums=1, has_aux=True), static_argnums=0)
    (loss, others), gradients = function(model, params, jax.tree.map(jnp.asarray, batch))
    return *(np.asarray(x) for x in (loss, *others)), jax.tree.map(np.asarray, gradients)


def assert_close(actual, expected):
    worst = np.abs(np.asarray(actual) - expected).max()
    assert worst <= TOLERANCE * max(1.0, np.abs(expected).max())


def assert_same_gradients(actual, expected):
    def error(a, e):
        return np.linalg.norm(a - e) / np.linalg.norm(e)

    errors = jax.tree_util.tree_leaves_with_path(jax.tree.map(error, actual, expected))
    worst = max(errors, key=lambda item: item[1])
    assert worst[1] <= TOLERANCE, worst


each_model = pytest.mark.parametrize(
    "name, scanned",
    [(n, s) for n in ("t5x_tiny_v1_0", "t5x_tiny_v1_1") for s in (True, False)],
    ids=lambda x: x if isinstance(x, str) else ("scanned" if x else "unrolled"),
)


@each_model
def test_parameter_paths_and_shapes(name, scanned):
    model, params = build(name, scanned)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), model.abstract_params())
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == shapes


@each_model
def test_outputs_of_padded_examples(name, scanned):
    golden = stored(name)[2]
    loss, logits, encoded, scores, _ = run(name, scanned, packed=False)
    sources, targets = golden["encoder_input_tokens"] > 0, golden["decoder_target_tokens"] > 0
    # T5X masks the decoder's self-attention at padding too, so only real positions can agree.
    assert_close(encoded[sources], golden["encoder_output"][sources])
    assert_close(logits[targets], golden["logits"][targets])
    assert_close(loss, golden["loss"])
    assert_close(scores, golden["sequence_scores"])


@each_model
def test_packed_examples_are_as_if_alone(name, scanned):
    golden = stored(name)[2]
    loss, logits, _, scores, gradients = run(name, scanned, packed=True)
    real = golden["packed_decoder_target_tokens"] > 0
    assert_close(logits[real], golden["packed_logits"][real])

    alone_loss, alone_logits, _, alone_scores, alone_gradients = run(name, scanned, packed=False)
    for row, targets in enumerate(golden["decoder_target_tokens"]):
        inside = golden["packed_decoder_segment_ids"][0] == row + 1
        n = inside.sum()
        np.testing.assert_array_equal(golden["packed_decoder_target_tokens"][0, inside], targets[:n])
        assert_close(logits[0, inside], alone_logits[row, :n])
    # The loss is a sum over tokens, so the packed row has the sum of its examples' gradients.
    assert_close(loss, alone_loss)
    assert_close(scores, alone_scores.sum(keepdims=True))
    assert_same_gradients(gradients, alone_gradients)


@each_model
def test_greedy_text(name, scanned):
    model, params = build(name, scanned)
    golden = stored(name)[2]
    decode = jax.jit(decoding.decode, static_argnums=(0, 3))
    ids, _ = decode(model, params, jnp.asarray(golden["decode_encoder_input_tokens"]), golden["greedy_ids"].shape[1])
    np.testing.assert_array_equal(ids, golden["greedy_ids"])
