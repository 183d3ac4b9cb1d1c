"""Finetuning a few parameters on a real corpus, through the command line: train, stop, go on, evaluate, ask."""

import json
import shutil

import jax
import numpy as np
import pytest

from t5x_lite import checkpoints, cli, configuration, plots
from t5x_lite.models import Model
from t5x_lite.partitioning import path_name

SMALL = [
    "--gin_file=models/t5_1_1/mini.gin", "--gin.T5Config.emb_dim=32", "--gin.T5Config.mlp_dim=32",
    "--gin.T5Config.head_dim=8", "--gin.BATCH_SIZE=8", "--gin.TASK_FEATURE_LENGTHS={'inputs': 48, 'targets': 16}",
    "--gin.SeqioSource.block_records=16", "--gin.EVALUATION_EXAMPLES=8", "--gin.train.log_every=1", "--gin.DECODE=False",
]
FINETUNE = [*SMALL, "--gin_file=runs/finetune.gin", "--gin.MIXTURE_OR_TASK_NAME=pydocs_library"]


def run(job, *flags):
    configuration.clear()
    try:
        return cli.main([job, *flags])
    finally:
        configuration.clear()


def paths(tree):
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def written(folder):
    return set(checkpoints._shapes(checkpoints.find_step(folder), "params"))


def losses(folder):
    return dict(zip(*plots.read_metrics(folder)["train/loss"]))


@pytest.fixture(scope="module", autouse=True)
def no_compilation_cache():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T5X_LITE_COMPILATION_CACHE", "off")
        yield


