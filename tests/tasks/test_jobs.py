"""The jobs on a real corpus, through the command line: text in, metrics, checkpoints and samples out."""

import json
import shutil

import pytest
from job_runs import MINI, PRETRAIN, losses, run

from t5x_lite import checkpoints, plots

FINETUNE = ["--gin_file=runs/finetune.gin", "--gin.MIXTURE_OR_TASK_NAME=pydocs_library_and_summarize", *MINI]


def test_a_run_leaves_what_it_should(pretrained):
    metrics = plots.read_metrics(pretrained)
    assert sorted(losses(pretrained)) == [1, 2, 3, 4, 5, 6]
    for name in ("learning_rate", "grad_norm", "param_norm", "update_norm", "accuracy", "cross_entropy"):
        assert f"train/{name}" in metrics
    assert list(metrics["eval/pydocs_span_corruption/loss"][0]) == [6]
    assert checkpoints.steps(pretrained) == [3, 6]
    _, _, meta = checkpoints.load_for_inference(pretrained)
    assert meta["vocabulary"] and meta["feature_lengths"] == {"inputs": 48, "targets": 16}
    assert list((pretrained / "tensorboard").iterdir())


@pytest.mark.slow
def test_the_recorded_configuration_runs_again(pretrained, tmp_path):
    again = tmp_path / "again"
    flags = [f"--gin_file={pretrained}/config.gin", f"--model_dir={again}", "--gin.TRAIN_STEPS=2"]
    assert run("train", *flags) == 0
    assert losses(again) == {step: value for step, value in losses(pretrained).items() if step <= 2}


def test_a_run_stopped_and_started_again_is_the_same_run(pretrained, tmp_path):
    flags = [*PRETRAIN, f"--model_dir={tmp_path}", "--gin.train.save_every=3"]
    assert run("train", *flags, "--gin.TRAIN_STEPS=3") == 0
    assert run("train", *flags, "--gin.TRAIN_STEPS=6") == 0
    assert losses(tmp_path) == losses(pretrained)


def test_finetuning_evaluating_and_asking(pretrained, tmp_path, capsys):
    flags = [*FINETUNE, f"--model_dir={tmp_path}", "--gin.TRAIN_STEPS=2"]
    assert run("train", *flags, f"--gin.INITIAL_CHECKPOINT_PATH={pretrained}") == 0
    assert sorted(losses(tmp_path)) == [1, 2], "steps count from 0"
    capsys.readouterr()
    assert (
        run(
            "eval",
            "--gin_file=runs/eval.gin",
            "--gin.MIXTURE_OR_TASK_NAME=pydocs_library_and_summarize",
            "--gin.TASK_FEATURE_LENGTHS={'inputs': 48, 'targets': 16}",
            "--gin.EVALUATION_EXAMPLES=10",
            f"--model_dir={tmp_path}",
        )
        == 0
    )
    out = capsys.readouterr().out
    trained = plots.read_metrics(tmp_path)
    for name in (
        "pydocs_library/accuracy",
        "pydocs_library/loss",
        "pydocs_library/token_accuracy",
        "pydocs_summarize/rouge1",
        "pydocs_summarize/rougeL",
    ):
        assert f"eval/{name}" in out and f"eval/{name}" in trained
    sample = json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])
    assert sample["inputs"].startswith(("library: ", "summarize: ")) and "prediction" in sample
    (tmp_path / "ask.txt").write_text("library: the queue of the tensor\n")
    assert (
        run(
            "infer",
            f"--checkpoint={tmp_path}",
            f"--input={tmp_path}/ask.txt",
            f"--output={tmp_path}/out.jsonl",
            "--gin.infer.batch_size=8",
        )
        == 0
    )
    assert {"input", "prediction", "score"} <= json.loads((tmp_path / "out.jsonl").read_text()).keys()


def test_all_checkpoints_of_a_run_are_evaluated_or_one(pretrained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(pretrained, folder)
    flags = [
        "--gin_file=runs/eval.gin",
        "--gin.MIXTURE_OR_TASK_NAME=pydocs_span_corruption",
        f"--model_dir={folder}",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 48, 'targets': 16}",
        "--gin.EVALUATION_EXAMPLES=10",
        "--gin.Evaluation.decode=False",
    ]
    trained = plots.read_metrics(folder)["eval/pydocs_span_corruption/loss"][1][-1]
    assert run("eval", *flags, "--gin.evaluate.checkpoint=all", "--gin.SPLIT=test") == 0
    steps, values = plots.read_metrics(folder)["test/pydocs_span_corruption/loss"]
    assert list(steps) == [3, 6] and values[0] != values[1]
    shutil.rmtree(folder / "checkpoints" / "6")
    assert run("eval", *flags, "--gin.evaluate.checkpoint=6") == 2
    assert "evaluate.checkpoint = 6: use 'latest', 'all' or one of 3" in capsys.readouterr().err
    shutil.copytree(pretrained / "checkpoints" / "6", folder / "checkpoints" / "6")
    # What is saved is what the run itself evaluated at its end.
    assert run("eval", *flags, "--gin.evaluate.checkpoint=6") == 0
    assert plots.read_metrics(folder)["eval/pydocs_span_corruption/loss"][1][-1] == pytest.approx(trained, rel=1e-6)


