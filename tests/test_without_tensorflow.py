"""Training, dry runs and inference where TensorFlow and seqio are absent."""

import json
import subprocess
import sys

import numpy as np
from processes import one_device

BLOCK = """
import sys
for name in ("tensorflow", "seqio", "tensorflow_datasets", "tensorflow_text", "t5x_lite.tasks"):
    sys.modules[name] = None
"""


def python(code):
    return subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env=one_device(), timeout=300
    )


def test_the_core_imports_no_tensorflow():

    code = """
import sys, t5x_lite.trainer, t5x_lite.decoding, t5x_lite.models
print(sorted(n for n in sys.modules if n.split(".")[0] in ("tensorflow", "seqio", "tensorflow_datasets")))
"""
    done = python(code)
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stderr


def test_training_a_dry_run_and_inference_on_npz_rows(tmp_path):
    rng = np.random.default_rng(0)
    targets = rng.integers(3, 200, (64, 8))
    np.savez(
        tmp_path / "rows.npz",
        encoder_input_tokens=rng.integers(3, 200, (64, 12)),
        decoder_target_tokens=targets,
        decoder_input_tokens=np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        decoder_loss_weights=np.ones((64, 8), int),
    )
    (tmp_path / "in.txt").write_text("one\ntwo\n")
    flags = [
        "--gin_file=models/t5_1_1/mini.gin",
        "--gin_file=runs/train_npz.gin",
        f"--gin.NPZ_PATTERN={tmp_path}/rows.npz",
        f"--model_dir={tmp_path}/run",
        "--gin.TRAIN_STEPS=3",
        "--gin.BATCH_SIZE=8",
        "--gin.T5Config.vocab_size=384",
        "--gin.NpzSource.vocabulary=@ByteVocabulary()",
        "--gin.T5Config.emb_dim=32",
        "--gin.train.log_every=1",
    ]
    asked = [
        "infer",
        f"--checkpoint={tmp_path}/run",
        f"--input={tmp_path}/in.txt",
        f"--output={tmp_path}/out.jsonl",
        "--gin.Decoder.max_length=4",
    ]
    code = f"""{BLOCK}
from t5x_lite import cli, configuration
for argv in (["train", *{flags!r}, "--dry_run"], ["train", *{flags!r}], {asked!r}):
    assert cli.main(argv) == 0, argv
    configuration.clear()
"""
    done = python(code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "first batch: encoder_input_tokens 8×12 int32" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["name"] == "train/loss"] == [1, 2, 3]
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [answer["input"] for answer in answers] == ["one", "two"] and all("prediction" in a for a in answers)
