"""Finetuning a few parameters on a real corpus, through the command line: train, stop, go on, evaluate, ask."""

import json
import shutil

import numpy as np
import pytest
from job_runs import MINI, losses, run
from tiny_models import differing

from t5x_lite import checkpoints, plots
from t5x_lite.models import Model
from t5x_lite.partitioning import leaves_by_path as paths
from t5x_lite.stored import Stored

pytestmark = pytest.mark.slow  # a model is trained for them

FINETUNE = [*MINI, "--gin_file=runs/finetune.gin", "--gin.MIXTURE_OR_TASK_NAME=pydocs_library", "--gin.DECODE=False"]


def written(folder):
    return set(Stored(checkpoints.find_step(folder)).shapes("params"))


@pytest.mark.parametrize(
    "name, own, trained",
    [
        ("lora", ("lora_a", "lora_b"), 8 * (32 + 32) * 2 * 6),
        pytest.param(
            "adapters",
            ("_adapter/layer_norm/scale", "_adapter/wi/kernel", "_adapter/wo/kernel", "norm/scale"),
            4 * (32 + 2 * 32 * 16) + 32 * (2 * 2 + 3 * 2 + 2),
        ),
    ],
)
def test_a_run_from_the_pretrained_model_to_its_answers(pretrained, tmp_path, capsys, name, own, trained):
    folder = tmp_path / "run"
    flags = [
        *FINETUNE,
        f"--gin_file=finetuning/{name}.gin",
        f"--model_dir={folder}",
        "--gin.LEARNING_RATE=0.01",
        f"--gin.INITIAL_CHECKPOINT_PATH={pretrained}",
        *(["--gin.ADAPTER_DIM=16"] if name == "adapters" else []),
    ]
    assert run("train", *flags, "--gin.TRAIN_STEPS=2") == 0
    out = capsys.readouterr().out
    assert f"{trained:,} of them trained" in out and f"the others stay in {pretrained}/checkpoints/6" in out
    assert all(path.endswith(own) for path in written(folder)) and written(folder)
    # Going on is the same run, and what is frozen is still the pretrained model's.
    assert run("train", *flags, "--gin.TRAIN_STEPS=3") == 0
    assert sorted(losses(folder)) == [1, 2, 3]
    model, params, meta = checkpoints.load_for_inference(folder)
    assert meta["step"] == 3 and meta["base"]["path"] == f"{pretrained}/checkpoints/6"
    plain = checkpoints.load_for_inference(pretrained)[1]
    assert paths(params).keys() == paths(plain).keys() | Model(model.config).added_paths
    assert set(differing(params, plain)) == written(folder)
    # Other jobs need no more than its path.
    assert (
        run(
            "eval",
            "--gin_file=runs/eval.gin",
            "--gin.MIXTURE_OR_TASK_NAME=pydocs_library",
            f"--model_dir={folder}",
            "--gin.TASK_FEATURE_LENGTHS={'inputs': 48, 'targets': 16}",
            "--gin.EVALUATION_EXAMPLES=8",
            "--gin.Evaluation.decode=False",
        )
        == 0
    )
    assert list(plots.read_metrics(folder)["eval/pydocs_library/loss"][0]) == [2, 3]
    ask = [
        "infer",
        f"--checkpoint={folder}",
        f"--input={tmp_path}/ask.txt",
        "--gin.infer.batch_size=8",
        "--gin.Decoder.max_length=4",
    ]
    (tmp_path / "ask.txt").write_text("library: the queue of the tensor\n")
    assert run(*ask, f"--output={tmp_path}/out.jsonl") == 0
    assert {"input", "prediction", "score"} <= json.loads((tmp_path / "out.jsonl").read_text()).keys()


def test_a_prompt_starts_from_the_pretrained_vocabulary(pretrained, tmp_path):
    """With a rate of zero it stays where it started; all parameters are saved when that is asked for."""
    flags = [
        *FINETUNE,
        "--gin_file=finetuning/prompt.gin",
        f"--model_dir={tmp_path}",
        "--gin.PROMPT_LENGTH=4",
        f"--gin.INITIAL_CHECKPOINT_PATH={pretrained}",
        "--gin.TRAIN_STEPS=1",
        "--gin.LEARNING_RATE=0.0",
        "--gin.train.save_only_trained=False",
    ]
    assert run("train", *flags) == 0
    _, params, meta = checkpoints.load_for_inference(tmp_path)
    assert "base" not in meta and written(tmp_path) == paths(params).keys()
    table = np.asarray(checkpoints.load_for_inference(pretrained)[1]["token_embedder"]["embedding"])
    rows = np.asarray(params["prompt"]["embedding"])
    assert (rows[:, None] == table[None]).all(-1).any(1).all()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--gin.Trainable.patterns=('nothing',)"], "Trainable.patterns: 'nothing' matches no parameter"),
        (["--gin_file=finetuning/prompt.gin", "--gin.SeqioSource.packing=True"], "does not go with packed rows"),
        (["--gin.train.save_only_trained=True", "--gin.INITIAL_CHECKPOINT_PATH=None"], "needs INITIAL_CHECKPOINT_PATH"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(pretrained, tmp_path, capsys, flags, message):
    folder = tmp_path / "run"
    initial = [] if "INITIAL" in flags[-1] else [f"--gin.INITIAL_CHECKPOINT_PATH={pretrained}"]
    assert run("train", *FINETUNE, f"--model_dir={folder}", "--gin.TRAIN_STEPS=1", *initial, *flags) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("t5x-lite: error:")]
    assert len(lines) == 1 and message in lines[0]
    assert not folder.exists()


def test_answers_need_the_base(pretrained, tmp_path, capsys):
    base, folder = tmp_path / "base", tmp_path / "run"
    shutil.copytree(pretrained, base)
    assert (
        run(
            "train",
            *FINETUNE,
            "--gin_file=finetuning/bitfit.gin",
            f"--model_dir={folder}",
            "--gin.TRAIN_STEPS=1",
            f"--gin.INITIAL_CHECKPOINT_PATH={base}",
        )
        == 0
    )
    assert all(path.endswith("/bias") for path in written(folder))
    shutil.rmtree(base)
    (tmp_path / "ask.txt").write_text("library: x\n")
    capsys.readouterr()
    assert (
        run(
            "infer",
            f"--checkpoint={folder}",
            f"--input={tmp_path}/ask.txt",
            f"--output={tmp_path}/out.jsonl",
            "--gin.infer.batch_size=8",
        )
        == 2
    )
    assert f"its base checkpoint {base}/checkpoints/6 is gone" in capsys.readouterr().err
    assert not list(tmp_path.glob("out.jsonl*"))
