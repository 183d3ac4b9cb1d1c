"""The tutorials of gin/examples: the commands in their headers, word for word, on a small model and little data."""

import importlib
import json
import re
import shlex
import subprocess
import sys

import processes
import pytest

from t5x_lite import cli, command_line, configuration, gin_files, jobs, plots

TUTORIALS = {name: gin_files.find_file(name).path for name in gin_files.shipped_names() if name.startswith("examples/")}
TINY = [
    *(f"--gin.T5Config.{name}=16" for name in ("emb_dim", "mlp_dim")),
    *(f"--gin.T5Config.{name}=2" for name in ("num_heads", "num_encoder_layers", "num_decoder_layers")),
    "--gin.T5Config.head_dim=8",
]
SHORT = [
    "--gin.BATCH_SIZE=8",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 32}",
    "--gin.EVALUATION_EXAMPLES=8",
]


def header(name: str) -> list[str]:
    """The lines of the comment at the top, without their marks."""
    with open(TUTORIALS[name], encoding="utf-8") as file:
        return [re.sub(r"^# ?", "", line) for line in file.read().split("\n\n")[0].splitlines()]


def commands(name: str) -> list[list[str]]:
    """The words after t5x-lite of each command."""
    text = re.sub(r"\\\n\s*", "", "\n".join(header(name)))
    lines = re.findall(r"^(?:Use:)?\s*t5x-lite (\w+ .*?)&?$", text, flags=re.MULTILINE)
    return [shlex.split(line) for line in lines if "--" in line]


def files_of(name: str) -> dict[str, str]:
    """File -> text, of what a header says the first lines of."""
    found: dict[str, list[str]] = {}
    current = None
    for line in header(name):
        if match := re.search(r"first lines of (\S+) say", line):
            current = found.setdefault(match[1], [])
        elif current is not None:
            if not line.startswith(" " * 12):
                break
            current.append(line[12:])
    return {file: "\n".join(lines) + "\n" for file, lines in found.items()}


@pytest.mark.parametrize("name", TUTORIALS)
def test_the_commands_are_ones_that_parse(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = commands(name)
    assert found
    for words in found:
        options = command_line.parse_flags(words)
        job = jobs.JOBS[options.job]
        importlib.import_module(job.module)
        for module in jobs.MODULES:
            importlib.import_module(module)
        configuration.parse(options.gin_files, options.bindings, root=f"t5x_lite.{job.function}", also=job.also)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The folder of a user with texts and pairs, and nothing else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "books").mkdir()
    text = [f"{i}. Once upon a time there were {i} of them, and they lived in {i % 7} houses." for i in range(400)]
    (tmp_path / "books" / "one.txt").write_text("\n".join(text) + "\n")
    (tmp_path / "lines.txt").write_text("\n".join(text[:60]) + "\n")
    for file in ("pairs", "more"):
        (tmp_path / f"{file}.tsv").write_text("".join(f"{file} number {i}\tno. {i}\n" for i in range(200)))
    return tmp_path


def run(words, *more) -> int:
    configuration.clear()
    try:
        return cli.main([*words, *more])
    finally:
        configuration.clear()


def tiny(words, steps=2) -> list[str]:
    """A command with what makes it quick."""
    if words[0] != "train":
        return words
    own = [] if any("TRAIN_STEPS" in word for word in words) else [f"--gin.TRAIN_STEPS={steps}"]
    words = [
        word.replace("TRAIN_STEPS=500", "TRAIN_STEPS=2").replace("TRAIN_STEPS=1000", "TRAIN_STEPS=4") for word in words
    ]
    return [*words, *TINY, *SHORT, *own, "--gin.train.log_every=1", "--gin.SeqioSource.block_records=64"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain_text", "add_task", "swap_mixture", "add_objective"])
def test_a_tutorial_runs(name, here, capsys):
    for file, text in files_of(f"examples/{name}.gin").items():
        (here / file).write_text(text)
    for words in commands(f"examples/{name}.gin"):
        assert run(tiny(words)) == 0, words
    said = capsys.readouterr().out
    if name == "swap_mixture":
        assert {"eval/pairs/loss", "eval/more/loss"} <= set(plots.read_metrics("runs/both"))
    if name == "add_task":
        assert "ONCE UPON A TIME" in said
    if name == "pretrain_text":
        assert (here / "runs" / "books.html").exists()


@pytest.mark.slow
def test_the_tutorial_of_finetuning_from_a_folder_of_hugging_face(here):
    made = ["--gin.MODEL_DIR=small", "--gin.MIXTURE_OR_TASK_NAME=text:books/*.txt"]
    assert run(tiny(["train", "--gin_file=examples/pretrain_text.gin", *made]), "--gin.T5Config.scan_layers=False") == 0
    assert run(["convert", "--from=small", "--to=flan-t5-small", "--format=hugging_face"]) == 0
    train, infer = commands("examples/finetune_pairs.gin")
    assert run(tiny(train), "--gin.T5Config.vocab_size=384") == 0
    assert run(infer, "--gin.Decoder.max_length=8") == 0
    assert len((here / "answers.jsonl").read_text().splitlines()) == 60
    assert "eval/pairs/accuracy" in plots.read_metrics("runs/pairs")


@pytest.mark.slow
def test_the_tutorial_of_going_on(here, capsys):
    first, second = commands("examples/go_on.gin")
    assert run(tiny(first)) == 0 and run(tiny(second)) == 0
    assert "going on from step 2 of" in capsys.readouterr().out
    assert sorted(plots.read_metrics("runs/again")["train/loss"][0]) == [1, 2, 3, 4]


@pytest.mark.slow
def test_the_tutorial_of_many_hosts(here):
    port = processes.free_port()
    words = [
        [re.sub(r":9917$", f":{port}", word) for word in tiny(each)] for each in commands("examples/many_hosts.gin")
    ]
    started = [
        subprocess.Popen([sys.executable, "-P", "-m", "t5x_lite", *each], env=processes.one_device()) for each in words
    ]
    try:
        assert [process.wait(600) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    entries = [json.loads(line) for line in (here / "runs" / "hosts" / "metrics.jsonl").read_text().splitlines()]
    assert sorted(e["step"] for e in entries if e["name"] == "train/loss") == [1, 2]
