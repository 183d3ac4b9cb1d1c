"""The same weights write what T5X and Hugging Face write: beams under the rules of both, and greedy text.

The reference values are stored: tests/fixtures/make_hugging_face_generation.py and pack_t5x.py say how they were made.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import decoding
from t5x_lite.beam_search import beam_search
from t5x_lite.interop.hugging_face import config_from_hugging_face, params_from_hugging_face
from t5x_lite.models import Model, T5Config

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
RANDOM, TRAINED = ("hugging_face_t5_1_0", "hugging_face_t5_1_1"), ("t5x_tiny_v1_0", "t5x_tiny_v1_1")
MARGIN = 1e-4  # closer decisions may fall either way, by rounding
SIZES = (
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

jit_decode = jax.jit(decoding.decode, static_argnames=("model", "max_length"))
# The penalty is an array here, so that one program serves all of them.
jit_beam_search = jax.jit(beam_search, static_argnames=("model", "max_length", "num_beams", "rule"))


@functools.cache
def stored(name):
    """{group: {name: array}} of one fixture file."""
    groups = {}
    with np.load(FIXTURES / f"{name}.npz") as arrays:
        for key in arrays:
            group, _, rest = key.partition("/")
            groups.setdefault(group, {})[rest] = arrays[key]
    return groups


@functools.cache
def build(name, scanned=True):
    groups = stored(name)
    values = json.loads(groups["config"][""].item())
    if name in RANDOM:
        config = config_from_hugging_face(values)
        return Model(config), params_from_hugging_face(groups["weights"], config)
    config = T5Config.from_dict({size: values[size] for size in SIZES} | {"scan_layers": scanned})
    params = {}
    for path, array in groups["params"].items():
        *parents, leaf = path.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, params)[leaf] = jnp.asarray(array)
    for stack, depth in (("encoder", config.num_encoder_layers), ("decoder", config.num_decoder_layers)):
        if scanned:
            layers = [params[stack].pop(f"layers_{i}") for i in range(depth)]
            params[stack]["layers"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    return Model(config), params


@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "unrolled"])
@pytest.mark.parametrize("name", TRAINED)
def test_beams_of_t5x(name, scanned):
    golden = stored(name)["golden"]
    model, params = build(name, scanned)
    for kind, k, alpha in (("beam1", 1, 0.6), ("beam4", 4, 0.6), ("beam4_alpha0", 4, 0.0)):
        theirs, scores = golden[f"{kind}_ids"], golden[f"{kind}_scores"]
        # T5X returns the worst beam first, and a single one without an axis of its own.
        theirs = theirs.reshape(len(theirs), k, -1)[:, ::-1]
        ids, our_scores = jit_beam_search(
            model, params, golden["decode_encoder_input_tokens"], theirs.shape[-1], num_beams=k, length_penalty=alpha
        )
        np.testing.assert_array_equal(ids, theirs, err_msg=kind)
        # Empty places (-1e7), unfinished rows (plain log P) and finished beams.
        np.testing.assert_allclose(our_scores, scores.reshape(-1, k)[:, ::-1], atol=1e-4, rtol=0, err_msg=kind)


def inputs(name):
    return jnp.asarray(stored("hugging_face_generation")[name]["encoder_input_tokens"], jnp.int32)


@functools.cache
def beams_of_hugging_face(name, k, alpha):
    """(their ids and scores, ours, which rows are clear)."""
    golden = stored("hugging_face_generation")[name]
    theirs, scores, margin = (golden[f"beams_{k}/alpha_{alpha}/{what}"] for what in ("ids", "scores", "margin"))
    model, params = build(name)
    ours = jit_beam_search(
        model,
        params,
        inputs(name)[: len(theirs)],
        theirs.shape[-1],
        num_beams=k,
        length_penalty=alpha,
        rule="huggingface",
    )
    return theirs, scores, *(np.asarray(x) for x in ours), margin > MARGIN


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("k", [2, 4, 8])
@pytest.mark.parametrize("name", RANDOM)
def test_beams_of_hugging_face(name, k, alpha):
    theirs, scores, ids, our_scores, clear = beams_of_hugging_face(name, k, alpha)
    np.testing.assert_array_equal(ids[clear], theirs[clear])
    np.testing.assert_allclose(our_scores[clear], scores[clear], atol=1e-4, rtol=0)


def test_few_rows_are_too_close_to_compare():
    golden = stored("hugging_face_generation")
    clear = [array > MARGIN for name in RANDOM + TRAINED for key, array in golden[name].items() if "margin" in key]
    assert len(clear) == 22
    excluded, rows = sum((~c).sum() for c in clear), sum(map(len, clear))
    assert excluded / rows < 0.02, f"{excluded} of {rows}"


@pytest.mark.parametrize("name", RANDOM + TRAINED)
def test_greedy_text_of_hugging_face(name):
    golden = stored("hugging_face_generation")[name]
    theirs, clear = golden["greedy/ids"], golden["greedy/margin"] > MARGIN
    assert len(theirs) == 64
    model, params = build(name)
    ids, _ = jit_decode(model, params, inputs(name), theirs.shape[-1])
    np.testing.assert_array_equal(np.asarray(ids)[clear], theirs[clear])


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("name", RANDOM)
def test_one_beam_of_hugging_face_is_greedy(name, alpha):
    """Where it is asked for one beam, generate() decodes greedily."""
    golden = stored("hugging_face_generation")[name]
    clear = golden["greedy/margin"] > MARGIN
    model, params = build(name)
    ids, _ = jit_beam_search(
        model,
        params,
        inputs(name),
        golden["greedy/ids"].shape[-1],
        num_beams=1,
        length_penalty=alpha,
        rule="huggingface",
    )
    np.testing.assert_array_equal(np.asarray(ids)[clear, 0], golden["greedy/ids"][clear])
