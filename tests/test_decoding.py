"""Decoding against what it stands for: repeated argmax over the full, uncached model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from tiny_models import loud, make_inputs

from t5x_lite import decoding
from t5x_lite.errors import UserError
from t5x_lite.models import T5Config
from t5x_lite.partitioning import MeshConfig

V = 40
TINY = T5Config(
    vocab_size=V, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=2, num_decoder_layers=2
)
NO_EOS = V + 1  # never emitted: every row runs to the end


@pytest.fixture(scope="module")
def tiny():
    return loud(TINY)


# EOS is an array here, so that one program serves several.
jit_decode = jax.jit(decoding.decode, static_argnames=("model", "max_length", "choose"))
jit_score = jax.jit(decoding.score, static_argnames="model")


def rollout(model, params, inputs, max_length, eos_id):
    """Greedy decoding by running the whole model on each prefix: ids, scores, and each row's smallest margin between
    the best two logits at a step that counts."""
    b = len(inputs)
    apply = jax.jit(model.apply)
    given = np.zeros((b, max_length), np.int32)  # decoder inputs; positions still to come do not matter
    ids = np.zeros((b, max_length), np.int32)
    scores, margins, done = np.zeros(b), np.full(b, np.inf), np.zeros(b, bool)
    for i in range(max_length):
        batch = {
            "encoder_input_tokens": inputs,
            "decoder_input_tokens": given,
            "decoder_target_tokens": np.ones_like(given),
        }
        logits = np.asarray(apply(params, batch), np.float64)[:, i]
        best = logits.argmax(-1)
        two = np.sort(logits, axis=-1)[:, -2:]
        margins = np.where(done, margins, np.minimum(margins, two[:, 1] - two[:, 0]))
        log_probs = logits.max(-1) - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) - logits.max(-1)
        scores += np.where(done, 0.0, log_probs)
        ids[:, i] = np.where(done, 0, best)
        done |= ids[:, i] == eos_id
        if i + 1 < max_length:
            given[:, i + 1] = ids[:, i]
    return ids, scores, margins


def common_token(ids):
    """A token that ends some rows early and not others, to serve as EOS."""
    for token in range(1, V):
        hit = (ids == token).any(1)
        first = (ids == token).argmax(1)[hit]
        if 0.2 < hit.mean() < 0.9 and len(set(first)) > 2:
            return token
    raise AssertionError("no token is fit to be EOS: choose another seed")


@pytest.mark.parametrize(
    "config, seed",
    [
        (TINY, 0),
        (dataclasses.replace(TINY, logits_via_embedding=True, mlp_activations=("relu",), scan_layers=False), 5),
    ],
    ids=["v1_1_scanned", "v1_0_unscanned"],
)
def test_cached_greedy_is_the_argmax_of_the_full_model(config, seed):
    model, params = loud(config, seed)
    inputs = make_inputs(48)
    free, _ = jit_decode(model, params, inputs, 12, NO_EOS)
    free = np.asarray(free)
    assert len({tuple(row) for row in free}) > 24 and len(np.unique(free)) > 10  # outputs vary, or nothing is tested
    eos = common_token(free)
    ids, scores = jit_decode(model, params, inputs, 12, eos)
    expected, expected_scores, margins = rollout(model, params, inputs, 12, eos)
    ended = (expected == eos).any(1)
    assert 0 < ended.sum() < len(inputs)
    clear = margins >= 1e-4
    assert (~clear).mean() < 0.02, f"{(~clear).sum()} rows are too close to call"
    assert ids.dtype == jnp.int32 and scores.dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(ids)[clear], expected[clear])
    np.testing.assert_allclose(np.asarray(scores)[clear], expected_scores[clear], atol=1e-3, rtol=1e-5)


def test_score_of_the_decoded_ids_is_the_decoder_s_score(tiny):
    model, params = tiny
    inputs = make_inputs(16)
    free, free_scores = jit_decode(model, params, inputs, 8, NO_EOS)
    eos = common_token(np.asarray(free))
    for end in (NO_EOS, eos):
        ids, scores = jit_decode(model, params, inputs, 8, end)
        ids = np.asarray(ids)
        last = np.where((ids == end).any(1), (ids == end).argmax(1), 7)
        batch = {
            "encoder_input_tokens": inputs,
            "decoder_input_tokens": np.pad(ids, ((0, 0), (1, 0)))[:, :-1],
            "decoder_target_tokens": ids,
            "decoder_loss_weights": (np.arange(8) <= last[:, None]).astype(np.int32),
        }
        np.testing.assert_allclose(jit_score(model, params, batch), scores, atol=1e-4)
    assert not np.allclose(scores, free_scores)


def test_score_counts_what_is_not_padding(tiny):
    model, params = tiny
    inputs, targets = make_inputs(6), make_inputs(6, 7, seed=1)
    batch = {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
    }
    scores = jit_score(model, params, batch)
    log_probs = np.asarray(jax.nn.log_softmax(jax.jit(model.apply)(params, batch)))
    for row in range(6):
        by_hand = sum(log_probs[row, i, t] for i, t in enumerate(targets[row]) if t)
        np.testing.assert_allclose(scores[row], by_hand, rtol=1e-5)
    weighted = jit_score(model, params, {**batch, "decoder_loss_weights": np.eye(6, 7, dtype=np.int32)})
    np.testing.assert_allclose(weighted, [log_probs[i, i, targets[i, i]] for i in range(6)], rtol=1e-5)


def counted_steps(model, params, inputs, max_length, eos_id):
    """How often the loop's body ran."""
    calls = []

    class Counting:
        config, encode, init_cache, first_tokens = model.config, model.encode, model.init_cache, model.first_tokens

        def decode_step(self, params, cache, tokens, index):
            jax.debug.callback(lambda i: calls.append(int(i)), index)
            return model.decode_step(params, cache, tokens, index)

    ids, _ = jax.jit(lambda p, x: decoding.decode(Counting(), p, x, max_length, eos_id))(params, inputs)
    ids.block_until_ready()
    jax.effects_barrier()
    return np.asarray(ids), sorted(calls)


