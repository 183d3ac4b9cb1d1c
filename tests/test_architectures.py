"""The study's architectures and a bias table a layer: what may be seen, what is shared, and that decoding agrees."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import decoding, trainer
from t5x_lite.errors import UserError
from t5x_lite.losses import Loss
from t5x_lite.models import Model, T5Config
from t5x_lite.partitioning import path_name

ENCODER_DECODER = T5Config(
    vocab_size=64,
    emb_dim=16,
    num_heads=2,
    head_dim=6,
    mlp_dim=24,
    num_encoder_layers=2,
    num_decoder_layers=2,
    mlp_activations=("relu",),
    logits_via_embedding=True,
    relpos_buckets=8,
    relpos_max_distance=20,
)
MODELS = {
    "encoder_decoder": ENCODER_DECODER,
    "shared": dataclasses.replace(ENCODER_DECODER, shared_stacks=True),
    "per_layer": dataclasses.replace(ENCODER_DECODER, relpos_per_layer=True, logits_via_embedding=False),
    "causal_lm": dataclasses.replace(ENCODER_DECODER, architecture="causal_lm", num_encoder_layers=0),
    "prefix_lm": dataclasses.replace(ENCODER_DECODER, architecture="prefix_lm", num_encoder_layers=0),
    "prefix_lm_unrolled_per_layer": dataclasses.replace(
        ENCODER_DECODER, architecture="prefix_lm", num_encoder_layers=0, relpos_per_layer=True, scan_layers=False
    ),
}
INPUTS = np.array([[5, 6, 7, 8, 9, 1], [11, 12, 1, 0, 0, 0], [3, 1, 0, 0, 0, 0]], np.int32)
NO_EOS = 64  # an id that no model gives
TARGETS = np.array([[21, 22, 1, 0], [23, 24, 25, 1], [26, 1, 0, 0]], np.int32)


def rows(inputs=INPUTS, targets=TARGETS):
    return {
        "encoder_input_tokens": jnp.asarray(inputs),
        "decoder_input_tokens": jnp.asarray(np.pad(targets, ((0, 0), (1, 0)))[:, :-1]),
        "decoder_target_tokens": jnp.asarray(targets),
        "decoder_loss_weights": jnp.asarray(targets > 0, jnp.int32),
    }


@functools.cache
def build(name, dtype="float32"):
    """A model and parameters far from their initial values, so that biases, norms and every layer matter."""
    model = Model(dataclasses.replace(MODELS[name], param_dtype=dtype, dtype=dtype))
    rng = np.random.default_rng(0)

    def one(path, leaf):
        return jnp.asarray(rng.normal(size=leaf.shape) * 0.4 + path_name(path).endswith("scale"), leaf.dtype)

    return model, jax.tree_util.tree_map_with_path(one, model.abstract_params())


@functools.cache
def apply(name):
    return jax.jit(build(name)[0].apply)


def logits(name, batch):
    """[b, t, v] of the targets alone, whatever the architecture."""
    model, params = build(name)
    out, arranged = apply(name)(params, batch), model.arranged(batch)
    if not model.config.is_language_model:
        return np.asarray(out)
    t = batch["decoder_target_tokens"].shape[1]
    starts = np.argmax(np.asarray(arranged["decoder_loss_weights"]) > 0, axis=1)
    return np.stack([np.asarray(row)[start : start + t] for row, start in zip(out, starts)])


def logprobs(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("name", MODELS)
def test_cached_decoding_is_repeated_application(name):
    """Each decoded token is the argmax of the whole model run on what came before; rows of unequal inputs."""
    model, params = build(name)
    ids, scores = jax.jit(decoding.decode, static_argnums=(0, 3, 4))(model, params, jnp.asarray(INPUTS), 5, NO_EOS)
    ids = np.asarray(ids)
    total = np.zeros(len(ids))
    grown = np.zeros((len(ids), 5), np.int32)
    for i in range(5):
        # What stands at place i and later is not seen: any id will do, as long as it is no padding.
        tokens = np.where(np.arange(5) < i, grown, 9)
        found = logprobs(logits(name, rows(targets=tokens))[:, i])
        grown[:, i] = found.argmax(-1)
        np.testing.assert_array_equal(ids[:, i], grown[:, i])
        total += found.max(-1)
    np.testing.assert_allclose(scores, total, rtol=1e-5)


@pytest.mark.parametrize("name", ["causal_lm", "prefix_lm"])
def test_beams_ranks_and_prefixes_of_language_models(name):
    """The best beam of all that are possible, ranked as it is scored; a prefix is what the beam goes on from."""
    model, params = build(name)
    beams = functools.partial(decoding.beam_search, model, max_length=2, eos_id=NO_EOS, length_penalty=0.0)
    ids, scores = jax.jit(functools.partial(beams, num_beams=64))(params, jnp.asarray(INPUTS))
    pairs = np.stack(np.meshgrid(np.arange(1, 64), np.arange(1, 64), indexing="ij"), -1).reshape(-1, 2)
    ranks = np.asarray(jax.jit(decoding.rank, static_argnums=0)(model, params, jnp.asarray(INPUTS), jnp.asarray(pairs)))
    np.testing.assert_array_equal(ids[:, 0], pairs[ranks.argmax(1)])
    np.testing.assert_allclose(scores[:, 0], ranks.max(1), rtol=1e-5)
    batch = rows(targets=np.asarray(ids[:, 0]))
    np.testing.assert_allclose(decoding.score(model, params, batch), ranks.max(1), rtol=1e-5)
    prefix = ids[:, 0, :1]
    from_prefix, _ = jax.jit(functools.partial(beams, num_beams=2))(params, jnp.asarray(INPUTS), decoder_prefix=prefix)
    np.testing.assert_array_equal(from_prefix[:, 0], ids[:, 0])


@pytest.mark.parametrize("name", ["shared", "causal_lm", "prefix_lm"])
def test_scores_are_sums_over_the_targets(name):
    model, params = build(name)
    found = logprobs(logits(name, rows()))
    expected = [sum(found[r, i, t] for i, t in enumerate(row) if t) for r, row in enumerate(TARGETS)]
    np.testing.assert_allclose(jax.jit(decoding.score, static_argnums=0)(model, params, rows()), expected, rtol=1e-5)
    sums = trainer.eval_step(model, params, rows())
    np.testing.assert_allclose(sums["loss"], -sum(expected), rtol=1e-5)


def changed(name, place):
    """Positions of a row of 6 inputs and 4 targets whose logits move when the token read at `place` is another."""
    model, params = build(name)
    batch = model.arranged({k: v[:1] for k, v in rows(targets=np.array([[21, 22, 23, 1]] * 3)).items()})
    other = {**batch, "decoder_input_tokens": batch["decoder_input_tokens"].at[0, place].set(40)}
    moved = jnp.abs(apply(name)(params, batch) - apply(name)(params, other)).max(-1)[0] > 0
    return np.flatnonzero(np.asarray(moved)).tolist()


def test_who_sees_whom():
    # Read at 0: the start token; at 1 … 6: the inputs; at 7 … 9: the targets.
    for place in range(10):
        assert changed("causal_lm", place) == list(range(place, 10))
        assert changed("prefix_lm", place) == list(range(0 if place <= 6 else place, 10))


@pytest.mark.parametrize("name", ["causal_lm", "prefix_lm"])
def test_packed_rows_of_a_language_model_are_as_if_alone(name):
    model, params = build(name)
    alone = model.arranged(rows())
    lengths = np.asarray((alone["decoder_target_tokens"] > 0).sum(1))
    packed = {key: jnp.concatenate([value[i, :n] for i, n in enumerate(lengths)])[None] for key, value in alone.items()}
    packed["decoder_segment_ids"] = jnp.asarray(np.repeat(np.arange(3) + 1, lengths))[None]
    loss = jax.jit(lambda p, b: trainer.loss_and_grads(model, Loss(), p, b, 0, 0))
    (grads, sums), (packed_grads, packed_sums) = loss(params, alone), loss(params, packed)
    np.testing.assert_allclose(packed_sums["loss"], sums["loss"], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(packed_grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


def test_a_causal_language_model_is_a_decoder_that_hears_nothing():
    """An encoder-decoder whose cross-attention writes zeros gives the language model's logits."""
    model, params = build("encoder_decoder")
    decoder = {**params["decoder"], "layers": {**params["decoder"]["layers"]}}
    cross = decoder["layers"]["encoder_decoder_attention"]
    decoder["layers"]["encoder_decoder_attention"] = {
        **cross,
        "out": {"kernel": jnp.zeros_like(cross["out"]["kernel"])},
    }
    deaf = model.apply({**params, "decoder": decoder}, rows())
    layers = {k: v for k, v in decoder["layers"].items() if "cross" not in k and k != "encoder_decoder_attention"}
    own = {"token_embedder": params["token_embedder"], "decoder": {**decoder, "layers": layers}}
    batch = {name: value for name, value in rows().items() if name != "encoder_input_tokens"}
    np.testing.assert_allclose(apply("causal_lm")(own, batch), deaf, atol=1e-5)


