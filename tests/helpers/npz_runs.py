"""Runs of `train` on rows of random tokens: so small that their steps take milliseconds."""

import json
import pathlib

import numpy as np

from t5x_lite import cli, configuration

TOKENS = 63


def write_rows(path, n, poisoned=(), lengths=(8, 6)):
    """Saves n rows; those in `poisoned` have a token in their targets that no other row has, TOKENS."""
    rng = np.random.default_rng(0)
    inputs, targets = (rng.integers(2, TOKENS, (n, length)) for length in lengths)
    targets[list(poisoned), 2] = TOKENS
    np.savez(
        path,
        encoder_input_tokens=inputs,
        decoder_input_tokens=np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        decoder_target_tokens=targets,
        decoder_loss_weights=np.ones_like(targets),
    )


def flags(rows, mesh="{'data': 2, 'fsdp': 4}", **more):
    sizes = dict(
        emb_dim=16,
        mlp_dim=16,
        head_dim=8,
        num_heads=2,
        vocab_size=64,
        num_encoder_layers=1,
        num_decoder_layers=1,
        dropout_rate=0.1,
    )
    return [
        "train",
        "--gin_file=models/t5_1_1/mini.gin",
        "--gin_file=runs/train_npz.gin",
        f"--gin.NPZ_PATTERN={rows}",
        *(f"--gin.T5Config.{name}={value}" for name, value in sizes.items()),
        "--gin.BATCH_SIZE=8",
        f"--gin.MESH={mesh}",
        "--gin.train.log_every=1",
        "--gin.WARMUP_STEPS=100",
        *(f"--gin.{name}={value}" for name, value in more.items()),
    ]


def run(folder, *arguments, **more):
    """The exit code of `t5x-lite` in this process."""
    configuration.clear()
    try:
        return cli.main([*arguments, f"--model_dir={folder}", *(f"--gin.{n}={v}" for n, v in more.items())])
    finally:
        configuration.clear()


def train_losses(folder):
    """Of all steps in order; each step once, none missing."""
    lines = [json.loads(line) for line in (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()]
    found = [(line["step"], float(line["value"])) for line in lines if line["name"] == "train/loss"]
    assert [step for step, _ in found] == list(range(1, len(found) + 1))
    return [loss for _, loss in found]


def steps_seen(folder):
    """Number of steps whose loss is in the file by now."""
    try:
        return (pathlib.Path(folder) / "metrics.jsonl").read_text().count("train/loss")
    except OSError:
        return 0
