"""What finetuning methods add to a model: nothing at the start, then what the papers say."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finetuned_models import ADDED, CONFIG, EVERYTHING, D, F, size
from tiny_models import differing, make_batch, random_params, unstacked

from t5x_lite import decoding, finetuning, trainer
from t5x_lite.errors import UserError
from t5x_lite.models import Model
from t5x_lite.models.finetuning_config import IA3, BitFit, LoRA, PromptTuning
from t5x_lite.partitioning import leaves_by_path as paths


@functools.cache
def initial(config):
    return jax.jit(Model(config).init)(jax.random.key(0))


@functools.cache
def compiled(config, dropped=False):
    def apply(params, batch):
        keys = trainer.dropout_keys(0, jnp.int32(0), jnp.arange(8)) if dropped else None
        return Model(config).apply(params, batch, keys)

    return jax.jit(apply)


def logits(config, params, dropped=False):
    return np.asarray(compiled(config, dropped)(params, make_batch()))


@pytest.mark.parametrize("name", ADDED)
def test_what_is_added_has_the_size_of_its_formula(name):
    fields, added = ADDED[name]
    for scan_layers in (True, False):
        model = Model(dataclasses.replace(CONFIG, scan_layers=scan_layers, **fields))
        new = finetuning.select(model.abstract_params(), lambda path, model=model: path in model.added_paths)
        assert size(new) == added == size(model.abstract_params()) - size(Model(CONFIG).abstract_params())


@pytest.mark.parametrize("name, rate", [("adapters_twice", 0.1), ("lora", 0.1), ("ia3", 0.0), ("bitfit", 0.0)])
def test_at_the_start_the_logits_are_the_plain_models_bit_by_bit(name, rate):
    """Also with dropout: no mask of the plain model moves."""
    plain_config = dataclasses.replace(CONFIG, dropout_rate=rate)
    config = dataclasses.replace(plain_config, **ADDED[name][0])
    params, plain = initial(config), initial(CONFIG)
    shared = {path: leaf for path, leaf in paths(params).items() if path in paths(plain)}
    assert not differing(shared, paths(plain))
    expected = logits(plain_config, plain, rate > 0)
    assert (logits(config, params, rate > 0) == expected).all()
    added = finetuning.select(random_params(config), lambda path: path not in paths(plain))
    assert np.abs(logits(config, finetuning.join(plain, added), rate > 0) - expected).max() > 0.1, "it has an effect"


@functools.cache
def everything():
    """A model with all methods at once, away from the start, and its logits."""
    params = random_params(EVERYTHING)
    return Model(EVERYTHING), params, logits(EVERYTHING, params)


@pytest.mark.slow
def test_unrolled_layers_compute_the_same():
    _, params, expected = everything()
    model = Model(dataclasses.replace(EVERYTHING, scan_layers=False))
    assert paths(unstacked(params)).keys() == paths(model.abstract_params()).keys()
    np.testing.assert_allclose(logits(model.config, unstacked(params)), expected, rtol=1e-5, atol=1e-5)


def test_decoding_with_a_cache_computes_the_same():
    model, params, expected = everything()
    batch = make_batch()

    @jax.jit
    def stepwise(params, inputs, tokens):
        cache = model.init_cache(params, model.encode(params, inputs), inputs, tokens.shape[1])
        out = []
        for i in range(tokens.shape[1]):
            logits, cache = model.decode_step(params, cache, tokens[:, i], jnp.int32(i))
            out.append(logits)
        return jnp.stack(out, axis=1)

    found = stepwise(params, batch["encoder_input_tokens"], batch["decoder_input_tokens"])
    real = batch["decoder_target_tokens"] > 0
    np.testing.assert_allclose(np.asarray(found)[real], expected[real], rtol=1e-4, atol=1e-4)


def test_merged_kernels_compute_the_same():
    config = dataclasses.replace(
        CONFIG,
        lora=LoRA(4, alpha=12.0, kernels=(".*/kernel",)),
        ia3=IA3(),
        bitfit=BitFit(),
        dtype="float64",
        param_dtype="float64",
    )
    with jax.enable_x64(True):
        params = random_params(config)
        merged_config, merged = finetuning.merge(config, params)
        assert merged_config == dataclasses.replace(config, lora=None, ia3=None)
        assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, Model(merged_config).abstract_params())
        before, after = logits(config, params), logits(merged_config, merged)
        _, unrolled = finetuning.merge(config, unstacked(params))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), unrolled, unstacked(merged))
    np.testing.assert_allclose(after, before, rtol=1e-10, atol=1e-10 * np.abs(before).max())


def test_merged_kernels_compute_the_same_in_float32():
    config = dataclasses.replace(CONFIG, lora=LoRA(4))
    # A change of the size that training makes: larger ones would test how far the network itself spreads rounding.
    added = jax.tree.map(lambda x: x / 4, finetuning.select(random_params(config), lambda path: "lora" in path))
    params = finetuning.join(initial(CONFIG), added)
    merged_config, merged = finetuning.merge(config, params)
    assert merged_config == CONFIG
    before, after = logits(config, params), logits(CONFIG, merged)
    assert np.abs(before - logits(CONFIG, initial(CONFIG))).max() > 0.1
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-6 * np.abs(before).max())


def test_products_and_adapters_are_what_the_papers_say():
    """Written out once more in NumPy, from one layer of the encoder."""
    from flax import nnx

    from t5x_lite.models.encoder_decoder import EncoderLayer
    from t5x_lite.models.finetuning import adapted, extend

    config = EVERYTHING
    layer = extend(EncoderLayer(config, rngs=nnx.Rngs(params=0)), config, "encoder/layers", rngs=nnx.Rngs(params=1))
    rng = np.random.default_rng(1)
    nnx.update(
        layer, jax.tree.map(lambda x: x + 0.2 * rng.standard_normal(x.shape).astype("float32"), nnx.state(layer))
    )
    x = np.random.default_rng(0).standard_normal((2, 3, D)).astype(np.float32)

    def array(path):
        return np.asarray(functools.reduce(getattr, path.split("."), layer)[...], np.float64)

    value = x @ array("attention.value.kernel") + 4.0 * x @ array("attention.value.lora_a") @ array(
        "attention.value.lora_b"
    )
    value = (value + array("attention.value.bias")) * array("attention.value.ia3_output")
    np.testing.assert_allclose(layer.attention.value(x), value, rtol=1e-4, atol=1e-4)
    hidden = np.random.default_rng(1).standard_normal((2, 3, F)).astype(np.float32)
    out = (hidden * array("mlp.wo.ia3_input")) @ array("mlp.wo.kernel") + array("mlp.wo.bias")
    np.testing.assert_allclose(layer.mlp.wo(hidden), out, rtol=1e-4, atol=1e-4)
    assert not hasattr(layer.attention.out, "lora_scale") and layer.attention.key.lora_a is None
    normal = (
        x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6) * array("mlp_adapter.layer_norm.scale")
    )
    adapter = x + np.maximum(normal @ array("mlp_adapter.wi.kernel"), 0) @ array("mlp_adapter.wo.kernel")
    np.testing.assert_allclose(adapted(layer, "mlp", x, None), adapter, rtol=1e-4, atol=1e-4)


def test_a_prompt_of_tokens_is_these_tokens_in_front():
    """Mask, relative positions, both attentions and decoding: as if the text were longer."""
    config = dataclasses.replace(CONFIG, prompt=PromptTuning(5, "random"))
    params = initial(CONFIG)
    ids = np.array([7, 3, 200, 90, 7])
    prompted = {**params, "prompt": {"embedding": params["token_embedder"]["embedding"][ids]}}
    batch = make_batch()
    longer = {**batch, "encoder_input_tokens": np.concatenate([np.tile(ids, (8, 1)), batch["encoder_input_tokens"]], 1)}
    longer["encoder_input_tokens"] = longer["encoder_input_tokens"].astype(np.int32)
    expected = np.asarray(jax.jit(Model(CONFIG).apply)(params, longer))
    np.testing.assert_allclose(logits(config, prompted), expected, rtol=1e-6, atol=1e-6)
    decode = jax.jit(decoding.decode, static_argnums=(0, 3))
    found = decode(Model(config), prompted, batch["encoder_input_tokens"], 4)
    again = decode(Model(CONFIG), params, longer["encoder_input_tokens"], 4)
    assert (found[0] == again[0]).all() and (np.asarray(found[0]) > 0).any()
    np.testing.assert_allclose(found[1], again[1], rtol=1e-5)


@pytest.mark.parametrize("start", ["vocabulary", "random"])
def test_where_a_prompt_starts(start):
    config = dataclasses.replace(CONFIG, prompt=PromptTuning(20, start, sampled_from=100))
    params = initial(config)
    table = np.asarray(params["token_embedder"]["embedding"])
    rows = np.asarray(params["prompt"]["embedding"])
    other = {**params, "token_embedder": {"embedding": params["token_embedder"]["embedding"] + 1.0}}
    fresh = np.asarray(Model(config).with_fresh_prompt(other, jax.random.key(1))["prompt"]["embedding"])
    if start == "random":
        assert np.abs(rows).max() <= 0.5 and 0.25 < np.abs(rows).mean() * 1.2 < 0.35 and (fresh == rows).all()
        return
    for found, among in ((rows, table), (fresh, table + 1.0)):
        matches = (found[:, None] == among[None]).all(-1)
        ids = matches.argmax(1)
        assert matches.any(1).all() and ids.min() >= 3 and ids.max() < 100 and len(set(ids)) == 20


def test_packed_rows_have_no_prompt():
    model = Model(dataclasses.replace(CONFIG, prompt=PromptTuning(5)))
    batch = make_batch()
    packed = {
        **batch,
        "encoder_segment_ids": np.ones_like(batch["encoder_input_tokens"]),
        "decoder_segment_ids": np.ones_like(batch["decoder_input_tokens"]),
    }
    with pytest.raises(UserError, match="SeqioSource.packing = False"):
        jax.eval_shape(model.apply, model.abstract_params(), packed)
