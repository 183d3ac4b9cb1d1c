"""A tiny `t5x_lite.Model` on one device, for the tests of what stands on it."""

import functools

import pytest
from infer_runs import tiny_model
from tiny_models import mesh

from t5x_lite.api import Model
from t5x_lite.inference import Answerer

one_mesh = functools.cache(mesh)  # what is compiled is kept with it


def on_one_device(batch_size=8, max_length=64, cut=True, tiny=None) -> Model:
    model, params, vocabulary = tiny or tiny_model()
    answerer = Answerer(model, params, vocabulary, one_mesh(), batch_size, max_length, max_length, adapts_rows=True)
    return Model(answerer, step=3, cut=cut)


@pytest.fixture(scope="session")
def small(tiny) -> Model:
    return on_one_device(tiny=tiny)
