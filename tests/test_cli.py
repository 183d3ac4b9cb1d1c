"""The command line: flags, help, exit codes and what reaches the job."""

import os
import subprocess
import sys

import pytest

import gin
from t5x_lite import cli, command_line, configuration, gin_files, jobs, start_up
from t5x_lite.errors import Preempted, UserError

calls = []


@gin.configurable(module="t5x_lite")
def job_of_the_cli_test(checkpoint, folder=None, fail=None, number=1, dry_run=False):
    calls.append({"checkpoint": checkpoint, "folder": folder, "number": number, "dry_run": dry_run})
    configuration.check_all_read()
    if fail == "user":
        raise UserError("job_of_the_cli_test.fail is 'user': choose another")
    if fail == "interrupt":
        raise KeyboardInterrupt
    if fail == "preempted":
        raise Preempted()
    if fail == "bug":
        raise ZeroDivisionError("a bug")


@gin.configurable(module="t5x_lite")
def dry_job_of_the_cli_test():
    calls.append("dry")


@pytest.fixture(autouse=True)
def two_more_jobs(tmp_path, monkeypatch):
    """Two more jobs beside the real ones, in an empty folder, without the imports of JAX."""
    module = "module_of_the_cli_test"
    monkeypatch.setitem(sys.modules, module, sys.modules[__name__])
    monkeypatch.setitem(
        jobs.JOBS,
        "try",
        jobs.Job(
            module,
            "job_of_the_cli_test",
            "a job",
            "t5x-lite try",
            {"checkpoint": ("job_of_the_cli_test.checkpoint", "text"), "model_dir": ("MODEL_DIR", "text")},
        ),
    )
    monkeypatch.setitem(jobs.JOBS, "dry", jobs.Job(module, "dry_job_of_the_cli_test", "a job", "t5x-lite dry"))
    monkeypatch.setattr(cli, "MODULES", ())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    calls.clear()
    yield
    configuration.clear()


def error(capsys, *argv):
    """The one line on stderr of a command that ends with 2."""
    assert cli.main(argv) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("t5x-lite: error: ")
    return line.removeprefix("t5x-lite: error: ")


# ----------------------------------------------------------------------------------------------------------------------
# The way to the job
# ----------------------------------------------------------------------------------------------------------------------


def test_the_job_is_called_with_what_gin_says_and_the_files_are_printed_first(capsys):
    os.mkdir("folder")
    with open("folder/my.gin", "w", encoding="utf-8") as f:
        f.write("job_of_the_cli_test.folder = %MODEL_DIR\n")
    assert (
        cli.main(
            [
                "try",
                "--gin_file=my.gin",
                "--gin_search_paths=.,folder",
                "--model_dir",
                "~/2024",
                "--gin.job_of_the_cli_test.number=3",
                "--checkpoint=7",
            ]
        )
        == 0
    )
    assert calls == [{"checkpoint": "7", "folder": os.path.expanduser("~/2024"), "number": 3, "dry_run": False}]
    assert capsys.readouterr().err == f"gin files:\n  folder/my.gin  ({os.path.realpath('folder/my.gin')})\n"


def test_the_cache_is_asked_before_the_job_runs():
    assert cli.main(["try", "--checkpoint=a", "--gin.compilation_cache.folder=None"]) == 0  # else it would be unread


def test_flags_may_come_before_the_job_and_order_decides_among_them():
    assert (
        cli.main(["--gin.job_of_the_cli_test.number=3", "try", "--checkpoint=a", "--gin.job_of_the_cli_test.number=4"])
        == 0
    )
    assert calls[0]["number"] == 4


def test_dry_run(capsys):
    assert cli.main(["try", "--checkpoint=a", "--dry_run"]) == 0
    assert calls[0]["dry_run"] is True
    assert error(capsys, "dry", "--dry_run") == "--dry_run: dry has no dry run"
    assert error(capsys, "try", "--checkpoint=a", "--allow_config_change") == (
        "--allow_config_change: try has no run to go on with"
    )
    assert cli.main(["dry"]) == 0
    assert calls[1:] == ["dry"]


def test_modules_in_the_current_folder_can_be_imported_by_gin_files():
    with open("module_in_cwd_of_the_cli_test.py", "w", encoding="utf-8") as f:
        f.write("LOADED = True\n")
    with open("my.gin", "w", encoding="utf-8") as f:
        f.write("import module_in_cwd_of_the_cli_test\n")
    assert cli.main(["try", "--gin_file=my.gin", "--checkpoint=a"]) == 0
    assert sys.modules.pop("module_in_cwd_of_the_cli_test").LOADED
    assert sys.path[-1] == os.getcwd()  # last: it hides nothing


