"""Gin files and bindings: what is found, who wins, what each mistake is told."""

import dataclasses
import os
import re
import shlex
import sys

import gin
import pytest

from t5x_lite import configuration, gin_files
from t5x_lite.errors import UserError


@gin.configurable(module="configuration_test")
def a_schedule(peak=0.5, steps=10):
    return peak, steps


@gin.configurable(module="configuration_test")
def another_schedule(peak=0.5):
    return peak


@gin.configurable(module="configuration_test")
@dataclasses.dataclass(frozen=True)
class APart:
    width: int
    depth: int
    schedule: object = None


@gin.configurable(module="configuration_test")
def a_job(part, folder, lengths=None, fixed=1, later=None, dry_run=False):
    made = later() if later else None
    return part, folder, lengths, fixed, made


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every test runs in an empty folder, so that nothing is found by luck, and ends with nothing parsed."""
    monkeypatch.chdir(tmp_path)
    yield
    configuration.clear()


def write(name, text):
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    with open(name, "w", encoding="utf-8") as f:
        f.write(text)
    return name


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder of shipped files of the test's own: ranks and origins are told by it."""
    folder = tmp_path / "installed" / "gin"
    (folder / "models").mkdir(parents=True)
    monkeypatch.setattr(gin_files, "shipped_folder", lambda: folder)
    return folder


JOB = """
a_job.part = @APart()
a_job.folder = %MODEL_DIR
APart.width = 4
APart.depth = %DEPTH
"""


def error(files=(), bindings=(), search_paths=(), root=None, run=None):
    """The message of the UserError of parsing (and then of `run` and `check_all_read`): one line, always."""
    with pytest.raises(UserError) as caught:
        configuration.parse(files, bindings, search_paths, root)
        if run is not None:
            run()
            configuration.check_all_read()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# ----------------------------------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------------------------------


def test_shipped_files_are_found_from_anywhere_and_named_canonically():
    _models()
    parsed = configuration.parse(["models/t5_1_1/mini.gin"])
    assert [file.name for file in parsed.files] == ["t5x_lite/gin/models/t5_1_1/mini.gin",
                                                    "t5x_lite/gin/models/t5_1_1/family.gin"]
    assert all(os.path.isabs(file.path) and os.path.isfile(file.path) for file in parsed.files)


def test_canonical_includes_mean_the_shipped_file_even_where_the_user_has_the_same_path(shipped):
    (shipped / "models" / "a.gin").write_text("include 't5x_lite/gin/models/b.gin'\n")
    (shipped / "models" / "b.gin").write_text("a_schedule.peak = 1.0\n")
    write("t5x_lite/gin/models/b.gin", "a_schedule.peak = 2.0\n")
    configuration.parse([write("mine.gin", "include 't5x_lite/gin/models/a.gin'\n")])
    assert a_schedule()[0] == 1.0


def test_gins_own_parser_reads_canonical_names_too():
    models = _models()
    gin.parse_config_file("t5x_lite/gin/models/t5_1_1/mini.gin")
    assert models.T5Config().emb_dim == 128 and models.T5Config().mlp_activations == ("gelu", "linear")


def test_a_name_found_twice_with_different_content_names_both(shipped):
    (shipped / "models" / "a.gin").write_text("a_schedule.peak = 1.0\n")
    write("models/a.gin", "a_schedule.peak = 2.0\n")
    message = error(["models/a.gin"])
    assert os.path.realpath("models/a.gin") in message and str(shipped / "models" / "a.gin") in message
    configuration.parse(["./models/a.gin"])
    assert a_schedule()[0] == 2.0
    configuration.parse(["t5x_lite/gin/models/a.gin"])
    assert a_schedule()[0] == 1.0
    write("models/a.gin", "a_schedule.peak = 1.0\n")  # the same content is no question
    configuration.parse(["models/a.gin"])


