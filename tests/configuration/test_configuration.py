"""Bindings: what a value means, what each mistake is told, what was read by nothing, and what is recorded."""

import re
import shlex

import pytest
from configurables import JOB, APart, a_job, a_schedule, another_schedule, error, write

import gin
from t5x_lite import configuration
from t5x_lite.errors import UserError

# ----------------------------------------------------------------------------------------------------------------------
# Values on the command line
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("/tmp/x", "/tmp/x"),
        ("pydocs_summarize", "pydocs_summarize"),
        ("gs://a/b-c_1/2", "gs://a/b-c_1/2"),
        ("2024-01-01", "2024-01-01"),
        ("two words", "two words"),
        ("a,b", "a,b"),
        ("1e-3", 1e-3),
        ("-2", -2),
        ("3", 3),
        ("True", True),
        ("None", None),
        ('{"inputs": 512}', {"inputs": 512}),
        ("(1, 2)", (1, 2)),
        ("(1,)", (1,)),
        ('"3"', "3"),
        ("'/a b'", "/a b"),
        ('"a # b"', "a # b"),
        ("[]", []),
        ("", None),
    ],
)
def test_values(text, value):
    if text == "":
        assert "no value" in error(bindings=["a_job.lengths="])
        return
    configuration.parse(bindings=[f"a_job.lengths={text}"])
    got = a_job(1, 2)[2]
    assert got == value and type(got) is type(value)


def test_a_leading_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    configuration.parse(bindings=["a_job.folder=~/run"])
    assert a_job(1)[1] == "/home/someone/run"


def test_references_macros_and_scopes_on_the_command_line():
    configuration.parse(
        bindings=[
            "a_job.part=@s/APart()",
            "s/APart.width=%W",
            "s/APart.depth=2",
            "W=7",
            "a_job.folder=%NEST/ED",
            "NEST/ED=x",
        ]
    )
    assert a_job()[:2] == (APart(7, 2), "x")


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("true", "write True"),
        ("none", "write None"),
        ("1,2", "'(1,2)'"),
        ("(1,2", "brackets"),
        ('"abc', "quotes"),
        ("@", "not a value"),
        ("=5", "not a value"),
        ("{1:}", "brackets"),
    ],
)
def test_a_slip_is_not_taken_for_text(text, remedy):
    message = error(bindings=[f"a_job.lengths={text}"])
    assert message.startswith(("--gin.a_job.lengths=", "--gin.a_job.lengths:"))
    assert remedy in message


@pytest.mark.parametrize("name", ["BATCH-SIZE", "", "a..b", "x.", "/x", "1x"])
def test_a_name_must_be_one(name):
    assert f"'{name}' is no name" in error(bindings=[f"{name}=1"])


def test_a_flag_without_a_value():
    assert error(bindings=["MODEL_DIR"]) == "--gin.MODEL_DIR has no value: write --gin.MODEL_DIR=VALUE"


# ----------------------------------------------------------------------------------------------------------------------
# Mistakes
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("\na_job.folder = /tmp/x\n", 2, "text needs quotes"),
        ("x: 3\n", 1, "x: 3"),
        ('x = "abc\n', 1, "quote"),
        ("import no_such_module_at_all\n", 1, "PYTHONPATH"),
        ("from __gin__ import nonsense\n", 1, "feature"),
        ("x = y\n", 1, "text needs quotes"),
        ("a b\n", 1, "NAME = VALUE"),
    ],
)
def test_bad_syntax_names_file_and_line(text, line, words):
    message = error([write("bad.gin", text)])
    assert message.startswith(f"bad.gin:{line}: ") and words in message


def test_an_open_bracket_and_bad_bytes():
    assert "a bracket or a quote left open" in error([write("bad.gin", "a_job.lengths = (1,\n")])
    with open("bytes.gin", "wb") as f:
        f.write(b"\xff\xfe = 1")
    assert "bytes.gin cannot be read" in error(["bytes.gin"])


