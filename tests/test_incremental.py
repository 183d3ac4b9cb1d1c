"""Prefixes, several sequences, several models and ranked choices, against the full model's logits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import random_params

from t5x_lite import decoding, incremental
from t5x_lite.errors import UserError
from t5x_lite.models import Model, T5Config
from t5x_lite.partitioning import MeshConfig

V, LENGTH, EOS = 40, 8, 1
MODEL = Model(
    T5Config(
        vocab_size=V,
        emb_dim=16,
        num_heads=2,
        head_dim=8,
        mlp_dim=32,
        num_encoder_layers=1,
        num_decoder_layers=1,
        scan_layers=False,
    )
)
SAMPLE = functools.partial(decoding.sample, seed=3, temperature=1.3, top_k=20)
jit_decode = jax.jit(decoding.decode, static_argnames=("model", "max_length", "choose", "num_return_sequences"))
apply = jax.jit(MODEL.apply)


@pytest.fixture(scope="module")
def members():
    """Three sets of parameters."""
    return [jax.tree.map(lambda leaf: leaf * 2.0, random_params(MODEL.config, seed)) for seed in range(3)]


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, V, (8, 10)).astype(np.int32)
    tokens[2, 5:] = tokens[5, 3:] = tokens[7, :] = 0  # the last is a filler
    return tokens


# Rows without, with a short and with a long prefix.
PREFIX = np.array([[0, 0, 0], [5, 0, 0], [6, 7, 8], [9, 1, 3], [0, 0, 0], [4, 4, 0], [2, 0, 0], [5, 5, 5]], np.int32)


def mean_logits(members, inputs, ids):
    batch = {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.pad(ids, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": np.ones_like(ids),
    }
    return np.mean([np.asarray(apply(params, batch), np.float64) for params in members], axis=0)


def check(members, inputs, prefix, ids, scores, eos, choose=decoding.greedy, number=0):
    """Every token is the one that is given, or that the full model's mean logits lead to; scores add up."""
    logits = mean_logits(members, inputs, ids)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    rows = np.arange(len(ids), dtype=np.int32)
    prefix = np.pad(prefix, ((0, 0), (0, LENGTH - prefix.shape[1])))
    done, total = inputs.sum(1) == 0, np.zeros(len(ids))
    for i in range(LENGTH):
        chosen = choose(jnp.asarray(logits[:, i], jnp.float32), rows, np.full_like(rows, number), jnp.int32(i))
        given = prefix[:, i] > 0
        expected = np.where(done, 0, np.where(given, prefix[:, i], chosen))
        np.testing.assert_array_equal(ids[:, i], expected, err_msg=f"position {i}")
        total += np.where(done | given, 0, log_probs[rows, i, ids[:, i]])
        done |= (ids[:, i] == eos) & ~given
    np.testing.assert_allclose(scores, total, atol=1e-4)
    return done


def ending_token(ids):
    """One that some rows have after the prefixes, to serve as EOS."""
    return np.bincount(ids[:-1, 3:-2].ravel(), minlength=V)[2:].argmax() + 2


@pytest.mark.parametrize("choose", [decoding.greedy, SAMPLE], ids=["greedy", "sample"])
@pytest.mark.parametrize("averaged", [False, True], ids=["one", "three_averaged"])
def test_prefixes_are_forced_and_models_averaged(members, inputs, averaged, choose):
    params, used = (tuple(members), members) if averaged else (members[0], members[:1])
    run = functools.partial(jit_decode, MODEL, params, inputs, LENGTH, choose=choose)
    eos = int(ending_token(np.asarray(run(eos_id=V + 1, decoder_prefix=PREFIX)[0])))
    forced = PREFIX.copy()
    forced[3, 1] = eos  # a given EOS ends nothing
    for prefix in (forced, np.zeros_like(PREFIX)):
        ids, scores = map(np.asarray, run(eos_id=eos, decoder_prefix=prefix))
        done = check(used, inputs, prefix, ids, scores, eos, choose)
        assert not ids[-1].any() and scores[-1] == 0
        if prefix is forced:
            assert 0 < done[:-1].sum() < 7


def test_no_prefix_is_an_empty_one(members, inputs):
    ids, scores = jit_decode(MODEL, members[0], inputs, LENGTH, EOS)
    empty = jit_decode(MODEL, members[0], inputs, LENGTH, EOS, decoder_prefix=np.zeros((8, 3), np.int32))
    np.testing.assert_array_equal(ids, empty[0])
    np.testing.assert_array_equal(scores, empty[1])
    with pytest.raises(UserError, match="9 tokens .*Decoder.max_length = 8"):
        decoding.decode(MODEL, members[0], inputs, LENGTH, decoder_prefix=jnp.ones((8, 9), jnp.int32))