def test_search_paths_and_the_folder_of_the_including_file_are_searched():
    write("far/away.gin", "include 'near.gin'\na_schedule.steps = 3\n")
    write("far/near.gin", "a_schedule.peak = 2.0\n")
    configuration.parse(["away.gin"], search_paths=["far"])
    assert a_schedule() == (2.0, 3)
    configuration.parse(["far/away.gin"])
    assert a_schedule() == (2.0, 3)
    assert "no folder 'nowhere'" in error(["away.gin"], search_paths=["nowhere"])


def test_a_missing_file_is_told_with_the_nearest_shipped_names():
    message = error(["models/t5_1_1/smal.gin"])
    assert message.startswith("--gin_file=models/t5_1_1/smal.gin: no gin file")
    assert "did you mean models/t5_1_1/small.gin" in message
    message = error([write("my.gin", "\ninclude 't5x_lite/gin/models/t5_1_1/smal.gin'\n")])
    assert message.startswith("my.gin:2: ") and "models/t5_1_1/small.gin" in message
    os.mkdir("folder.gin")
    assert "is a folder" in error(["folder.gin"])


def test_a_file_included_twice_is_read_once_and_circles_end():
    write("a.gin", "include 'b.gin'\na_schedule.peak = 1.0\n")
    write("b.gin", "include 'a.gin'\na_schedule.peak = 2.0\n")
    parsed = configuration.parse(["a.gin", "b.gin"])
    assert [file.name for file in parsed.files] == ["a.gin", "b.gin"]
    assert a_schedule()[0] == 1.0


# ----------------------------------------------------------------------------------------------------------------------
# Who wins
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backwards", [False, True])
def test_the_order_of_files_of_different_rank_does_not_matter(shipped, backwards):
    for folder in ("runs", "examples"):
        (shipped / folder).mkdir()
    (shipped / "models" / "m.gin").write_text("a_schedule.peak = 0\na_schedule.steps = 0\nAPart.width = 0\n"
                                              "APart.depth = 0\n")
    (shipped / "runs" / "r.gin").write_text("a_schedule.peak = 1\na_schedule.steps = 1\nAPart.width = 1\n")
    (shipped / "examples" / "e.gin").write_text("include 't5x_lite/gin/runs/r.gin'\na_schedule.peak = 2\n"
                                                "a_schedule.steps = 2\n")
    write("mine.gin", "a_schedule.steps = 3\n")
    files = ["models/m.gin", "examples/e.gin", "mine.gin"]
    configuration.parse(files[::-1] if backwards else files)
    assert a_schedule() == (2, 3) and APart() == APart(width=1, depth=0)
    configuration.parse(files[::-1] if backwards else files, ["a_schedule.steps=4"])
    assert a_schedule() == (2, 4)


def test_two_shipped_files_of_one_rank_that_disagree_are_an_error(shipped):
    (shipped / "models" / "family.gin").write_text("APart.width = 1\nAPart.depth = 1\n")
    (shipped / "models" / "s.gin").write_text("include 't5x_lite/gin/models/family.gin'\nAPart.width = 2\n")
    (shipped / "models" / "l.gin").write_text("include 't5x_lite/gin/models/family.gin'\nAPart.width = 3\n")
    configuration.parse(["models/s.gin"])  # a file may override what it includes
    assert APart().width == 2
    message = error(["models/s.gin", "models/l.gin"])
    assert "models/s.gin:2 and t5x_lite/gin/models/l.gin:2 both set APart.width" in message