@pytest.mark.parametrize(
    ("binding", "words"),
    [
        ("APart.widht = 1", "APart has no parameter 'widht' (did you mean width?)"),
        ("APart.zzz = 1", "it has width, depth, schedule"),
        ("Apart_.width = 1", "no configurable 'Apart_' (did you mean APart?)"),
        ("a_job.part = @APrt()", "no configurable 'APrt' (did you mean APart"),
        ("a_job.lengths = {'x': [@APrt]}", "no configurable 'APrt' (did you mean APart"),
    ],
)
def test_unknown_names(binding, words):
    message = error([write("my.gin", "# a line\n" + binding + "\n")])
    assert words in message and "(my.gin:2)" in message
    name, _, value = binding.partition(" = ")
    message = error(bindings=[f"{name}={value}"])
    assert message.startswith(f"--gin.{name}: ") and words in message


def test_all_missing_values_are_named_at_once_with_flags_to_copy():
    text = JOB + "a_job.lengths = %TASK_FEATURE_LENGTHS\na_job.fixed = %gin.REQUIRED\n"
    message = error([write("my.gin", text)], root="a_job")
    assert message == (
        "not set: MODEL_DIR (needed at my.gin:3); DEPTH (needed at my.gin:5); TASK_FEATURE_LENGTHS (needed at "
        "my.gin:6); fixed of a_job. Add for example --gin.MODEL_DIR=/tmp/t5x_lite/run --gin.DEPTH=VALUE "
        """--gin.TASK_FEATURE_LENGTHS='{"inputs": 512, "targets": 114}' --gin.a_job.fixed=VALUE"""
    )


def test_the_example_flags_can_be_pasted():
    message = error([write("my.gin", JOB + "a_job.lengths = %TASK_FEATURE_LENGTHS\n")])
    flags = [flag.removeprefix("--gin.") for flag in shlex.split(message.partition("for example ")[2])]
    flags = [flag.replace("VALUE", "3") for flag in flags]
    configuration.parse(["my.gin"], flags, root="a_job")
    assert a_job()[1:3] == ("/tmp/t5x_lite/run", {"inputs": 512, "targets": 114})


def test_a_macro_set_to_required_is_missing_until_it_is_set():
    write("my.gin", "a_job.folder = %MODEL_DIR\nMODEL_DIR = %gin.REQUIRED\na_job.part = 1\n")
    assert "not set: MODEL_DIR" in error(["my.gin"], root="a_job")
    configuration.parse(["my.gin"], ["MODEL_DIR=x"], root="a_job")


def test_parameters_without_a_value_are_found_before_the_call():
    message = error(bindings=["a_job.part=@s/APart()", "s/APart.width=1"], root="a_job")
    assert "not set: folder of a_job; depth of s/APart" in message
    # What is handed over uncalled gets its arguments from the code that calls it.
    configuration.parse(bindings=["a_job.part=1", "a_job.folder=x", "a_job.later=@APart"], root="a_job")


def test_short_flags_are_named_where_there_are_some():
    with pytest.raises(UserError, match=re.escape("--model_dir=/tmp/t5x_lite/run --folder=VALUE")):
        configuration.parse(
            bindings=["a_job.part=%MODEL_DIR"],
            root="a_job",
            flags={"MODEL_DIR": "--model_dir", "a_job.folder": "--folder"},
        )


# ----------------------------------------------------------------------------------------------------------------------
# Bindings without effect
# ----------------------------------------------------------------------------------------------------------------------

ENOUGH = ["a_job.part=1", "a_job.folder=%MODEL_DIR", "MODEL_DIR=x"]