def test_notes_go_to_stderr(capsys):
    with open("recorded.gin", "w", encoding="utf-8") as f:
        f.write(gin_files.RECORDED_HEADER + "\ngone_job.x = 1\n")
    assert cli.main(["try", "--gin_file=recorded.gin", "--checkpoint=a"]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("t5x-lite:")]
    assert notes == ["t5x-lite: note: recorded.gin: skipped what this job does not know: gone_job.x"]


# ----------------------------------------------------------------------------------------------------------------------
# Exit codes
# ----------------------------------------------------------------------------------------------------------------------


def test_a_user_error_is_one_line_and_a_trace_only_with_verbose(capsys):
    argv = ["try", "--checkpoint=a", "--gin.job_of_the_cli_test.fail=user"]
    assert error(capsys, *argv) == "job_of_the_cli_test.fail is 'user': choose another"
    assert cli.main([*argv, "--verbose"]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed and printed.splitlines()[-1].startswith("t5x-lite: error: job_of_the_cli_test.fail")
    assert cli.main(["trai", "--verbose"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_keeps_its_trace_and_ends_with_1(capsys):
    assert cli.main(["try", "--checkpoint=a", "--gin.job_of_the_cli_test.fail=bug"]) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed and "a bug" in printed and "t5x-lite: error" not in printed


def test_an_interrupt_ends_with_130(capsys):
    assert cli.main(["try", "--checkpoint=a", "--gin.job_of_the_cli_test.fail=interrupt"]) == 130
    assert capsys.readouterr().err == "t5x-lite: interrupted\n"


def test_told_to_stop_it_ends_with_75(capsys):
    assert cli.main(["try", "--checkpoint=a", "--gin.job_of_the_cli_test.fail=preempted"]) == 75
    assert capsys.readouterr().err == "t5x-lite: told to stop (SIGTERM); started again, it goes on\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["trian"], "no job 'trian'; did you mean train?"),
        (["xyz"], "no job 'xyz'; jobs are train, eval, infer"),
        (["train", "--gin_fil=x"], "unknown flag --gin_fil; did you mean --gin_file?"),
        (["train", "--dry-run"], "unknown flag --dry-run; did you mean --dry_run?"),
        (["infer", "--outputs=x"], "unknown flag --outputs; did you mean --output?"),
        (["train", "--batch_size=3"], "unknown flag --batch_size; did you mean --gin.BATCH_SIZE?"),
        (["infer", "--model_dir=x"], "unknown flag --model_dir; infer takes --checkpoint, --input, --output"),
        (["--model_dir=x"], "unknown flag --model_dir; name the job first: t5x-lite JOB --flag=value"),
        (["train", "--zzzz"], "unknown flag --zzzz; values are set by --gin.NAME=VALUE, see t5x-lite train --help"),
        (["train", "x"], "'x' is not a flag; every choice is --flag=value, see t5x-lite train --help"),
        (["train", "--gin.X"], "--gin.X has no value: write --gin.X=VALUE"),
        (["train", "--gin_file", "--verbose_"], "--gin_file has no value: write --gin_file=VALUE"),
        (["train", "--model_dir="], "--model_dir has no value: write --model_dir=VALUE"),
        (["train", "--dry_run=1"], "--dry_run takes no value"),
        (["train", "--dry_run", "--show_batches=0"], "--show_batches=0: give a whole number of at least 1"),
        (["train", "--dry_run", "--at_step=x"], "--at_step=x: give a whole number of at least 1"),
        (["try", "--checkpoint=a", "--dry_run", "--show_batches=1"], "--show_batches: try shows no batches"),
        (["try"], "not set: checkpoint of job_of_the_cli_test. Add for example --checkpoint=VALUE"),
        (
            ["try", "--checkpoint=a", "--model_dir=x"],
            "--model_dir: no binding refers to the macro MODEL_DIR; the macros here: none",
        ),
        (
            ["try", "--checkpoint=a", "--gin.dry_job_of_the_cli_test.x=1"],
            "--gin.dry_job_of_the_cli_test.x: dry_job_of_the_cli_test has no parameter 'x'; it has none",
        ),
        (
            ["try", "--checkpoint=a", "--gin.compilation_cache.foldr=x"],
            "--gin.compilation_cache.foldr: compilation_cache has no parameter 'foldr' (did you mean folder?)",
        ),
    ],
)
def test_mistakes(capsys, argv, words):
    assert error(capsys, *argv).startswith(words)
    assert calls == []


# ----------------------------------------------------------------------------------------------------------------------
# Help
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["help"]])
def test_help(capsys, argv):
    assert cli.main(argv) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name}" in printed for name in ("train", "eval", "infer")) and "for example:" in printed


def test_nothing_at_all_shows_the_help_as_an_error(capsys):
    assert cli.main([]) == 2
    printed = capsys.readouterr()
    assert "usage: " in printed.err and printed.out == ""