def test_shared_stacks_equal_two_stacks_of_the_same_numbers():
    shared, params = build("shared")
    assert sorted(params) == ["decoder", "token_embedder"]
    layers = params["decoder"]["layers"]
    encoder = {
        "layers": {
            "pre_attention_layer_norm": layers["pre_self_attention_layer_norm"],
            "attention": layers["self_attention"],
            "pre_mlp_layer_norm": layers["pre_mlp_layer_norm"],
            "mlp": layers["mlp"],
        },
        "relpos_bias": params["decoder"]["relpos_bias"],
        "encoder_norm": params["decoder"]["decoder_norm"],
    }
    two = build("encoder_decoder")[0].apply({**params, "encoder": encoder}, rows())
    np.testing.assert_allclose(shared.apply(params, rows()), two, atol=1e-5)


def test_a_table_a_layer_equals_one_table_where_all_are_the_same():
    model, params = build("per_layer")
    tables = {stack: params[stack]["layers"]["relpos_bias"]["rel_embedding"][:1] for stack in ("encoder", "decoder")}
    same = {
        stack: {
            **params[stack],
            "layers": {**params[stack]["layers"], "relpos_bias": {"rel_embedding": jnp.repeat(table, 2, axis=0)}},
        }
        for stack, table in tables.items()
    }
    one = {
        stack: {
            **params[stack],
            "relpos_bias": {"rel_embedding": table[0]},
            "layers": {k: v for k, v in params[stack]["layers"].items() if k != "relpos_bias"},
        }
        for stack, table in tables.items()
    }
    plain = Model(dataclasses.replace(model.config, relpos_per_layer=False))
    np.testing.assert_allclose(
        model.apply({**params, **same}, rows()), plain.apply({**params, **one}, rows()), atol=1e-5
    )
    assert not np.allclose(model.apply(params, rows()), model.apply({**params, **same}, rows()), atol=1e-3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architecture": "prefix_lm"}, "num_encoder_layers = 0"),
        ({"architecture": "decoder"}, "one of encoder_decoder, prefix_lm, causal_lm"),
        ({"shared_stacks": True, "num_encoder_layers": 3}, "as many encoder as decoder layers"),
        ({"num_encoder_layers": 0}, "at least 1"),
    ],
)
def test_shapes_that_make_no_model_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(ENCODER_DECODER, **changes)


def test_rows_packed_for_an_encoder_are_refused():
    model, params = build("causal_lm")
    with pytest.raises(UserError, match="give unpacked rows"):
        model.apply(params, {**rows(), "encoder_segment_ids": jnp.ones_like(INPUTS)})