def test_a_misspelt_macro_is_found_before_the_job_runs():
    write("my.gin", "a_job.part = %BATCH_SIZE\na_job.folder = 'x'\n")
    message = error(["my.gin"], ["BATCHSIZE=4"])
    assert message == "--gin.BATCHSIZE: no binding refers to the macro BATCHSIZE (did you mean BATCH_SIZE?)"
    assert "(did you mean BATCH_SIZE?)" in error(["my.gin"], ["batchsize=4"])
    message = error([write("other.gin", "include 'my.gin'\n\nBATCH_SIZ = 4\n")], ["BATCH_SIZE=1"])
    assert message.startswith("BATCH_SIZ (other.gin:3): ")


def test_unread_parameters_are_told_with_the_reason():
    assert error(bindings=[*ENOUGH, "another_schedule.peak=1"], run=a_job).startswith(
        "--gin.another_schedule.peak was read by nothing, since this job never used another_schedule"
    )
    assert "never used in the scope s" in error(bindings=[*ENOUGH, "s/a_job.fixed=1"], run=a_job)
    assert "gives another value" in error(bindings=[*ENOUGH, "a_job.fixed=1"], run=lambda: a_job(fixed=2))
    message = error([write("my.gin", "\na_schedule.peak = 1\n")], ENOUGH, run=lambda: (a_job(), another_schedule()))
    assert message.startswith("a_schedule.peak (my.gin:2) was read by nothing")


def test_near_names_among_what_was_read():
    message = error(
        bindings=[*ENOUGH, "another_schedule.peak=1"],
        run=lambda: (a_job(), gin.bind_parameter("a_schedule.peak", 1), a_schedule()),
    )
    assert "did you mean" not in message  # what was bound behind parse's back is not a name to recommend
    message = error(
        bindings=[*ENOUGH, "another_schedule.peak=1", "a_schedule.peak=1"], run=lambda: (a_job(), a_schedule())
    )
    assert "(did you mean a_schedule.peak?)" in message


def test_a_macro_that_only_an_unread_binding_refers_to(shipped):
    (shipped / "models" / "m.gin").write_text("a_schedule.peak = %PEAK\nPEAK = 1\na_job.part = 1\na_job.folder = 1\n")
    message = error(["models/m.gin"], ["PEAK=2"], run=a_job)
    assert message.startswith("--gin.PEAK was read by nothing")
    configuration.parse(["models/m.gin"])  # shipped files alone may set what this job does not read
    a_job()
    configuration.check_all_read()


def test_what_was_read_passes_through_scopes_references_and_uncalled_functions():
    configuration.parse(
        bindings=[
            *ENOUGH,
            "a_job.later=@s/t/APart",
            "s/APart.width=1",
            "APart.depth=2",
            "APart.schedule=@a_schedule()",
            "a_schedule.peak=%PEAK",
            "PEAK=%DEEPER",
            "DEEPER=3",
            "a_job.lengths={'x': [%IN_LIST]}",
            "IN_LIST=5",
        ],
        root="a_job",
    )
    assert a_job() == (1, "x", {"x": [5]}, 1, APart(1, 2, (3, 10)))
    configuration.check_all_read()


def test_an_outer_binding_hidden_by_an_inner_one_was_not_read():
    bindings = [*ENOUGH, "a_job.later=@s/a_schedule", "s/a_schedule.peak=1", "a_schedule.peak=2"]
    assert "--gin.a_schedule.peak was read by nothing" in error(bindings=bindings, run=a_job)


def test_a_file_may_be_overridden_by_the_command_line():
    write("my.gin", "a_job.part = %PART\nPART = 1\na_job.folder = 'x'\na_job.fixed = 3\n")
    configuration.parse(["my.gin"], ["a_job.part=2", "a_job.fixed=4"], root="a_job")
    assert a_job()[0] == 2
    configuration.check_all_read()
    assert "--gin.PART: no binding refers" in error(["my.gin"], ["a_job.part=2", "PART=4"])


