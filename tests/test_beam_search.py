"""Beam search against what T5X and Hugging Face find with the same weights, and against an exhaustive search."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.beam_search import EMPTY, beam_search
from tests.test_parity_t5x import build, stored

STATIC = ("model", "max_length", "eos_id", "num_beams", "length_penalty", "rule")
jit_beam = jax.jit(beam_search, static_argnames=STATIC)
T5X = {"beam1": (1, 0.6), "beam4": (4, 0.6), "beam4_alpha0": (4, 0.0)}


@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "unrolled"])
@pytest.mark.parametrize("name", ["t5x_tiny_v1_0", "t5x_tiny_v1_1"])
@pytest.mark.parametrize("kind", T5X)
def test_the_beams_of_t5x(kind, name, scanned):
    golden = stored(name)[2]
    model, params = build(name, scanned)
    k, alpha = T5X[kind]
    theirs, their_scores = golden[f"{kind}_ids"], golden[f"{kind}_scores"]
    ids, scores = jit_beam(model, params, golden["decode_encoder_input_tokens"], theirs.shape[-1], num_beams=k,
                           length_penalty=alpha)
    # T5X returns the worst beam first, and a single one without an axis for it.
    theirs = theirs.reshape(ids.shape)[:, ::-1]
    np.testing.assert_array_equal(ids, theirs)
    np.testing.assert_allclose(scores, their_scores.reshape(scores.shape)[:, ::-1], atol=1e-4, rtol=0)
