"""Files of one's own through the command line: trained on, evaluated, asked, gone on with, mixed and traced."""

import json
import re

import pytest
from processes import job

from t5x_lite import checkpoints, cli, configuration, plots

pytestmark = pytest.mark.slow  # whole runs and pipelines: minutes

MODEL = [
    "--gin_file=models/t5_1_1/mini.gin",
    "--gin.T5Config.emb_dim=16",
    "--gin.T5Config.mlp_dim=16",
    "--gin.T5Config.num_heads=2",
    "--gin.T5Config.head_dim=8",
    "--gin.T5Config.vocab_size=384",
    "--gin.T5Config.num_encoder_layers=1",
    "--gin.T5Config.num_decoder_layers=1",
]
BYTES = "--gin.VOCABULARY=@ByteVocabulary()"
DATA = [
    "--gin.MIXTURE_OR_TASK_NAME=tsv:pairs.tsv",
    "--gin.TextFiles.columns=('question', 'answer')",
    "--gin.TextFiles.template=say: {question}",
    "--gin.TextFiles.dialect=escaped",
    "--gin.TextFiles.metrics=('accuracy', 'rouge')",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 96, 'targets': 24}",
    "--gin.EVALUATION_EXAMPLES=9",
    "--gin.TextFiles.held_out=0.2",
    "--gin.TextFiles.index_folder=index",
]
TRAIN = [
    *MODEL,
    *DATA,
    BYTES,
    "--gin_file=runs/finetune.gin",
    "--gin.INITIAL_CHECKPOINT_PATH=None",
    "--gin.BATCH_SIZE=8",
    "--gin.train.log_every=1",
    "--gin.train.save_every=2",
    "--gin.SeqioSource.block_records=64",
    "--gin.NUM_STREAMS=2",
]


def run(name, *flags):
    configuration.clear()
    try:
        return cli.main([name, *flags])
    finally:
        configuration.clear()


