"""The same weights give what Hugging Face's T5 gives: logits, gradients, greedy text; and their names map both ways.

The reference values are stored (tests/fixtures/make_hugging_face.py says how they were made), so torch is not needed.
"""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import decoding
from t5x_lite.errors import UserError
from t5x_lite.interop.hugging_face import config_from_hugging_face, params_from_hugging_face, params_to_hugging_face
from t5x_lite.losses import Loss
from t5x_lite.models import Model
from t5x_lite.models.attention import relative_position_bucket

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
FAMILIES = ("t5_1_0", "t5_1_1")
TOLERANCE = 1e-5
UNREAD = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


@functools.cache
def stored(family):
    """{group: {name: array}} of one fixture file; the ungrouped `config` comes parsed."""
    groups = {}
    with np.load(FIXTURES / f"hugging_face_{family}.npz") as arrays:
        for key in arrays:
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = arrays[key]
    groups["config"] = json.loads(groups["config"][""].item())
    return groups


@functools.cache
def build(family, scanned, **changes):
    config = dataclasses.replace(config_from_hugging_face(stored(family)["config"]), scan_layers=scanned, **changes)
    return Model(config), params_from_hugging_face(stored(family)["weights"], config)


def outputs(model, params, batch):
    """The training loss (mean over target tokens), and what led to it."""
    logits = model.apply(params, batch)
    sums = Loss(z_loss=1e-4).sums(logits, batch["decoder_target_tokens"], batch["decoder_loss_weights"])
    return sums["loss"] / sums["weights"], (logits, model.encode(params, batch["encoder_input_tokens"]))


def inputs(golden):
    return {name: jnp.asarray(value) for name, value in golden.items() if name.endswith(("_tokens", "_weights"))}


# Both kinds of batch have one shape, so each model is compiled once.
outputs_and_gradients = jax.jit(jax.value_and_grad(outputs, argnums=1, has_aux=True), static_argnums=0)


@functools.cache
def run(family, scanned, kind):
    """loss, logits, encoder output, gradients by Hugging Face's names."""
    model, params = build(family, scanned)
    (loss, (logits, encoded)), gradients = outputs_and_gradients(model, params, inputs(stored(family)[kind]))
    return loss, np.asarray(logits), np.asarray(encoded), params_to_hugging_face(gradients, model.config)


def assert_close(actual, expected):
    worst = np.abs(np.asarray(actual) - expected).max()
    assert worst <= TOLERANCE * max(1.0, np.abs(expected).max())


each_model = pytest.mark.parametrize(
    "family, scanned",
    [(f, s) for f in FAMILIES for s in (True, False)],
    ids=lambda x: x if isinstance(x, str) else ("scanned" if x else "unrolled"),
)
each_family = pytest.mark.parametrize("family", FAMILIES)


@each_model
@pytest.mark.parametrize("kind", ["padded", "unpadded"])
def test_logits_encoder_output_and_loss(family, scanned, kind):
    golden = stored(family)[kind]
    sources, targets = golden["encoder_input_tokens"] > 0, golden["decoder_target_tokens"] > 0
    assert (kind == "unpadded") == (sources.all() and targets.all())
    loss, logits, encoded, _ = run(family, scanned, kind)
    assert logits.dtype == np.float32
    # Nobody reads the outputs at padding, and systems differ there.
    assert_close(encoded[sources], golden["encoder_output"][sources])
    assert_close(logits[targets], golden["logits"][targets])
    assert_close(loss, golden["loss"])


@each_model
def test_gradient_of_each_tensor(family, scanned):
    ours, theirs = run(family, scanned, "padded")[-1], stored(family)["gradients"]
    assert ours.keys() == theirs.keys()
    errors = {name: np.linalg.norm(ours[name] - g) / np.linalg.norm(g) for name, g in theirs.items()}
    assert max(errors.values()) <= TOLERANCE, max(errors.items(), key=lambda item: item[1])


@each_family
def test_loss_in_float64(family):
    """With rounding out of the way nothing is left: no constant is off by a little."""
    golden = stored(family)["padded"]
    with jax.enable_x64(True):
        model, params = build(family, True, dtype="float64", param_dtype="float64")
        loss, _ = jax.jit(outputs, static_argnums=0)(model, params, inputs(golden))
        assert loss.dtype == jnp.float64
        np.testing.assert_allclose(loss, golden["loss_float64"], rtol=1e-10)


@each_model
def test_greedy_text(family, scanned):
    model, params = build(family, scanned)
    golden = stored(family)["greedy"]
    ended = (golden["ids"] == 1).any(axis=1)
    assert ended.any() and not ended.all()
    decode = jax.jit(decoding.decode, static_argnums=(0, 3))
    ids, _ = decode(model, params, jnp.asarray(golden["encoder_input_tokens"]), golden["ids"].shape[1])
    np.testing.assert_array_equal(ids, golden["ids"])