@pytest.fixture(scope="module")
def pretrained(corpus_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    assert run("train", *SMALL, "--gin_file=runs/pretrain.gin", "--gin.MIXTURE_OR_TASK_NAME=pydocs_span_corruption",
               f"--model_dir={folder}", "--gin.TRAIN_STEPS=1") == 0
    return folder


@pytest.mark.parametrize("name, own, trained", [
    ("lora", ("lora_a", "lora_b"), 8 * (32 + 32) * 2 * 6),
    pytest.param("adapters", ("_adapter/layer_norm/scale", "_adapter/wi/kernel", "_adapter/wo/kernel", "norm/scale"),
                 4 * (32 + 2 * 32 * 16) + 32 * (2 * 2 + 3 * 2 + 2), marks=pytest.mark.slow),
])
def test_a_run_from_the_pretrained_model_to_its_answers(pretrained, tmp_path, capsys, name, own, trained):
    folder = tmp_path / "run"
    flags = [*FINETUNE, f"--gin_file=finetuning/{name}.gin", f"--model_dir={folder}", "--gin.LEARNING_RATE=0.01",
             f"--gin.INITIAL_CHECKPOINT_PATH={pretrained}", *(["--gin.ADAPTER_DIM=16"] if name == "adapters" else [])]
    assert run("train", *flags, "--gin.TRAIN_STEPS=2") == 0
    out = capsys.readouterr().out
    assert f"{trained:,} of them trained" in out and f"the others stay in {pretrained}/checkpoints/1" in out
    assert all(path.endswith(own) for path in written(folder)) and written(folder)
    # Going on is the same run, and what is frozen is still the pretrained model's.
    assert run("train", *flags, "--gin.TRAIN_STEPS=3") == 0
    assert sorted(losses(folder)) == [1, 2, 3]
    model, params, meta = checkpoints.load_for_inference(folder)
    assert meta["step"] == 3 and meta["base"]["path"] == f"{pretrained}/checkpoints/1"
    plain = paths(checkpoints.load_for_inference(pretrained)[1])
    found = paths(params)
    assert found.keys() == plain.keys() | Model(model.config).added_paths
    assert all((found[n].tobytes() == plain[n].tobytes()) == (n not in written(folder)) for n in plain)
    # Other jobs need no more than its path.
    assert run("eval", "--gin_file=runs/eval.gin", "--gin.MIXTURE_OR_TASK_NAME=pydocs_library", f"--model_dir={folder}",
               "--gin.TASK_FEATURE_LENGTHS={'inputs': 48, 'targets': 16}", "--gin.EVALUATION_EXAMPLES=8",
               "--gin.Evaluation.decode=False") == 0
    assert list(plots.read_metrics(folder)["eval/pydocs_library/loss"][0]) == [2, 3]
    ask = ["infer", f"--checkpoint={folder}", f"--input={tmp_path}/ask.txt", "--gin.infer.batch_size=8",
           "--gin.Decoder.max_length=4"]
    (tmp_path / "ask.txt").write_text("library: the queue of the tensor\n")
    assert run(*ask, f"--output={tmp_path}/out.jsonl") == 0
    assert {"input", "prediction", "score"} <= json.loads((tmp_path / "out.jsonl").read_text()).keys()


@pytest.mark.slow
def test_a_prompt_starts_from_the_pretrained_vocabulary(pretrained, tmp_path):
    """With a rate of zero it stays where it started; all parameters are saved when that is asked for."""
    flags = [*FINETUNE, "--gin_file=finetuning/prompt.gin", f"--model_dir={tmp_path}", "--gin.PROMPT_LENGTH=4",
             f"--gin.INITIAL_CHECKPOINT_PATH={pretrained}", "--gin.TRAIN_STEPS=1", "--gin.LEARNING_RATE=0.0",
             "--gin.train.save_only_trained=False"]
    assert run("train", *flags) == 0
    _, params, meta = checkpoints.load_for_inference(tmp_path)
    assert "base" not in meta and written(tmp_path) == paths(params).keys()
    table = np.asarray(checkpoints.load_for_inference(pretrained)[1]["token_embedder"]["embedding"])
    rows = np.asarray(params["prompt"]["embedding"])
    assert (rows[:, None] == table[None]).all(-1).any(1).all()


@pytest.mark.parametrize("flags, message", [
    (["--gin.Trainable.patterns=('nothing',)"], "Trainable.patterns: 'nothing' matches no parameter"),
    (["--gin_file=finetuning/prompt.gin", "--gin.SeqioSource.packing=True"], "does not go with packed rows"),
    (["--gin.train.save_only_trained=True", "--gin.INITIAL_CHECKPOINT_PATH=None"], "needs INITIAL_CHECKPOINT_PATH"),
])
def test_a_mistake_is_one_line_before_anything_is_written(pretrained, tmp_path, capsys, flags, message):
    folder = tmp_path / "run"
    initial = [] if "INITIAL" in flags[-1] else [f"--gin.INITIAL_CHECKPOINT_PATH={pretrained}"]
    assert run("train", *FINETUNE, f"--model_dir={folder}", "--gin.TRAIN_STEPS=1", *initial, *flags) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("t5x-lite: error:")]
    assert len(lines) == 1 and message in lines[0]
    assert not folder.exists()


@pytest.mark.slow
def test_answers_need_the_base(pretrained, tmp_path, capsys):
    base, folder = tmp_path / "base", tmp_path / "run"
    shutil.copytree(pretrained, base)
    assert run("train", *FINETUNE, "--gin_file=finetuning/bitfit.gin", f"--model_dir={folder}", "--gin.TRAIN_STEPS=1",
               f"--gin.INITIAL_CHECKPOINT_PATH={base}") == 0
    assert all(path.endswith("/bias") for path in written(folder))
    shutil.rmtree(base)
    (tmp_path / "ask.txt").write_text("library: x\n")
    capsys.readouterr()
    assert run("infer", f"--checkpoint={folder}", f"--input={tmp_path}/ask.txt", f"--output={tmp_path}/out.jsonl",
               "--gin.infer.batch_size=8") == 2
    assert f"its base checkpoint {base}/checkpoints/1 is gone" in capsys.readouterr().err
    assert not list(tmp_path.glob("out.jsonl*"))
