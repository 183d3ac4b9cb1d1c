"""Several checkpoints evaluated as one model."""

import dataclasses

import jax
import numpy as np
import pytest

from t5x_lite import configuration, losses
from t5x_lite.errors import UserError
from t5x_lite.evaluation import Evaluation
from t5x_lite.jobs.evaluate import evaluate
from t5x_lite.models import Model, T5Config
from t5x_lite.partitioning import MeshConfig

EVALUATION = Evaluation("pydocs_library", {"inputs": 48, "targets": 8}, num_examples=8, batch_size=8, decode=False)
CONFIG = T5Config(
    vocab_size=4096, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1
)


@pytest.mark.parametrize("architecture", ["encoder_decoder", "prefix_lm"])
def test_the_loss_is_that_of_the_mean_logits(corpus_dir, architecture):
    config = dataclasses.replace(CONFIG, architecture=architecture, num_encoder_layers=int(architecture != "prefix_lm"))
    model, partitioner, evaluator = Model(config), MeshConfig().build(), EVALUATION.open()
    members = [jax.jit(model.init)(jax.random.key(seed)) for seed in (0, 1)]
    found = evaluator.run(model, tuple(members), partitioner).metrics["eval/pydocs_library/loss"]
    batch = model.arranged(evaluator._data.examples["pydocs_library"])
    logits = np.mean([model.apply(params, batch) for params in members], axis=0)
    sums = losses.Loss(z_loss=0.0).sums(logits, batch["decoder_target_tokens"], batch["decoder_loss_weights"])
    assert found == pytest.approx(float(sums["loss"] / sums["weights"]), rel=1e-5)
    alone = evaluator.run(model, members[0], partitioner).metrics["eval/pydocs_library/loss"]
    assert found != pytest.approx(alone, rel=1e-4)


def test_several_need_a_folder_of_their_own():
    configuration.clear()
    with pytest.raises(UserError, match="set evaluate.output_dir"):
        evaluate("/some/run,/another/run", EVALUATION)