@pytest.mark.parametrize("buckets, distance", [(32, 128), (16, 48)])
@pytest.mark.parametrize("direction", ["bidirectional", "causal"])
def test_relative_position_buckets(direction, buckets, distance):
    tables = stored("t5_1_0")["buckets"]
    ours = relative_position_bucket(tables["offsets"], direction == "bidirectional", buckets, distance)
    np.testing.assert_array_equal(ours, tables[f"{direction}_{buckets}_{distance}"])


@each_model
def test_every_parameter_has_a_name_and_comes_back(family, scanned):
    model, params = build(family, scanned)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), model.abstract_params())
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == shapes
    theirs = stored(family)["weights"]
    back = params_to_hugging_face(jax.tree.map(jnp.asarray, params), model.config)
    assert back.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)
        assert back[name].flags.c_contiguous, name


@each_family
def test_state_dict_with_all_aliases(family):
    model, params = build(family, True)
    weights = stored(family)["weights"]
    aliases = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    aliases += ["lm_head.weight"] if model.config.logits_via_embedding else []
    state = {**weights, **dict.fromkeys(aliases, weights["shared.weight"]), UNREAD: np.zeros((32, 4), np.float32)}
    for full in (state, {name: array for name, array in state.items() if name != "shared.weight"}):
        jax.tree.map(np.testing.assert_array_equal, params_from_hugging_face(full, model.config), params)
    for alias in aliases:
        with pytest.raises(UserError, match=alias):
            params_from_hugging_face({**state, alias: state[alias] + 1}, model.config)


def test_faulty_state_dicts_are_named():
    config = config_from_hugging_face(stored("t5_1_1")["config"])
    weights = stored("t5_1_1")["weights"]
    params = params_from_hugging_face(weights, config)
    query, scale = "encoder.block.1.layer.0.SelfAttention.q.weight", "decoder.block.2.layer.1.layer_norm.weight"
    lacking = {name: array for name, array in weights.items() if name != scale}
    with pytest.raises(UserError, match=f"missing: {scale}"):
        params_from_hugging_face(lacking, config)
    with pytest.raises(UserError, match="unknown: encoder.extra.bias"):
        params_from_hugging_face({**weights, "encoder.extra.bias": weights[scale]}, config)
    with pytest.raises(UserError, match=rf"another shape: {query} is \(32, 24\), not \(24, 32\)"):
        params_from_hugging_face({**weights, query: weights[query].T}, config)
    params["decoder"]["layers"]["mlp"]["wi_2"] = params["decoder"]["layers"]["mlp"].pop("wi_1")
    with pytest.raises(UserError, match="missing: decoder/layers_0/mlp/wi_1/k.*unknown: decoder/layers_0/mlp/wi_2/k"):
        params_to_hugging_face(params, config)


def test_configuration():
    values = stored("t5_1_1")["config"]
    config = config_from_hugging_face(values)
    assert config.to_dict() == {
        "vocab_size": 128,
        "emb_dim": 32,
        "num_heads": 4,
        "head_dim": 6,
        "mlp_dim": 64,
        "num_encoder_layers": 2,
        "num_decoder_layers": 3,
        "mlp_activations": ["gelu", "linear"],
        "logits_via_embedding": False,
        "dropout_rate": 0.1,
        "dtype": "float32",
        "param_dtype": "float32",
        "scan_layers": True,
        "remat": "none",
        "attention": "auto",
        "relpos_buckets": 32,
        "relpos_max_distance": 128,
        "architecture": "encoder_decoder",
        "shared_stacks": False,
        "relpos_per_layer": False,
        "scan_unroll": 1,
    }
    # What transformers 5 writes of an untied model, and what early 1.0 files leave out.
    newer = {**values, "tie_word_embeddings": True, "scale_decoder_outputs": False}
    assert config_from_hugging_face(newer) == config
    terse = {name: values[name] for name in ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "num_layers")}
    old = config_from_hugging_face(terse)
    assert (old.mlp_activations, old.logits_via_embedding, old.num_decoder_layers) == (("relu",), True, 2)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"model_type": "longt5"}, "longt5"),
        ({"feed_forward_proj": "gelu"}, "feed_forward_proj"),
        ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon"),
    ],
)
def test_configurations_of_other_models_are_refused(change, named):
    with pytest.raises(UserError, match=named):
        config_from_hugging_face({**stored("t5_1_1")["config"], **change})


def test_configuration_without_sizes_is_refused():
    with pytest.raises(UserError, match="d_model, num_heads"):
        config_from_hugging_face({"vocab_size": 128, "d_kv": 8, "d_ff": 64, "num_layers": 2})