@pytest.mark.parametrize("job", ["train", "eval", "infer", "serve", "convert"])
def test_help_of_a_job(capsys, job):
    assert cli.main([job, "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"t5x-lite {job}: ") and f"t5x-lite {job} --" in printed
    for word in (*configuration.MACROS, *(f"--{flag}=" for flag in jobs.JOBS[job].flags), "models/t5_1_1/small.gin"):
        assert word in printed
    assert max(map(len, printed.splitlines())) <= 120


@pytest.mark.parametrize("job", ["train", "eval", "infer", "serve", "study", "convert"])
def test_the_examples_are_commands_that_parse(job):
    import shlex

    words = shlex.split(jobs.JOBS[job].example.replace("\\\n", ""))
    assert words[0] == "t5x-lite"
    options = command_line.parse_flags(words[1:])
    assert options.job == job
    assert set(options.gin_files) <= set(gin_files.shipped_names())


# ----------------------------------------------------------------------------------------------------------------------
# The real jobs, the cache, the process
# ----------------------------------------------------------------------------------------------------------------------


def test_the_cache_is_on_unless_told_otherwise(monkeypatch):
    jax = pytest.importorskip("jax")
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        start_up.compilation_cache()  # the environment of these tests says off
        start_up.compilation_cache(None)
        assert jax.config.jax_compilation_cache_dir is None
        monkeypatch.delenv("T5X_LITE_COMPILATION_CACHE")
        configuration.parse(bindings=["compilation_cache.folder=None"])
        start_up.compilation_cache()
        configuration.check_all_read()
        assert jax.config.jax_compilation_cache_dir is None
        configuration.clear()
        start_up.compilation_cache()
        assert jax.config.jax_compilation_cache_dir == os.path.expanduser("~/.cache/t5x-lite/xla")
        jax.config.update("jax_compilation_cache_dir", "/chosen/by/jax")
        start_up.compilation_cache()
        assert jax.config.jax_compilation_cache_dir == "/chosen/by/jax"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_flags_of_xla_are_added_and_the_environment_has_the_last_word(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_b")
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    start_up.device_flags(xla=("--xla_a=2", "--xla_c=3"), libtpu=["--xla_tpu_d=true"])
    start_up.device_flags(xla=("--xla_c=3",))
    assert os.environ["XLA_FLAGS"] == "--xla_c=3 --xla_a=1 --xla_b"
    assert os.environ["LIBTPU_INIT_ARGS"] == "--xla_tpu_d=true"
    for wrong in ("--xla_a=1", ["xla_a=1"], [1]):
        with pytest.raises(UserError, match=r"device_flags\.xla = .*: give a list of texts"):
            start_up.device_flags(xla=wrong)


def test_xla_knows_the_flags_of_the_presets_for_gpus(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "")
    configuration.parse(["mesh/gpu64x8.gin"])
    start_up.device_flags()
    assert "--xla_gpu_" in os.environ["XLA_FLAGS"]
    code = "import jax; jax.devices()"  # XLA ends the process at a flag that it does not know
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "JAX_PLATFORMS": "cpu"}).returncode == 0


START = """
import sys
from t5x_lite import cli
code = cli.main(sys.argv[1:])
heavy = sorted({"jax", "tensorflow", "seqio", "flax", "numpy"} & set(sys.modules))
print("heavy", heavy, file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["train", "--no_such_flag"]])
def test_jax_is_not_needed_to_answer(argv):
    done = subprocess.run([sys.executable, "-c", START, *argv], capture_output=True, text=True, timeout=60)
    assert done.returncode == (2 if "no_such" in argv[-1] else 0)
    assert done.stderr.splitlines()[-1] == "heavy []"


def test_the_module_runs_as_the_command_does():
    done = subprocess.run([sys.executable, "-m", "t5x_lite", "trian"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "t5x-lite: error: no job 'trian'; did you mean train?\n")


REGISTER = """
import importlib, sys
from gin import config
from t5x_lite import jobs
for job in jobs.JOBS.values():
    if job.function != "evaluate":  # it may need seqio for its metrics
        assert callable(getattr(importlib.import_module(job.module), job.function))
        assert f"t5x_lite.{job.function}" in config._REGISTRY, job
for module in jobs.MODULES:
    importlib.import_module(module)
print("T5Config" if "t5x_lite.T5Config" in config._REGISTRY else "no T5Config")
print(sorted(name for name, _ in config._REGISTRY.items() if not name.startswith(("t5x_lite.", "gin."))))
print(sorted({"tensorflow", "seqio"} & set(sys.modules)))
"""


def test_the_jobs_register_their_names_without_tensorflow():
    done = subprocess.run([sys.executable, "-c", REGISTER], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["T5Config", "[]", "[]"]