def losses(folder):
    return dict(zip(*plots.read_metrics(folder)["train/loss"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Fifty pairs with quotes and escaped tabs, three lines that cannot be used, and a text."""
    path = tmp_path_factory.mktemp("own")
    lines = [rf'Who said "{i}\t{i * i}"?' + f"\tNumber {i}, it's true." for i in range(50)]
    lines[7:7] = ["no answer", "an empty one\t", "too\tmany\tcolumns"]
    (path / "pairs.tsv").write_text("\n".join(["question\tanswer", *lines]) + "\n")
    (path / "text.txt").write_text("".join(f"{i}. Once upon a time there were {i} of them.\n" for i in range(60)))
    return path


@pytest.fixture(scope="module", autouse=True)
def here(folder):
    """In the folder of the data, as a user with nothing but an installation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T5X_LITE_COMPILATION_CACHE", "off")
        patch.chdir(folder)
        yield


@pytest.fixture(scope="module")
def trained(folder):
    """Two steps, and their evaluation without decoding."""
    assert run("train", *TRAIN, "--model_dir=run", "--gin.TRAIN_STEPS=2", "--gin.DECODE=False") == 0
    return folder / "run"


@pytest.mark.slow
def test_going_on_is_the_same_run(trained):
    for folder, steps in (("parts", 2), ("parts", 4), ("whole", 4)):
        assert run("train", *TRAIN, f"--model_dir={folder}", f"--gin.TRAIN_STEPS={steps}") == 0
    assert sorted(losses("whole")) == [1, 2, 3, 4] and losses("whole") == losses("parts")
    assert "eval/pairs/accuracy" in plots.read_metrics("whole")


def test_metrics_by_name_and_samples(trained, capsys):
    assert "eval/pairs/loss" in plots.read_metrics(trained)
    capsys.readouterr()
    # The vocabulary is the checkpoint's.
    assert run("eval", *DATA, "--gin_file=runs/eval.gin", "--model_dir=run") == 0
    assert "evaluation on validation: pairs 9 examples" in capsys.readouterr().out
    assert {f"eval/pairs/{name}" for name in ("accuracy", "rouge1", "rougeLsum")} <= set(plots.read_metrics(trained))
    sample = json.loads((trained / "samples-eval-2.jsonl").read_text().splitlines()[0])
    assert re.fullmatch(r'say: Who said "(\d+)\t\d+"\?', sample["inputs"]) and sample["targets"].startswith("Number ")


def test_two_processes_train_and_evaluate_as_one_does(trained, folder):
    whole = [*TRAIN, "--gin.TRAIN_STEPS=2"]
    with job(folder / "logs", 2, "train", *whole, f"--model_dir={folder / 'two'}") as started:
        started.done(900)
    assert losses("two") == pytest.approx(losses("run"), abs=1e-4)
    evaluated = [*DATA, "--gin_file=runs/eval.gin", f"--model_dir={trained}"]
    assert run("eval", *evaluated, "--gin.evaluate.output_dir=by-one") == 0
    with job(folder / "logs-eval", 2, "eval", *evaluated, "--gin.evaluate.output_dir=by-two") as started:
        started.done(900)
        assert "pairs/accuracy" in started.log(0) and "accuracy" not in started.log(1)
    one, two = (
        {name: values[-1] for name, (_, values) in plots.read_metrics(name).items()} for name in ("by-one", "by-two")
    )
    assert two == pytest.approx(one, abs=1e-4) and "eval/pairs/rouge1" in two
    one, two = ((folder / name / "samples-eval-2.jsonl").read_text() for name in ("by-one", "by-two"))
    assert one == two and one.count("\n") > 1


def test_asking_the_model(trained, folder):
    (folder / "ask.txt").write_text("say: Who said so?\n")
    assert (
        run(
            "infer",
            "--checkpoint=run",
            "--input=ask.txt",
            "--output=answers.jsonl",
            "--gin.Decoder.max_length=4",
            "--gin.infer.batch_size=8",
        )
        == 0
    )
    assert "prediction" in json.loads((folder / "answers.jsonl").read_text())


def shown(capsys, *flags):
    """What a dry run prints of batches: {(step, row): lines}."""
    capsys.readouterr()
    assert run("train", *TRAIN, "--gin.TRAIN_STEPS=9", "--dry_run", *flags) == 0
    out = capsys.readouterr().out
    parts = re.split(r"^step (\d+), row (\d+): ", out, flags=re.MULTILINE)
    return {(int(step), int(row)): text for step, row, text in zip(parts[1::3], parts[2::3], parts[3::3])}


def test_the_batch_of_a_step_can_be_traced(trained, folder, capsys):
    """From the checkpoint of step 2 on or from the beginning, the same; and every text to its line."""
    later = shown(capsys, "--model_dir=run", "--show_batches=1")
    begun = shown(capsys, "--model_dir=none", "--show_batches=1", "--at_step=3")
    assert later == begun and sorted(later) == [(3, row) for row in range(8)]
    assert not (folder / "none").exists()
    lines = (folder / "pairs.tsv").read_text().splitlines()
    for text in later.values():
        asked = re.findall(r"inputs +'say: Who said \"(\d+)\\t", text)
        places = re.findall(r"from +pairs.tsv:(\d+)$", text, flags=re.MULTILINE)
        assert asked and [lines[int(place) - 1].split('"')[1].split(r"\t")[0] for place in places] == asked


@pytest.mark.slow
def test_a_mixture_in_gin_is_reweighted_by_one_flag(folder, capsys):
    """Files with options of their own, mixed with text; the flag beats the file."""
    (folder / "mixed.gin").write_text("""
TEXT_FILES = {'said': @said/TextFiles()}
said/TextFiles.train = 'tsv:pairs.tsv'
said/TextFiles.template = 'SAID: {question}'
MIXTURE_OR_TASK_NAME = {'said': 1.0, 'text:text.txt': 1.0}
""")
    flags = [flag for flag in TRAIN if not flag.startswith("--gin.MIXTURE_OR_TASK_NAME")]

    def said(*more):
        capsys.readouterr()
        assert (
            run(
                "train",
                *flags,
                "--gin_file=mixed.gin",
                "--gin.SeqioSource.packing=False",
                "--gin.TRAIN_STEPS=9",
                "--model_dir=none",
                "--dry_run",
                "--show_batches=1",
                *more,
            )
            == 0
        )
        out = capsys.readouterr().out
        assert out.count("\nstep 1, row") == 8
        return out.count("inputs   'SAID: Who said")

    assert 0 < said() < 8
    assert said("--gin.MIXTURE_OR_TASK_NAME={'said': 99.0, 'text:text.txt': 1.0}") == 8


@pytest.mark.slow
def test_a_checkpoint_brings_its_vocabulary(trained):
    flags = [flag for flag in TRAIN if flag != BYTES]
    assert (
        run(
            "train",
            *flags,
            "--model_dir=tuned",
            "--gin.TRAIN_STEPS=1",
            "--gin.DECODE=False",
            "--gin.INITIAL_CHECKPOINT_PATH=run",
        )
        == 0
    )
    vocabulary = checkpoints.read_vocabulary("tuned")
    assert vocabulary is not None and vocabulary == checkpoints.read_vocabulary("run")


@pytest.mark.slow
def test_the_tutorials_file_trains_and_evaluates(capsys):
    own = [
        "--gin_file=examples/own_data.gin",
        "--gin.MIXTURE_OR_TASK_NAME=tsv:pairs.tsv",
        "--gin.TextFiles.index_folder=None",
    ]
    assert run("train", *own, "--model_dir=none", "--dry_run") == 0
    out = capsys.readouterr().out
    assert "first batch: encoder_input_tokens 32×256 int32" in out
    assert (
        out.count(
            "note: pairs.tsv: 3 of 54 line(s) skipped (2 wrong number of columns, 1 empty field); the first "
            "is pairs.tsv:9: 1 column(s), not 2 as in line 1\n"
        )
        == 1
    )
    assert run("eval", "--gin_file=runs/eval.gin", *own, "--model_dir=none") == 2
    assert "no checkpoint under none" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--gin.TextFiles.max_bad_lines=2"], "pairs.tsv:9: 1 column(s), not 2 as in line 1; 3 of "),
        (
            ["--gin.TextFiles.columns=('question', 'reply')"],
            "pairs.tsv:1: no column 'reply', the line names 'question'",
        ),
        (["--gin.MIXTURE_OR_TASK_NAME=tsv:none-*.tsv"], "'none-*.tsv': no such file"),
        (["--gin.VOCABULARY=None"], "files have no vocabulary of their own; set VOCABULARY"),
        (["--show_batches=1"], "--show_batches needs --dry_run"),
        (["--at_step=3", "--dry_run"], "--at_step needs --show_batches=N"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(folder, capsys, flags, message):
    assert run("train", *TRAIN, "--model_dir=wrong", "--gin.TRAIN_STEPS=1", *flags) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("t5x-lite: error:")]
    assert len(lines) == 1 and message in lines[0]
    assert not (folder / "wrong").exists()