def test_imports_run_before_names_are_looked_up(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    write("late_module_of_test.py", "import gin\n@gin.configurable\ndef late_thing(x=1): return x\n")
    write("uses.gin", "late_thing.x = 5\n")
    write("imports.gin", "import late_module_of_test\n")
    configuration.parse(["uses.gin", "imports.gin"])
    assert sys.modules["late_module_of_test"].late_thing() == 5


def test_dynamic_registration_works_as_in_gin(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    write("plain_module_of_test.py", "def plain(x=1): return x\n")
    write("dynamic.gin", "from __gin__ import dynamic_registration\nimport plain_module_of_test\n"
                         "plain_module_of_test.plain.x = 7\n")
    configuration.parse(["dynamic.gin"])
    assert gin.get_configurable("plain")() == 7


# ----------------------------------------------------------------------------------------------------------------------
# Values on the command line
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "value"), [
    ("/tmp/x", "/tmp/x"), ("pydocs_summarize", "pydocs_summarize"), ("gs://a/b-c_1/2", "gs://a/b-c_1/2"),
    ("2024-01-01", "2024-01-01"), ("two words", "two words"), ("a,b", "a,b"), ("1e-3", 1e-3), ("-2", -2), ("3", 3),
    ("True", True), ("None", None), ('{"inputs": 512}', {"inputs": 512}), ("(1, 2)", (1, 2)), ("(1,)", (1,)),
    ('"3"', "3"), ("'/a b'", "/a b"), ('"a # b"', "a # b"), ("[]", []), ("", None),
])
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
    configuration.parse(bindings=["a_job.part=@s/APart()", "s/APart.width=%W", "s/APart.depth=2", "W=7",
                                  "a_job.folder=%NEST/ED", "NEST/ED=x"])
    assert a_job()[:2] == (APart(7, 2), "x")


@pytest.mark.parametrize(("text", "remedy"), [
    ("true", "write True"), ("none", "write None"), ("1,2", "'(1,2)'"), ("(1,2", "brackets"), ('"abc', "quotes"),
    ("@", "not a value"), ("=5", "not a value"), ("{1:}", "brackets"),
])
def test_a_slip_is_not_taken_for_text(text, remedy):
    message = error(bindings=[f"a_job.lengths={text}"])
    assert message.startswith("--gin.a_job.lengths=") or message.startswith("--gin.a_job.lengths:")
    assert remedy in message


@pytest.mark.parametrize("name", ["BATCH-SIZE", "", "a..b", "x.", "/x", "1x"])
def test_a_name_must_be_one(name):
    assert f"'{name}' is no name" in error(bindings=[f"{name}=1"])


def test_a_flag_without_a_value():
    assert error(bindings=["MODEL_DIR"]) == "--gin.MODEL_DIR has no value: write --gin.MODEL_DIR=VALUE"


# ----------------------------------------------------------------------------------------------------------------------
# Mistakes
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "line", "words"), [
    ("\na_job.folder = /tmp/x\n", 2, "text needs quotes"), ("x: 3\n", 1, "x: 3"), ('x = "abc\n', 1, "quote"),
    ("import no_such_module_at_all\n", 1, "PYTHONPATH"), ("from __gin__ import nonsense\n", 1, "feature"),
    ("x = y\n", 1, "text needs quotes"), ("a b\n", 1, "NAME = VALUE"),
])
def test_bad_syntax_names_file_and_line(text, line, words):
    message = error([write("bad.gin", text)])
    assert message.startswith(f"bad.gin:{line}: ") and words in message


def test_an_open_bracket_and_bad_bytes():
    assert "a bracket or a quote left open" in error([write("bad.gin", "a_job.lengths = (1,\n")])
    with open("bytes.gin", "wb") as f:
        f.write(b"\xff\xfe = 1")
    assert "bytes.gin cannot be read" in error(["bytes.gin"])