def test_stops_when_every_row_has_ended(tiny):
    model, params = tiny
    inputs = make_inputs(32)
    free = np.asarray(jit_decode(model, params, inputs, 12, NO_EOS)[0])
    eos = common_token(free)
    ends = np.where((free == eos).any(1), (free == eos).argmax(1), 99)
    early = inputs[ends < 6]
    last = ends[ends < 6].max()
    assert len(early) >= 2
    ids, steps = counted_steps(model, params, early, 12, eos)
    assert steps == list(range(last + 1))
    assert not ids[:, last + 1 :].any()
    # Fillers do not keep the loop alive, nor does a batch of nothing else start it.
    filled = np.concatenate([early, np.zeros((3, 10), np.int32)])
    ids, steps = counted_steps(model, params, filled, 12, eos)
    assert steps == list(range(last + 1)) and not ids[-3:].any()
    assert counted_steps(model, params, filled[-3:], 12, eos)[1] == []


SAMPLE = functools.partial(decoding.sample, seed=3, temperature=1.3, top_k=20, top_p=0.95)


@pytest.mark.parametrize("choose", [decoding.greedy, SAMPLE], ids=["greedy", "sample"])
def test_a_row_does_not_depend_on_its_batch_nor_on_padding(tiny, choose):
    model, params = tiny
    inputs = make_inputs(24)
    names = np.arange(100, 124, dtype=np.int32)
    ids, scores = jit_decode(model, params, inputs, 10, 1, choose=choose, row_ids=names)
    some = np.array([17, 3, 20, 8, 0])
    wider = np.pad(inputs[some], ((0, 0), (0, 6)))
    for rows in (inputs[some], wider):
        sub_ids, sub_scores = jit_decode(model, params, rows, 10, 1, choose=choose, row_ids=names[some])
        np.testing.assert_array_equal(sub_ids, np.asarray(ids)[some])
        np.testing.assert_allclose(sub_scores, np.asarray(scores)[some], atol=1e-4)


def test_noise_is_a_function_of_seed_row_and_position():
    logits = jnp.zeros((64, V))
    rows = jnp.arange(64)

    def draw(seed=0, rows=rows, number=0, position=0):
        return np.asarray(decoding.sample(logits, rows, jnp.full_like(rows, number), jnp.int32(position), seed=seed))

    np.testing.assert_array_equal(draw(), draw())
    np.testing.assert_array_equal(draw(rows=rows[::-1])[::-1], draw())
    for other in (draw(seed=1), draw(rows=rows + 64), draw(number=1), draw(position=1)):
        assert (other == draw()).mean() < 0.2


