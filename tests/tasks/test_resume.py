"""Data of seqio tasks goes on byte by byte, at any step and at the same cost."""

import os
import signal

import jax
import numpy as np
import pytest

from t5x_lite import checkpoints, cli, configuration, data, evaluation, plots, seqio_sources
from t5x_lite.partitioning import MeshConfig

LENGTHS = {"inputs": 48, "targets": 16}
SOURCE = data.SeqioSource("pydocs_summarize", LENGTHS, packing=False, num_streams=2, block_records=16)
FAR = 1_000_000


@pytest.fixture(autouse=True)
def corpus(corpus_dir):
    return corpus_dir


def take(blocks, steps, positions=None):
    """[(name -> bytes of the global batch, positions after it)]"""
    sharding = MeshConfig().build(jax.devices()[:2]).batch
    with data.Batches(blocks, 2, 4, sharding, positions, depth=1) as batches:
        return [
            ({name: np.asarray(a).tobytes() for name, a in batch.items()}, where.tolist())
            for batch, where in (next(batches) for _ in range(steps))
        ]


def test_batches_before_and_after_are_byte_equal_far_into_a_run():
    whole = take(SOURCE.open(), 8, np.array([[FAR, 3], [FAR, 3]]))
    assert whole[-1][1][0][0] > FAR, "over the end of a block"
    assert take(SOURCE.open(), 3, np.array(whole[4][1])) == whole[5:]


def test_going_on_costs_the_same_at_any_step(monkeypatch):
    """Records read from the source, pipelines built and rows passed over."""
    costs = []
    read, rows = [], []
    genuine = seqio_sources.read

    def noted(records, chosen):
        read.append(len(chosen))
        return genuine(records, chosen)

    monkeypatch.setattr(seqio_sources, "read", noted)
    for k in (1, FAR):
        blocks = SOURCE.open()
        block = blocks.block
        monkeypatch.setattr(blocks, "block", lambda *at, block=block: (rows.append(at) or row for row in block(*at)))
        read.clear(), rows.clear()
        data.Stream(blocks, 1, (k, 2)).take(3)
        costs.append((list(read), len(rows)))
    assert costs[0] == costs[1] == ([16], 5)


PRETRAIN = [
    "train",
    "--gin_file=models/t5_1_1/mini.gin",
    "--gin_file=runs/pretrain.gin",
    "--gin.BATCH_SIZE=8",
    "--gin.MIXTURE_OR_TASK_NAME=pydocs_span_corruption",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 48, 'targets': 16}",
    "--gin.T5Config.emb_dim=32",
    "--gin.T5Config.mlp_dim=32",
    "--gin.T5Config.head_dim=8",
    "--gin.train.log_every=1",
    "--gin.SeqioSource.block_records=16",
    "--gin.EVALUATION_EXAMPLES=10",
    "--gin.train.evaluate_every=3",
    "--gin.TRAIN_STEPS=5",
]


def run(folder):
    configuration.clear()
    try:
        return cli.main([*PRETRAIN, f"--model_dir={folder}"])
    finally:
        configuration.clear()


def metrics(folder):
    """What does not depend on the clock."""
    found = {
        name: columns
        for name, columns in plots.read_metrics(folder).items()
        if name.startswith("eval/") or name == "train/loss"
    }
    return {name: dict(zip(steps.tolist(), values.tolist())) for name, (steps, values) in found.items()}


@pytest.mark.slow
def test_an_evaluation_cut_short_is_made_up_for(tmp_path, monkeypatch):
    """Told to stop within it, the run saves the step that it had reached; the next start begins with evaluating it."""
    monkeypatch.setenv("T5X_LITE_COMPILATION_CACHE", "off")
    assert run(tmp_path / "whole") == 0
    genuine, told = evaluation.Evaluator.run, []

    def told_to_stop(*args, **kwargs):
        if not told:
            told.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
        return genuine(*args, **kwargs)

    monkeypatch.setattr(evaluation.Evaluator, "run", told_to_stop)
    assert run(tmp_path / "parts") == 75
    assert checkpoints.steps(tmp_path / "parts") == [3]
    assert run(tmp_path / "parts") == 0
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert 3 in metrics(tmp_path / "parts")["eval/pydocs_span_corruption/loss"]