@pytest.mark.parametrize(("binding", "words"), [
    ("APart.widht = 1", "APart has no parameter 'widht' (did you mean width?)"),
    ("APart.zzz = 1", "it has width, depth, schedule"),
    ("Apart_.width = 1", "no configurable 'Apart_' (did you mean APart?)"),
    ("a_job.part = @APrt()", "no configurable 'APrt' (did you mean APart?)"),
    ("a_job.lengths = {'x': [@APrt]}", "no configurable 'APrt' (did you mean APart?)"),
])
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
        """--gin.TASK_FEATURE_LENGTHS='{"inputs": 512, "targets": 114}' --gin.a_job.fixed=VALUE""")


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
        configuration.parse(bindings=["a_job.part=%MODEL_DIR"], root="a_job",
                            flags={"MODEL_DIR": "--model_dir", "a_job.folder": "--folder"})


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
        "--gin.another_schedule.peak was read by nothing, since this job never used another_schedule")
    assert "never used in the scope s" in error(bindings=[*ENOUGH, "s/a_job.fixed=1"], run=a_job)
    assert "gives another value" in error(bindings=[*ENOUGH, "a_job.fixed=1"], run=lambda: a_job(fixed=2))
    message = error([write("my.gin", "\na_schedule.peak = 1\n")], ENOUGH, run=lambda: (a_job(), another_schedule()))
    assert message.startswith("a_schedule.peak (my.gin:2) was read by nothing")


def test_near_names_among_what_was_read():
    message = error(bindings=[*ENOUGH, "another_schedule.peak=1"], run=lambda: (
        a_job(), gin.bind_parameter("a_schedule.peak", 1), a_schedule()))
    assert "did you mean" not in message  # what was bound behind parse's back is not a name to recommend
    message = error(bindings=[*ENOUGH, "another_schedule.peak=1", "a_schedule.peak=1"],
                    run=lambda: (a_job(), a_schedule()))
    assert "(did you mean a_schedule.peak?)" in message


def test_a_macro_that_only_an_unread_binding_refers_to(shipped):
    (shipped / "models" / "m.gin").write_text("a_schedule.peak = %PEAK\nPEAK = 1\na_job.part = 1\na_job.folder = 1\n")
    message = error(["models/m.gin"], ["PEAK=2"], run=a_job)
    assert message.startswith("--gin.PEAK was read by nothing")
    configuration.parse(["models/m.gin"])  # shipped files alone may set what this job does not read
    a_job()
    configuration.check_all_read()


def test_what_was_read_passes_through_scopes_references_and_uncalled_functions():
    configuration.parse(bindings=[
        *ENOUGH, "a_job.later=@s/t/APart", "s/APart.width=1", "APart.depth=2", "APart.schedule=@a_schedule()",
        "a_schedule.peak=%PEAK", "PEAK=%DEEPER", "DEEPER=3", "a_job.lengths={'x': [%IN_LIST]}", "IN_LIST=5",
    ], root="a_job")
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
    write("rest.gin", "s/APart.width = %WIDTH\nWIDTH = %DEPTH\nDEPTH = 4\nAPart.depth = %DEPTH\na_job.folder = %DIR\n"
                      "APart.schedule = @another_schedule()\nanother_schedule.peak = -1e-9\n"
                      "a_job.later = @a_schedule\n")
    text = "it's \"long\", " * 12 + "\n\ttabs"
    lengths = {"inputs": 512, "nested": [(1,), {"text": text, "none": None, "macro": None}]}
    parsed = configuration.parse(["my.gin"], ["DIR=/tmp/x", f"a_job.lengths={lengths!r}".replace(
        "'macro': None", "'macro': %DEPTH")], root="a_job")
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
        "s/APart.width": "%WIDTH", "WIDTH": "%DEPTH", "DEPTH": "4", "a_job.part": "@s/APart()"}
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
        "recorded.gin: skipped what this job does not know: gone_job.folder, a_job.zzz, a_schedule.peak",)
    assert a_schedule() == (2, 10)  # and nothing else of the recording is read
    configuration.check_all_read()