def test_sampling_follows_the_probabilities():
    logits = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))
    n = 20_000

    def frequencies(**kwargs):
        drawn = decoding.sample(
            jnp.broadcast_to(logits, (n, 4)), jnp.arange(n), jnp.zeros(n, jnp.int32), jnp.int32(5), **kwargs
        )
        return np.bincount(drawn, minlength=4) / n

    # Five standard deviations of a frequency are at most 0.018.
    np.testing.assert_allclose(frequencies(), [0.1, 0.2, 0.3, 0.4], atol=0.018)
    square = np.array([0.01, 0.04, 0.09, 0.16])
    np.testing.assert_allclose(frequencies(temperature=0.5), square / square.sum(), atol=0.018)
    np.testing.assert_allclose(frequencies(top_k=2), [0, 0, 3 / 7, 4 / 7], atol=0.018)
    np.testing.assert_allclose(frequencies(top_p=0.65), [0, 0, 3 / 7, 4 / 7], atol=0.018)
    np.testing.assert_allclose(frequencies(top_p=0.75), [0, 2 / 9, 3 / 9, 4 / 9], atol=0.018)
    np.testing.assert_allclose(frequencies(top_p=0.01), [0, 0, 0, 1])
    # Cut to two first, of which the better has 4/7 alone.
    np.testing.assert_allclose(frequencies(top_k=2, top_p=0.5), [0, 0, 0, 1])


SETTINGS = [{}, {"temperature": 0.6}, {"top_k": 7}, {"top_p": 0.8}, {"temperature": 1.5, "top_k": 12, "top_p": 0.7}]


def exact(logits, temperature=1.0, top_k=0, top_p=1.0):
    """The probabilities that these settings mean, in float64."""
    logits = np.asarray(logits, np.float64) / temperature
    order = np.argsort(-logits, kind="stable")
    kept = order[: top_k or None]
    probabilities = np.exp(logits[kept]) / np.exp(logits[kept]).sum()
    kept = kept[np.cumsum(probabilities) - probabilities < top_p]
    result = np.zeros(len(logits))
    result[kept] = np.exp(logits[kept]) / np.exp(logits[kept]).sum()
    return result


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            settings,
            marks=() if settings in (SETTINGS[0], SETTINGS[-1]) else pytest.mark.slow,
            id=",".join(f"{k}={v}" for k, v in settings.items()) or "plain",
        )
        for settings in SETTINGS
    ],
)
def test_samples_pass_a_chi_square_test(settings):
    logits = np.random.default_rng(0).uniform(-1, 1, V).astype(np.float32)
    rows, numbers, positions = 400, 5, 4
    n = rows * numbers * positions
    probabilities = exact(logits, **settings)
    row_ids, sequences = (x.ravel() for x in np.indices((rows, numbers), np.int32))
    draw = jax.jit(functools.partial(decoding.sample, jnp.broadcast_to(logits, (rows * numbers, V)), **settings))
    drawn = [np.asarray(draw(row_ids, sequences, position)) for position in range(positions)]
    counts = np.bincount(np.concatenate(drawn), minlength=V)
    possible = probabilities > 0
    assert not counts[~possible].any()
    assert probabilities[possible].min() * n > 5  # as the test's approximation needs
    assert scipy.stats.chisquare(counts[possible], n * probabilities[possible]).pvalue > 1e-4


@pytest.mark.parametrize("along", ["rows", "numbers", "positions"])
def test_neighbouring_draws_are_independent(along):
    n = 4000
    zeros = jnp.zeros((n, 6))
    draw = jax.jit(decoding.sample)
    i = np.arange(n, dtype=np.int32)
    first, second = (
        draw(
            zeros,
            i * 2 + d * (along == "rows"),
            np.full(n, d * (along == "numbers"), np.int32),
            d * (along == "positions"),
        )
        for d in (0, 1)
    )
    pairs = np.bincount(np.asarray(first) * 6 + np.asarray(second), minlength=36)
    assert scipy.stats.chisquare(pairs).pvalue > 1e-4