@pytest.mark.slow
def test_a_prefix_language_model_trains_evaluates_and_answers(corpus_dir, tmp_path):
    flags = [
        *FINETUNE,
        f"--model_dir={tmp_path}",
        "--gin.INITIAL_CHECKPOINT_PATH=None",
        "--gin.TRAIN_STEPS=1",
        "--gin.T5Config.architecture=prefix_lm",
        "--gin.T5Config.num_encoder_layers=0",
    ]
    assert run("train", *flags) == 0
    metrics = plots.read_metrics(tmp_path)
    assert {"eval/pydocs_summarize/loss", "eval/pydocs_summarize/rouge1", "train/loss"} <= set(metrics)
    (tmp_path / "ask.txt").write_text("library: the queue of the tensor\n")
    assert (
        run(
            "infer",
            f"--checkpoint={tmp_path}",
            f"--input={tmp_path}/ask.txt",
            f"--output={tmp_path}/out.jsonl",
            "--gin.infer.batch_size=8",
            "--gin.Decoder.max_length=4",
        )
        == 0
    )
    assert {"input", "prediction", "score"} <= json.loads((tmp_path / "out.jsonl").read_text()).keys()


@pytest.mark.slow
def test_absolute_steps_go_on_from_the_checkpoints(pretrained, tmp_path):
    assert (
        run(
            "train",
            *FINETUNE,
            f"--model_dir={tmp_path}",
            "--gin.TRAIN_STEPS=7",
            "--gin.DECODE=False",
            "--gin.train.absolute_steps=True",
            f"--gin.INITIAL_CHECKPOINT_PATH={pretrained}",
        )
        == 0
    )
    assert sorted(losses(tmp_path)) == [7]


@pytest.mark.slow
def test_training_ends_early_when_a_metric_stays(corpus_dir, tmp_path):
    assert (
        run(
            "train",
            *PRETRAIN,
            f"--model_dir={tmp_path}",
            "--gin.TRAIN_STEPS=50",
            "--gin.train.evaluate_every=1",
            "--gin.inverse_square_root.scale=0.0",
            "--gin.train.early_stopping_patience=2",
            "--gin.train.early_stopping_metric=eval/pydocs_span_corruption/loss",
        )
        == 0
    )
    assert max(losses(tmp_path)) == 3, "the first evaluation is the best, two more are no better"


@pytest.mark.slow
def test_bytes_instead_of_word_pieces_is_one_binding(corpus_dir, tmp_path):
    assert (
        run(
            "train",
            *FINETUNE,
            f"--model_dir={tmp_path}",
            "--gin.TRAIN_STEPS=1",
            "--gin.DECODE=False",
            "--gin.INITIAL_CHECKPOINT_PATH=None",
            "--gin.VOCABULARY=@ByteVocabulary()",
            "--gin.T5Config.vocab_size=384",
        )
        == 0
    )
    assert checkpoints.load_for_inference(tmp_path)[2]["vocabulary"]["kind"] == "bytes"


def test_a_dry_run_shows_what_would_run_and_writes_nothing(corpus_dir, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run("train", *PRETRAIN, f"--model_dir={folder}", "--gin.TRAIN_STEPS=1", "--dry_run") == 0
    out = capsys.readouterr().out
    assert "8 device(s) (cpu), mesh data 8" in out
    assert "token_embedder/embedding" in out and "4096×32" in out and "vocab, embed" in out
    assert "first batch: encoder_input_tokens 8×48 int32" in out
    assert not folder.exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--gin.BATCH_SIZE=12"], "BATCH_SIZE = 12 is not divisible by 8"),
        (["--gin.T5Config.vocab_size=300"], "ids, but T5Config.vocab_size = 300"),
        (["--gin.TASK_FEATURE_LENGTHS={'inputs': 48, 'targets': 5}"], "TASK_FEATURE_LENGTHS"),
        (["--gin.MIXTURE_OR_TASK_NAME=pydocs_span_corupption"], "did you mean pydocs_span_corruption"),
        (["--gin.BATCHSIZE=8"], "BATCH_SIZE"),
        (["--gin.train.initial_checkpoint_path=/nowhere"], "no checkpoint under /nowhere"),
        (["--gin.MESH={'data': 3}"], "does not fit the 8"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(corpus_dir, tmp_path, capsys, flags, message):
    folder = tmp_path / "run"
    assert run("train", *PRETRAIN, f"--model_dir={folder}", "--gin.TRAIN_STEPS=1", *flags) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("t5x-lite: error:")]
    assert len(lines) == 1 and message in lines[0]
    assert not folder.exists()
