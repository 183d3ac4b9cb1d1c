"""A tiny model with a tiny vocabulary, saved once for all tests of this folder."""

import jax
import pytest
from infer_runs import save, train_vocabulary
from tiny_models import random_params

from t5x_lite.models import Model, T5Config


@pytest.fixture(scope="session")
def tiny():
    vocabulary = train_vocabulary()
    model = Model(T5Config(vocab_size=vocabulary.vocab_size + 3, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32,
                           num_encoder_layers=1, num_decoder_layers=1))
    # Of these every answer is another, and no beam search comes back with fewer than it was asked for.
    params = jax.tree.map(lambda leaf: leaf * 2.0, random_params(model.config, seed=6))
    return model, params, vocabulary


@pytest.fixture(scope="session")
def checkpoint(tiny, tmp_path_factory):
    model, params, vocabulary = tiny
    return save(tmp_path_factory.mktemp("model"), model, params, vocabulary)
