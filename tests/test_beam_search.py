"""Beam search against an exhaustive one, and what must not matter: other rows, padding, the mesh."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import loud, make_inputs

from t5x_lite import decoding
from t5x_lite.beam_search import EMPTY, RULES, beam_search
from t5x_lite.errors import UserError
from t5x_lite.models import Model, T5Config
from t5x_lite.partitioning import MeshConfig

V = 40
CONFIG = T5Config(
    vocab_size=V,
    emb_dim=16,
    num_heads=8,
    head_dim=4,
    mlp_dim=32,
    num_encoder_layers=1,
    num_decoder_layers=1,
    scan_layers=False,
)
EOS = 1
ROWS, LENGTH, BEAMS = 8, 12, 3

# Penalty and EOS are arrays here, so that one program serves many of them.
jit_beam_search = jax.jit(beam_search, static_argnames=("model", "max_length", "num_beams", "rule"))


@pytest.fixture(scope="module")
def tiny():
    return loud(CONFIG)


SHORT, SMALL_V = 3, 5


def every_sequence():
    """All token sequences of `SHORT` or fewer that end with EOS; without one where they are live."""
    others = [t for t in range(SMALL_V) if t != EOS]
    return [(*front, EOS) for n in range(SHORT) for front in itertools.product(others, repeat=n)]


def exhaustive(model, members, inputs, prefixes, alpha):
    """For each row its finished sequences and their scores, the best first, from the full model's logits."""
    paths = np.array(list(itertools.product(range(SMALL_V), repeat=SHORT)), np.int32)
    n = len(paths)
    batch = {
        "encoder_input_tokens": np.repeat(inputs, n, 0),
        "decoder_target_tokens": np.tile(paths, (len(inputs), 1)),
        "decoder_input_tokens": np.tile(np.pad(paths, ((0, 0), (1, 0)))[:, :-1], (len(inputs), 1)),
    }
    apply = jax.jit(model.apply)
    logits = np.mean([np.asarray(apply(params, batch), np.float64) for params in members], axis=0)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    log_probs = log_probs.reshape(len(inputs), n, SHORT, SMALL_V)
    results = []
    for row, prefix in enumerate(prefixes):
        prefix = tuple(t for t in prefix if t)
        found = []
        for sequence in every_sequence():
            if len(sequence) > len(prefix) and sequence[: len(prefix)] == prefix:
                path = int(np.argmax((paths[:, : len(sequence)] == sequence).all(1)))
                log_prob = sum(log_probs[row, path, i, sequence[i]] for i in range(len(prefix), len(sequence)))
                found.append((log_prob / ((5 + len(sequence)) / 6) ** alpha, sequence))
        results.append(sorted(found, reverse=True))
    return results


@pytest.mark.parametrize("members", [1, 2], ids=["one", "two_averaged"])
def test_wide_beams_find_all_there_is(members):
    model = Model(
        T5Config(
            vocab_size=SMALL_V,
            emb_dim=16,
            num_heads=2,
            head_dim=8,
            mlp_dim=32,
            num_encoder_layers=1,
            num_decoder_layers=1,
            scan_layers=False,
        )
    )
    params = [loud(model.config, seed)[1] for seed in range(members)]
    inputs = make_inputs(5, v=SMALL_V)
    inputs[4] = 0  # a filler
    prefixes = np.array([[0, 0, 0], [2, 0, 0], [4, 3, 0], [4, 3, 2], [2, 0, 0]], np.int32)
    k, alpha = 40, 0.6  # the 16 live beams of the last step have 2k = 80 continuations
    ids, scores = jit_beam_search(
        model,
        params if members > 1 else params[0],
        inputs,
        SHORT,
        EOS,
        num_beams=k,
        length_penalty=alpha,
        decoder_prefix=prefixes,
    )
    expected = exhaustive(model, params, inputs, prefixes, alpha)
    assert [len(row) for row in expected] == [21, 5, 1, 0, 5]
    for row in range(3):
        n = len(expected[row])
        np.testing.assert_allclose(scores[row, :n], [score for score, _ in expected[row]], atol=1e-5)
        np.testing.assert_array_equal(ids[row, :n], [np.pad(s, (0, SHORT - len(s))) for _, s in expected[row]])
        assert (scores[row, n:] == EMPTY).all() and not ids[row, n:].any()
    # A prefix that fills everything is returned, at no cost.
    np.testing.assert_array_equal(ids[3, :2], [[4, 3, 2], [0, 0, 0]])
    np.testing.assert_array_equal(scores[3, :2], [0.0, EMPTY])
    assert not ids[4].any() and not scores[4].any()


def search(tiny, inputs, eos, rule="t5x", alpha=0.6, k=BEAMS):
    ids, scores = jit_beam_search(*tiny, inputs, LENGTH, eos, num_beams=k, length_penalty=alpha, rule=rule)
    return np.asarray(ids), np.asarray(scores)


@pytest.fixture(scope="module")
def eos(tiny):
    """A token that ends some rows early, and not all of those at the same place."""
    best = search(tiny, make_inputs(ROWS), V + 1)[0][:, 0]
    places = {t: (best == t).argmax(1)[(best == t).any(1)] for t in range(1, V)}
    return max(places, key=lambda t: (len(set(places[t])), len(places[t])))