def test_a_macro_added_to_a_recorded_file_is_still_checked(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    _, _, text = record()
    assert "no binding refers to the macro DEPHT (did you mean DEPTH?)" in error(
        [write("recorded.gin", text + "DEPHT = 5\n")])


# ----------------------------------------------------------------------------------------------------------------------
# The shipped files
# ----------------------------------------------------------------------------------------------------------------------

PARAMETERS = {  # embeddings counted once when tied, twice when not; T5 1.0's are in the paper's section 3.7, rounded
    "models/t5_1_0/mini.gin": 1_181_440,
    "models/t5_1_0/small.gin": 60_506_624,
    "models/t5_1_0/base.gin": 222_903_552,
    "models/t5_1_0/large.gin": 737_668_096,
    "models/t5_1_0/3b.gin": 2_851_598_336,
    "models/t5_1_0/11b.gin": 11_307_321_344,
    "models/t5_1_1/mini.gin": 1_836_800,
    "models/t5_1_1/small.gin": 76_961_152,
    "models/t5_1_1/base.gin": 247_577_856,
    "models/t5_1_1/large.gin": 783_150_080,
    "models/t5_1_1/xl.gin": 2_849_757_184,
    "models/t5_1_1/xxl.gin": 11_135_332_352,
    "models/mt5/small.gin": 300_176_768,
    "models/mt5/base.gin": 582_401_280,
    "models/mt5/large.gin": 1_229_581_312,
    "models/mt5/xl.gin": 3_742_619_648,
    "models/mt5/xxl.gin": 12_921_057_280,
    "models/umt5/small.gin": 306_601_984,
    "models/umt5/base.gin": 592_043_520,
    "models/umt5/xl.gin": 3_768_356_864,
    "models/umt5/xxl.gin": 12_972_531_712,
    "models/byt5/small.gin": 299_637_760,
    "models/byt5/base.gin": 581_653_248,
    "models/byt5/large.gin": 1_228_183_552,
    "models/byt5/xl.gin": 3_737_801_728,
    "models/byt5/xxl.gin": 12_906_899_328,
    "models/ul2/20b.gin": 19_591_209_984,
    "models/study/shared.gin": 137_949_312,
    "models/study/six_layers.gin": 123_790_080,
    "models/study/causal_lm.gin": 109_628_544,
    "models/study/prefix_lm.gin": 109_628_544,
    "models/study/2x.gin": 502_746_112,
    "models/study/4x.gin": 972_590_080,
}
# Shapes of T5 1.1 under the names of what was trained on from there.
PARAMETERS |= {f"models/{family}/{size}.gin": PARAMETERS[f"models/t5_1_1/{size}.gin"]
               for family in ("t5_1_1_lm_adapted", "flan_t5") for size in ("small", "base", "large", "xl", "xxl")}
# Trained, pretraining included, or meant to be finetuned with dropout; the others were pretrained without.
WITH_DROPOUT = ("t5_1_0", "flan_t5", "study")


def _models():
    return pytest.importorskip("t5x_lite.models")


def _model_files():
    return [name for name in gin_files.shipped_names() if name.startswith("models/")]


def test_every_model_file_is_in_the_table():
    assert {name for name in _model_files() if not name.endswith("family.gin")} == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    import math

    import jax

    models = _models()
    configuration.parse([name], root="T5Config")
    model = models.Model(models.T5Config())
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.abstract_params())) == PARAMETERS[name]
    with open(gin_files.find_file(name).path, encoding="utf-8") as f:
        assert f"# Expect: {PARAMETERS[name]:,} parameters" in f.read()
    assert models.T5Config().dropout_rate == (0.1 if name.split("/")[1] in WITH_DROPOUT else 0.0)
    configuration.parse([name], ["DROPOUT_RATE=0.3"])
    assert models.T5Config().dropout_rate == 0.3


@pytest.mark.parametrize("name", gin_files.shipped_names())
def test_headers_and_includes_of_shipped_files(name):
    with open(gin_files.find_file(name).path, encoding="utf-8") as f:
        text = f.read()
    header = text.split("\n\n")[0].splitlines()
    assert all(line.startswith("#") for line in header) and len(header) >= 4
    assert "t5x-lite " in "".join(header)  # the command that uses it
    includes = re.findall(r"^include (.*)$", text, flags=re.MULTILINE)
    assert all(include.startswith(("'t5x_lite/gin/", '"t5x_lite/gin/')) for include in includes)
