"""A tiny model with a tiny vocabulary, saved once for the tests of this folder."""

import pytest
from infer_runs import save, tiny_model


@pytest.fixture(scope="session")
def tiny():
    return tiny_model()


@pytest.fixture(scope="session")
def checkpoint(tiny, tmp_path_factory):
    model, params, vocabulary = tiny
    return save(tmp_path_factory.mktemp("model"), model, params, vocabulary)