@pytest.mark.parametrize("rule, alpha, k", [("t5x", 0.6, BEAMS), ("t5x", -2.0, 1), ("huggingface", 2.0, 1)])
def test_a_row_depends_neither_on_other_rows_nor_on_padding(tiny, eos, rule, alpha, k):
    """Also where the penalty makes the test for being done no bound on what could still be found."""
    for seed in range(3):
        inputs = make_inputs(ROWS, seed=seed)
        ids, scores = search(tiny, inputs, eos, rule, alpha, k)
        assert len({tuple(row) for row in ids[:, 0]}) > 2
        for row in range(ROWS):
            alone = np.zeros((ROWS, 16), np.int32)
            alone[row, :10] = inputs[row]  # with fillers, and more padding
            some, some_scores = search(tiny, alone, eos, rule, alpha, k)
            np.testing.assert_array_equal(some[row], ids[row])
            np.testing.assert_allclose(some_scores[row], scores[row], atol=1e-4)
            assert not np.delete(some, row, axis=0).any()


class Counting:
    """The model, which notes the positions that it was asked for."""

    def __init__(self, model):
        self.model, self.config, self.calls = model, model.config, []
        self.encode, self.init_cache, self.first_tokens = model.encode, model.init_cache, model.first_tokens

    def decode_step(self, params, cache, tokens, index):
        jax.debug.callback(lambda i: self.calls.append(int(i)), index)
        return self.model.decode_step(params, cache, tokens, index)


@pytest.mark.parametrize("rule", RULES)
def test_stops_when_every_row_is_done(tiny, eos, rule):
    model, params = tiny
    inputs = make_inputs(ROWS)
    counting = Counting(model)
    run = jax.jit(lambda p, x: beam_search(counting, p, x, LENGTH, eos, num_beams=1, rule=rule))

    def steps(rows):
        counting.calls.clear()
        run(params, np.where(np.isin(np.arange(ROWS), rows)[:, None], inputs, 0))[0].block_until_ready()
        jax.effects_barrier()
        assert sorted(counting.calls) == list(range(len(counting.calls)))
        return len(counting.calls)

    each = [steps([row]) for row in range(ROWS)]
    early = [row for row, n in enumerate(each) if n < LENGTH]
    assert len({each[row] for row in early}) >= 2, each
    assert steps(early) == max(each[row] for row in early)
    assert steps([]) == 0


def gathered(jaxpr):
    """Shapes of what is gathered from, here and in every jaxpr inside."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "gather":
            yield eqn.invars[0].aval.shape
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from gathered(inner)


def test_a_step_moves_what_was_decoded_and_not_what_was_read(tiny):
    model, params = tiny
    s, t = 10, 7
    jaxpr = jax.make_jaxpr(lambda p, x: beam_search(model, p, x, t, num_beams=3))(params, make_inputs(2, length=s))
    loops = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "while"]
    assert len(loops) == 1
    shapes = list(gathered(loops[0].params["body_jaxpr"].jaxpr))
    caches = [shape for shape in shapes if CONFIG.head_dim in shape and CONFIG.num_heads in shape]
    assert len(caches) == 2 and all(t in shape and s not in shape for shape in caches), shapes


@pytest.mark.parametrize(
    "shape",
    [{"data": 8}, {"fsdp": 8}, {"tensor": 8}, {"data": 2, "fsdp": 2, "tensor": 2}],
    ids=lambda shape: "_".join(f"{axis}{n}" for axis, n in shape.items()),
)
def test_every_mesh_finds_the_same(tiny, eos, shape):
    model, params = tiny
    inputs = make_inputs(ROWS)
    ids, scores = search(tiny, inputs, eos)
    assert len({tuple(row) for row in ids.reshape(-1, LENGTH)}) > ROWS
    partitioner = MeshConfig(shape).build()
    sharded = jax.device_put(params, partitioner.tree(model.abstract_params(), model.logical_axes()))
    decoder = decoding.Decoder(LENGTH, "beam", num_beams=BEAMS, num_return_sequences=BEAMS)
    rows = jax.device_put(inputs, partitioner.batch)
    with partitioner.activate():
        run = jax.jit(lambda p, x: decoder(model, p, x, eos)).lower(sharded, rows).compile()
        mesh_ids, mesh_scores = run(sharded, rows)
    np.testing.assert_array_equal(mesh_ids, ids)
    np.testing.assert_allclose(mesh_scores, scores, atol=1e-4)
    if shape == {"data": 8}:
        # Rows have nothing to tell each other, but whether all of them are done.
        moved = re.findall(r"= (\S+) (?:all-gather|all-to-all|all-reduce|collective-permute)\(", run.as_text())
        assert moved == ["pred[]"]


def test_decoder_gives_the_best_beams(tiny, eos):
    model, params = tiny
    inputs = make_inputs(ROWS)
    expected, expected_scores = search(tiny, inputs, eos, "huggingface", 1.0)
    decoder = decoding.Decoder(
        LENGTH, "beam", num_beams=BEAMS, length_penalty=1.0, beam_rule="huggingface", num_return_sequences=2
    )
    ids, scores = jax.jit(lambda p, x: decoder(model, p, x, eos))(params, inputs)
    np.testing.assert_array_equal(ids, expected[:, :2])
    np.testing.assert_allclose(scores, expected_scores[:, :2], atol=1e-5)
    assert (np.diff(expected_scores, axis=1) <= 0).all() and not (ids == search(tiny, inputs, eos)[0][:, :2]).all()
    one = decoding.Decoder(LENGTH, "beam", num_beams=BEAMS)
    ids, scores = jax.eval_shape(lambda p, x: one(model, p, x, eos), params, inputs)
    assert ids.shape == (ROWS, LENGTH) and scores.shape == (ROWS,)


def test_a_prefix_that_is_too_long_is_refused(tiny):
    model, params = tiny
    with pytest.raises(UserError, match="4 tokens .*Decoder.max_length = 3"):
        beam_search(model, params, make_inputs(2), 3, decoder_prefix=jnp.ones((2, 4), jnp.int32))
