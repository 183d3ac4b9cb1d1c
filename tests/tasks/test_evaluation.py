"""Evaluation: every example counts once, whatever the batch, and each gets its own answer."""

import jax
import numpy as np
import pytest
from tiny_models import mesh, random_params

from t5x_lite import trainer
from t5x_lite.evaluation import Evaluation
from t5x_lite.models import Model, T5Config

LENGTHS = {"inputs": 48, "targets": 16}
MODEL = Model(
    T5Config(
        vocab_size=4096, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=1
    )
)


@pytest.fixture(scope="module")
def evaluator(corpus_dir):
    """Of ten examples a task, eight at a time: the second batch has six rows that are none."""
    config = Evaluation("pydocs_library_and_summarize", LENGTHS, split="train", num_examples=10, batch_size=8)
    evaluator = config.open()
    assert [len(rows["decoder_target_tokens"]) for rows in evaluator._data.examples.values()] == [10, 10]
    return evaluator


def test_metrics_are_means_over_the_tokens_of_all_examples(evaluator):
    params = random_params(MODEL.config)
    found = evaluator.run(MODEL, params, mesh((8, 1, 1)), decode=False).metrics
    sums = jax.jit(lambda params, rows: trainer.eval_step(MODEL, params, rows))
    for task, rows in evaluator._data.examples.items():
        assert "decoder_segment_ids" not in rows, "unpacked"
        expected = sums(params, rows)
        assert found[f"eval/{task}/loss"] == pytest.approx(float(expected["loss"] / expected["weights"]), rel=1e-5)
        assert found[f"eval/{task}/token_accuracy"] == pytest.approx(float(expected["correct"] / expected["weights"]))
    assert len(set(found.values())) > 2


def test_each_example_has_its_own_answer(evaluator):
    tokens = evaluator._data.examples["pydocs_summarize"]["encoder_input_tokens"]
    params, eight = random_params(MODEL.config), mesh((8, 1, 1))
    with eight.activate():
        ids, backwards = (evaluator._decode(MODEL, params, eight, x) for x in (tokens, tokens[::-1]))
    assert ids.shape == (10, 16) and len({tuple(row) for row in ids}) > 2
    np.testing.assert_array_equal(ids, backwards[::-1])