def test_a_failed_parse_leaves_nothing_behind_and_the_next_starts_fresh():
    error(bindings=["a_schedule.peak=3", "a_schedule.zzz=3"])
    assert a_schedule()[0] == 0.5
    configuration.parse(bindings=["a_schedule.peak=3"])
    configuration.parse(bindings=["a_schedule.steps=3"])
    assert a_schedule() == (0.5, 3)
    configuration.check_all_read()
    configuration.parse(bindings=["a_schedule.peak=3"])
    gin.clear_config()  # by someone else
    configuration.check_all_read()


# ----------------------------------------------------------------------------------------------------------------------
# The recorded configuration
# ----------------------------------------------------------------------------------------------------------------------


def record():
    """Parse a configuration with every kind of value, run it, and write down what it used."""
    write("part_of_test_module.py", "")
    write("my.gin", "import part_of_test_module\ninclude 'rest.gin'\na_job.part = @s/APart()\n")
    write(
        "rest.gin",
        "s/APart.width = %WIDTH\nWIDTH = %DEPTH\nDEPTH = 4\nAPart.depth = %DEPTH\na_job.folder = %DIR\n"
        "APart.schedule = @another_schedule()\nanother_schedule.peak = -1e-9\n"
        "a_job.later = @a_schedule\n",
    )
    text = 'it\'s "long", ' * 12 + "\n\ttabs"
    lengths = {"inputs": 512, "nested": [(1,), {"text": text, "none": None, "macro": None}]}
    parsed = configuration.parse(
        ["my.gin"],
        ["DIR=/tmp/x", f"a_job.lengths={lengths!r}".replace("'macro': None", "'macro': %DEPTH")],
        root="a_job",
    )
    result = a_job(dry_run=True)
    configuration.check_all_read()
    return parsed, result, configuration.operative_config("train")


def bindings_of(text):
    return [line for line in text.splitlines() if not line.startswith("# from ")]


def test_the_operative_configuration_runs_again_as_it_is(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    _, result, text = record()
    assert result[2]["nested"][1]["macro"] == 4 and result[4] == (0.5, 10)
    assert "import part_of_test_module" in text
    assert "a_job.dry_run" not in text  # given by the caller, so not a choice of the configuration
    values = configuration.operative_values()
    assert {name: values[name] for name in ("s/APart.width", "WIDTH", "DEPTH", "a_job.part")} == {
        "s/APart.width": "%WIDTH",
        "WIDTH": "%DEPTH",
        "DEPTH": "4",
        "a_job.part": "@s/APart()",
    }
    write("recorded.gin", text)
    configuration.parse(["recorded.gin"], root="a_job")
    before = {key: dict(values) for key, values in gin.config._CONFIG.items()}
    assert a_job(dry_run=True) == result
    configuration.check_all_read()
    again = configuration.operative_config("train")
    assert bindings_of(again) == bindings_of(text)
    configuration.parse([write("again.gin", again)], root="a_job")
    assert {key: dict(values) for key, values in gin.config._CONFIG.items()} == before


def test_a_recorded_configuration_serves_another_job_and_loses_to_the_user(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    _, _, text = record()
    unknown = "gone_job.folder = %OLD\nOLD = 1\na_job.zzz = 2\na_schedule.peak = @gone_thing()\n"
    write("recorded.gin", text + unknown)
    write("mine.gin", "a_schedule.peak = 2\n")
    parsed = configuration.parse(["mine.gin", "recorded.gin"])
    assert parsed.notes == (
        "recorded.gin: skipped what this job does not know: gone_job.folder, a_job.zzz, a_schedule.peak",
    )
    assert a_schedule() == (2, 10)  # and nothing else of the recording is read
    configuration.check_all_read()


def test_a_macro_added_to_a_recorded_file_is_still_checked(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    _, _, text = record()
    assert "no binding refers to the macro DEPHT (did you mean DEPTH?)" in error(
        [write("recorded.gin", text + "DEPHT = 5\n")]
    )