@pytest.mark.parametrize("settings", SETTINGS[2:], ids=lambda s: ",".join(f"{k}={v}" for k, v in s.items()))
def test_what_was_cut_is_never_drawn(settings):
    logits = 2 * np.random.default_rng(1).normal(size=(64, V)).astype(np.float32)
    allowed = np.array([exact(row, **settings) > 0 for row in logits])
    assert 1 < allowed.sum(1).mean() < V / 2
    draw = jax.jit(functools.partial(decoding.sample, **settings))
    for position in range(50):
        drawn = draw(logits, jnp.arange(64), jnp.zeros(64, jnp.int32), position)
        assert allowed[np.arange(64), drawn].all()


@pytest.mark.parametrize(
    "shape",
    [{"data": 8}, {"fsdp": 8}, {"tensor": 8}, {"data": 2, "fsdp": 2, "tensor": 2}],
    ids=lambda shape: "_".join(f"{axis}{n}" for axis, n in shape.items()),
)
def test_noise_is_the_same_to_the_bit_on_any_mesh_and_in_any_batch(shape):
    rows, numbers = np.arange(32, dtype=np.int32), np.arange(32, dtype=np.int32) % 3
    draw = functools.partial(decoding.noise, 5, position=jnp.int32(7), v=V)
    expected = np.asarray(jax.jit(draw)(rows, numbers))
    partitioner = MeshConfig(shape).build()
    some = rows[::-2]
    with partitioner.activate():
        out = jax.jit(draw, out_shardings=partitioner.sharding("batch", "vocab"))
        sharded = out(*(jax.device_put(x, partitioner.batch) for x in (some, numbers[some])))
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_array_equal(np.asarray(sharded).view(np.int32), expected[some].view(np.int32))


def test_scores_of_samples_are_the_model_s_own(tiny):
    model, params = tiny
    inputs = make_inputs(8)
    ids, scores = jit_decode(model, params, inputs, 6, NO_EOS, choose=SAMPLE)
    assert (np.asarray(ids) != np.asarray(jit_decode(model, params, inputs, 6, NO_EOS)[0])).any()
    batch = {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.pad(ids, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": ids,
        "decoder_loss_weights": np.ones_like(ids),
    }
    np.testing.assert_allclose(jit_score(model, params, batch), scores, atol=1e-4)


def test_decoder_is_decode_with_settings(tiny):
    model, params = tiny
    inputs = make_inputs(4)
    rows = jnp.arange(7, 11)
    for decoder, choose in (
        (decoding.Decoder(max_length=6), decoding.greedy),
        (decoding.Decoder(6, "sample", temperature=1.3, top_k=20, top_p=0.95, seed=3), SAMPLE),
    ):
        ids, scores = jax.jit(lambda p, x, r, decoder=decoder: decoder(model, p, x, 1, r))(params, inputs, rows)
        expected, expected_scores = jit_decode(model, params, inputs, 6, 1, choose=choose, row_ids=rows)
        assert ids.shape == (4, 6)
        np.testing.assert_array_equal(ids, expected)
        np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_length": 0},
        {"method": "beem"},
        {"temperature": 0.0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"num_beams": 0},
        {"length_penalty": np.nan},
        {"beam_rule": "paper"},
        {"num_return_sequences": 0},
        {"num_return_sequences": 2},
        {"num_return_sequences": 5, "method": "beam"},
    ],
)
def test_decoder_refuses_nonsense(wrong):
    with pytest.raises(UserError, match=f"Decoder.{next(iter(wrong))}"):
        decoding.Decoder(**wrong)


@pytest.mark.parametrize("choose", [decoding.greedy, SAMPLE], ids=["greedy", "sample"])
def test_a_mesh_gives_the_same(tiny, choose):
    model, params = tiny
    inputs = make_inputs(8)
    ids, scores = jit_decode(model, params, inputs, 8, 1, choose=choose)
    partitioner = MeshConfig({"data": 2, "tensor": 2}).build(jax.devices()[:4])
    sharded = jax.device_put(params, partitioner.tree(model.abstract_params(), model.logical_axes()))
    with partitioner.activate():
        fresh = jax.jit(functools.partial(decoding.decode, model, max_length=8, eos_id=1, choose=choose))
        mesh_ids, mesh_scores = fresh(sharded, jax.device_put(inputs, partitioner.batch))
    np.testing.assert_array_equal(mesh_ids, ids)
    np.testing.assert_allclose(mesh_scores, scores, atol=1e-4)
