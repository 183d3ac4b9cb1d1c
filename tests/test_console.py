"""What a job says: to whom, on which stream, how quietly, as lines or objects; and how far long work is."""

import io
import json
import logging
import warnings

import pytest

from t5x_lite import cli, configuration, console, monitor, together


def objects(text):
    return [json.loads(line) for line in text.splitlines()]


def test_each_stream_has_its_own(capsys):
    console.say("on the way")
    console.show("the answer")
    printed = capsys.readouterr()
    assert printed.err == "on the way\n" and printed.out == "the answer\n"


def test_quiet_leaves_warnings_errors_and_results(capsys):
    with console.set_up("train", quiet=True):
        console.say("step 1")
        console.say("warning: a spike")
        console.say("convert: note: odd")
        console.say("t5x-lite: error: wrong", console.ERROR)
        console.show("done")
        with monitor.Progress("infer", 10, "lines", every_seconds=0.0) as progress:
            progress.add(5)
        with monitor.TrainingProgress(2) as progress:
            progress.update(1, {"loss": 1.0})
            progress.note("step 1: loss 1", console.RESULT)
    console.say("loud again")
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        "warning: a spike",
        "convert: note: odd",
        "t5x-lite: error: wrong",
        "loud again",
    ]
    assert printed.out.splitlines() == ["done", "step 1: loss 1"]


def test_objects_have_time_level_job_and_step(capsys):
    with console.set_up("train", log_format="json"):
        console.say("t5x-lite: error: two\nlines", console.ERROR)
        with monitor.TrainingProgress(4, terminal=None) as progress:
            progress.update(3, {"train/loss": 1.5})
        logging.getLogger("library").warning("old")
        warnings.warn("older", stacklevel=1)
    printed = capsys.readouterr()
    error, old, older = objects(printed.err)
    assert list(error) == ["time", "level", "job", "message"] and 1.7e9 < error["time"] < 1e11
    assert (error["level"], error["job"], error["message"]) == ("error", "train", "two\nlines")
    assert (old["level"], old["logger"], old["message"]) == ("warning", "library", "old")
    assert (older["level"], older["category"], older["message"]) == ("warning", "UserWarning", "older")
    assert [(line["level"], line["step"]) for line in objects(printed.out)] == [("info", 3)] * 2
    assert objects(printed.out)[1]["message"].startswith("step 3/4  loss 1.5000")


def test_the_first_process_alone_talks(capsys, monkeypatch):
    monkeypatch.setattr(together, "_me", together.Member(1, 2, None))
    console.say("mine")
    console.say("of each", everyone=True)
    with monitor.Progress("infer", 10, "lines", every_seconds=0.0) as progress:
        progress.add(5)
    assert capsys.readouterr().err == "of each\n"


@pytest.mark.parametrize(
    "argv, said",
    [
        (["train", "--gin.X", "--log_format=json"], "--gin.X has no value: write --gin.X=VALUE"),
        (["--log_format", "json", "trai"], "no job 'trai'; did you mean train?"),
    ],
)
def test_mistakes_are_objects_too(capsys, argv, said):
    assert cli.main(argv) == 2
    (line,) = objects(capsys.readouterr().err)
    assert (line["level"], line["message"]) == ("error", said)
    configuration.clear()


def test_another_format_than_there_is(capsys):
    assert cli.main(["train", "--log_format=xml"]) == 2
    assert capsys.readouterr().err == "t5x-lite: error: --log_format=xml: write text or json\n"


# --- how far ---------------------------------------------------------------------------------------------------------


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_are_sparse_and_say_how_much_is_left():
    clock, file = Clock(), io.StringIO()
    with monitor.Progress("cache", 400, "examples", done=100, every_seconds=10, file=file, clock=clock) as progress:
        for _ in range(25):
            clock.now += 1
            progress.add(4)
        clock.now += 60
    assert file.getvalue().splitlines() == [
        "cache: 140 of 400 examples (35 %), 4 examples/s, ETA 1:05",
        "cache: 180 of 400 examples (45 %), 4 examples/s, ETA 0:55",
    ]


def test_without_a_total_there_is_no_time_left_unless_the_share_is_known():
    clock, file = Clock(), io.StringIO()
    with monitor.Progress("infer", unit="lines", every_seconds=1, file=file, clock=clock) as progress:
        clock.now += 2
        progress.at(10)
    with monitor.Progress("infer", unit="lines", every_seconds=1, file=file, clock=clock) as progress:
        clock.now += 2
        progress.at(10, share=0.25)
        clock.now += 2
        progress.at(20, share=0.5)
    assert file.getvalue().splitlines() == [
        "infer: 10 lines, 5 lines/s",
        "infer: 10 lines (25 %), 5 lines/s",
        "infer: 20 lines (50 %), 5 lines/s, ETA 0:04",
    ]


def test_the_bar_of_an_evaluation_stands_below_that_of_the_training(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    file, clock = Terminal(), Clock()
    training = monitor.TrainingProgress(10, file=file, clock=clock)
    training.update(5, {"loss": 2.0})
    with monitor.Progress("evaluation", 8, "examples", file=file, clock=clock) as evaluation:
        clock.now += 1
        evaluation.add(4)
        last = file.getvalue().rpartition("step 5/10")[2]
        assert "evaluation: 4 of 8 examples (50 %), 4 examples/s, ETA 0:01" in last
    before = len(file.getvalue())
    clock.now += 1
    training.update(6, {"loss": 2.0})
    assert "evaluation" not in file.getvalue()[before:] and "step 6/10" in file.getvalue()[before:]
    training.close()
    assert file.getvalue().endswith("\x1b[?25h")  # the cursor is visible again


def test_objects_leave_no_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    file = Terminal()
    with console.set_up("infer", log_format="json"), monitor.Progress("infer", 2, "lines", file=file) as progress:
        progress.add()
    assert file.getvalue() == ""