@pytest.mark.parametrize("architecture", ["encoder_decoder", "causal_lm", "prefix_lm"])
def test_prefixes_are_read_at_once(inputs, architecture):
    layers = 2 if architecture == "encoder_decoder" else 0
    model = Model(
        dataclasses.replace(
            MODEL.config, architecture=architecture, num_encoder_layers=layers, num_decoder_layers=2, scan_layers=True
        )
    )
    params = jax.jit(model.init)(jax.random.key(0))
    prefix = np.maximum(PREFIX, 1)[:, :2]
    start = jax.jit(lambda params: incremental.start(model, params, inputs, LENGTH, 3, prefix))(params)
    assert start.position == 2 and (start.ids[:7, :2] == prefix[:7]).all() and not start.ids[:, 2:].any()
    assert (start.last[:7] == prefix[:7, 1]).all()
    if architecture == "encoder_decoder":  # which the three sequences of an input share
        assert start.cache["cross"][0].shape[1] == len(inputs)

    @jax.jit
    def by_steps(params):
        start = incremental.start(model, params, inputs, LENGTH, 3)
        first = jnp.repeat(start.last, 3)
        _, cache = model.decode_step(params, start.cache, first, 0)
        return model.decode_step(params, cache, jnp.repeat(prefix[:, 0], 3), 1)[1]

    real = np.repeat(inputs.any(1), 3)
    for at_once, step_by_step in zip(start.cache["self"], by_steps(params)["self"], strict=True):
        np.testing.assert_allclose(at_once[:, real], step_by_step[:, real], atol=1e-5)


def test_sequences_of_a_row_have_noise_of_their_own_and_the_best_is_first(members, inputs):
    n = 3
    run = functools.partial(jit_decode, MODEL, members[0], inputs, LENGTH, EOS, choose=SAMPLE, num_return_sequences=n)
    ids, scores = map(np.asarray, run())
    assert ids.shape == (8, n, LENGTH) and scores.shape == (8, n)
    assert (np.diff(scores, axis=1) <= 0).all() and (np.diff(scores, axis=1) < 0).any(axis=1).sum() >= 5

    @jax.jit
    def alone(number):
        def choose(logits, row_ids, numbers, position):
            return SAMPLE(logits, row_ids, numbers + number, position)

        return decoding.decode(MODEL, members[0], inputs, LENGTH, EOS, choose=choose)

    each = [alone(number) for number in range(n)]
    order = np.argsort([-np.asarray(s) for _, s in each], axis=0, kind="stable").T
    for row in range(8):
        np.testing.assert_array_equal(ids[row], [each[number][0][row] for number in order[row]])
    # The same on a mesh, and for rows that have other neighbours.
    partitioner = MeshConfig({"data": 2, "fsdp": 2, "tensor": 2}).build()
    sharded = jax.device_put(members[0], partitioner.tree(MODEL.abstract_params(), MODEL.logical_axes()))
    decoder = decoding.Decoder(LENGTH, "sample", temperature=1.3, top_k=20, seed=3, num_return_sequences=n)
    backwards = np.arange(8, dtype=np.int32)[::-1]
    with partitioner.activate():
        there = jax.jit(lambda p, x, r: decoder(MODEL, p, x, EOS, r))(
            sharded, *(jax.device_put(x, partitioner.batch) for x in (inputs[::-1], backwards))
        )
    np.testing.assert_array_equal(there[0][::-1], ids)
    np.testing.assert_allclose(there[1][::-1], scores, atol=1e-4)


class Watching:
    """The model, which notes how many rows it encoded."""

    def __init__(self):
        self.config, self.encoded, self.init_cache = MODEL.config, [], MODEL.init_cache
        self.decode_step, self.first_tokens = MODEL.decode_step, MODEL.first_tokens

    def encode(self, params, tokens):
        self.encoded.append(tokens.shape)
        return MODEL.encode(params, tokens)


@pytest.mark.parametrize("averaged", [False, True], ids=["one", "three_averaged"])
def test_rank_is_the_score_of_each_choice(members, inputs, averaged):
    params = tuple(members) if averaged else members[0]
    rng = np.random.default_rng(1)
    choices = rng.integers(2, V, (8, 4, 5)).astype(np.int32)
    for i, n in np.ndenumerate(rng.integers(1, 6, (8, 4))):
        choices[i][n:] = 0
    choices[1, 2] = choices[3, 3] = 0
    score = jax.jit(functools.partial(decoding.score, MODEL))
    watching = Watching()
    rank = jax.jit(lambda p, x, c: decoding.rank(watching, p, x, c))
    for given in (choices, choices[0]):
        ranked = np.asarray(rank(params, inputs, given))
        assert ranked.shape == (8, 4) and ranked.dtype == np.float32
        for c in range(4):
            targets = np.broadcast_to(given, (8, 4, 5))[:, c]
            scores = np.asarray(
                score(
                    params,
                    {
                        "encoder_input_tokens": inputs,
                        "decoder_target_tokens": targets,
                        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
                    },
                )
            )
            missing = ~targets.any(1)
            np.testing.assert_allclose(ranked[~missing, c], scores[~missing], atol=1e-4)
            assert np.isneginf(ranked[missing, c]).all()
    assert set(watching.encoded) == {inputs.shape}  # each input once, not once for each choice


def test_score_of_several_models_is_of_their_mean_logits(members, inputs):
    targets = np.random.default_rng(2).integers(2, V, (8, LENGTH)).astype(np.int32)
    batch = {
        "encoder_input_tokens": inputs,
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    }
    scores = jax.jit(functools.partial(decoding.score, MODEL))(members, batch)
    logits = mean_logits(members, inputs, targets)
    log_probs = np.take_along_axis(logits, targets[..., None], -1)[..., 0] - np.log(np.exp(logits).sum(-1))
    np.testing.assert_allclose(scores, log_probs.sum(-1), atol=1e-4)
