"""Crawl files, a corpus, a vocabulary, its tokens cached, and a small model pretrained on it: the README's commands."""

import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("apache_beam", reason="needs the extra `corpus`")

from crawl_files import documentation, write_warc
from processes import one_device

pytestmark = pytest.mark.slow  # four commands, each with TensorFlow, JAX or Beam to load

TASK = "c4_v220_span_corruption"
MODEL = [
    "--gin_file=models/t5_1_1/mini.gin",
    "--gin.T5Config.emb_dim=32",
    "--gin.T5Config.mlp_dim=64",
    "--gin.T5Config.num_heads=2",
    "--gin.T5Config.head_dim=16",
    "--gin.T5Config.vocab_size=640",
    "--gin.T5Config.num_encoder_layers=1",
    "--gin.T5Config.num_decoder_layers=1",
]


def test_from_a_crawl_to_a_model(tmp_path):
    pages = documentation(60)
    for i in range(3):
        write_warc(tmp_path / f"{i}.warc.gz", pages[i::3])
    path = f"{tmp_path}/pieces.model"
    vocabulary = ["@SentencePieceVocabulary()", f"--gin.SentencePieceVocabulary.path={path}"]
    environment = one_device() | {"TFDS_DATA_DIR": f"{tmp_path}/data"}

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "t5x_lite", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            timeout=1200,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    said = run(
        "corpus",
        "--variant=en",
        f"--input={tmp_path}/*.warc.gz",
        f"--output_dir={tmp_path}/data",
        "--gin.BAD_WORDS=None",
        "--gin.CorpusRules.validation_one_in=6",
        "--gin.corpus.workers=2",
    )
    assert "train: " in said and "validation: " in said
    said = run("vocabulary", f"--task={TASK}", f"--output={path}", "--gin.vocabulary.size=512")
    assert f"{path}: 512 pieces" in said
    run(
        "cache",
        f"--task={TASK}",
        f"--output_dir={tmp_path}/cache",
        "--gin.cache.processes=1",
        f"--gin.cache.vocabulary={vocabulary[0]}",
        vocabulary[1],
    )
    common = [
        *MODEL,
        "--gin_file=runs/pretrain.gin",
        f"--gin.MIXTURE_OR_TASK_NAME={TASK}",
        "--gin.TRAIN_STEPS=30",
        f"--gin.VOCABULARY={vocabulary[0]}",
        vocabulary[1],
        "--gin.BATCH_SIZE=8",
        "--gin.WARMUP_STEPS=50",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 32}",
        "--gin.EVALUATION_EXAMPLES=8",
        "--gin.train.evaluate_every=30",
        "--gin.train.log_every=1",
        "--gin.train.save_every=30",
    ]

    def losses(name, *more):
        run("train", *common, f"--model_dir={tmp_path}/{name}", *more)
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return [line["value"] for line in lines if line["name"] == "train/loss"]

    plain = losses("plain")
    assert len(plain) == 30 and np.mean(plain[-5:]) < plain[0] - 0.5
    assert losses("cached", f"--gin.SeqioSource.cache_dir={tmp_path}/cache") == plain
