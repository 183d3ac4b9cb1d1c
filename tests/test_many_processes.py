"""Real `t5x-lite` processes on this machine: several of them compute, read and save what one does."""

import json
import pathlib
import shutil
import signal
import time

import jax
import pytest
from npz_runs import flags, run, steps_seen, train_losses, write_rows
from processes import job

from t5x_lite import checkpoints

FLOAT64 = {"T5Config.dtype": "float64", "T5Config.param_dtype": "float64"}
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.npz"
    write_rows(path, 80)
    return path


def in_one_process(folder, arguments, dtype="float64", **more):
    with jax.enable_x64(dtype == "float64"):
        assert run(folder, *arguments, **more) == 0
    return train_losses(folder)


def x64(dtype):
    return {"JAX_ENABLE_X64": str(int(dtype == "float64"))}


def test_two_processes_train_as_one_does_and_one_goes_on_from_what_they_saved(rows, tmp_path):
    expected = in_one_process(tmp_path / "one", flags(rows, **FLOAT64, TRAIN_STEPS=22))
    arguments = flags(rows, "{'data': 1, 'fsdp': 2}", **FLOAT64, TRAIN_STEPS=20, **{"train.save_every": 10})
    with job(tmp_path / "logs", 2, *arguments, f"--model_dir={tmp_path / 'two'}", environment=x64("float64")) as two:
        two.done()
        for i in range(2):
            assert f"process {i} of 2 on " in two.log(i).splitlines()[4]
            assert "1 of 2 devices (cpu, cpu); coordinator 127.0.0.1:" in two.log(i)
        assert "step 20/20" in two.log(0) and "step" not in two.log(1)
    assert train_losses(tmp_path / "two") == pytest.approx(expected[:20], abs=TOLERANCE["float64"])
    assert checkpoints.steps(tmp_path / "two") == [10, 20]
    on = in_one_process(tmp_path / "two", flags(rows, **FLOAT64, TRAIN_STEPS=22))
    assert on == pytest.approx(expected, abs=TOLERANCE["float64"])


def test_who_differs_stops_all_with_one_line(rows, tmp_path):
    with job(
        tmp_path / "logs",
        2,
        *flags(rows),
        f"--model_dir={tmp_path / 'run'}",
        "--gin.TRAIN_STEPS=2",
        each={1: ["--gin.BATCH_SIZE=16"]},
    ) as two:
        assert two.wait() == [2, 2]
        for i in range(2):
            (line,) = two.errors(i)
            assert line == (
                "the processes are not alike: process 1 has BATCH_SIZE = 16, process 0 8; start all of "
                "them with the same command and code"
            )
    assert not (tmp_path / "run").exists()


# --- More of them, and what they leave --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def four(rows, tmp_path_factory):
    """(MODEL_DIR of four processes that trained 20 steps in float64 and saved every tenth, losses of one process)."""
    folder = tmp_path_factory.mktemp("four")
    expected = in_one_process(folder / "one", flags(rows, **FLOAT64, TRAIN_STEPS=20))
    arguments = flags(rows, "{'data': 2, 'fsdp': 2}", **FLOAT64, TRAIN_STEPS=20, **{"train.save_every": 10})
    with job(folder / "logs", 4, *arguments, f"--model_dir={folder / 'four'}", environment=x64("float64")) as started:
        started.done(1200)
    return folder / "four", expected


@pytest.mark.slow
def test_four_processes_train_as_one_does(four):
    folder, expected = four
    assert train_losses(folder) == pytest.approx(expected, abs=TOLERANCE["float64"])


@pytest.mark.slow
@pytest.mark.parametrize(("count", "mesh"), [(1, "{'fsdp': 4, 'tensor': 2}"), (2, "{'data': 2}"), (2, "{'tensor': 2}")])
def test_what_four_saved_any_number_goes_on_from(four, rows, tmp_path, count, mesh):
    folder, expected = four
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "20")
    arguments = flags(rows, mesh, **FLOAT64, TRAIN_STEPS=20)
    if count == 1:
        in_one_process(tmp_path / "run", arguments)
    else:
        with job(
            tmp_path / "logs", count, *arguments, f"--model_dir={tmp_path / 'run'}", environment=x64("float64")
        ) as started:
            started.done(1200)
            assert "going on from step 10" in started.log(0)
    assert train_losses(tmp_path / "run") == pytest.approx(expected, abs=TOLERANCE["float64"])


@pytest.mark.slow
def test_in_float32_too(rows, tmp_path):
    arguments = flags(rows, "{'data': -1}", TRAIN_STEPS=20)
    expected = in_one_process(tmp_path / "one", arguments, "float32")
    with job(tmp_path / "logs", 4, *arguments, f"--model_dir={tmp_path / 'four'}") as started:
        started.done(1200)
    assert train_losses(tmp_path / "four") == pytest.approx(expected, abs=TOLERANCE["float32"])


@pytest.mark.slow
def test_told_to_stop_all_save_the_same_step_and_go_on_from_it(rows, tmp_path):
    arguments = [*flags(rows, "{'data': -1}", TRAIN_STEPS=200), f"--model_dir={tmp_path / 'run'}"]
    with job(tmp_path / "logs", 2, *arguments) as started:
        when_steps_are_seen(started, tmp_path / "run", 7)
        started.processes[1].send_signal(signal.SIGTERM)
        assert started.wait(600) == [75, 75], started
        (saved,) = checkpoints.steps(tmp_path / "run")
        assert f"told to stop: step {saved} is saved" in started.log(0)
    with job(tmp_path / "logs", 2, *arguments, f"--gin.TRAIN_STEPS={saved + 2}") as started:
        started.done(1200)
        assert f"going on from step {saved} " in started.log(0)
    assert len(train_losses(tmp_path / "run")) == saved + 2


# --- Saving and reading that fails in one of them ---------------------------------------------------------------------

# A process that is started so may write no file of more than 200 kB.
SMALL_FILES = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
sys.argv[0] = "t5x-lite"
runpy.run_module("t5x_lite", run_name="__main__")
"""


@pytest.mark.slow
def test_a_save_that_fails_in_one_fails_in_all_and_training_goes_on(rows, tmp_path):
    arguments = [
        *flags(rows, "{'fsdp': 2}", TRAIN_STEPS=30),
        "--gin.T5Config.mlp_dim=8192",
        "--gin.train.save_every=5",
        "--gin.Retry.seconds=0",
        "--gin.Retry.failures=3",
        f"--model_dir={tmp_path / 'run'}",
    ]

    def command(coordinator, i):
        place = [f"--coordinator={coordinator}", "--num_processes=2", f"--process_id={i}"]
        return [*(["-c", SMALL_FILES] if i else ["-m", "t5x_lite"]), *arguments, *place]

    with job(tmp_path / "logs", 2, command=command) as started:
        assert started.wait(1200) == [2, 2], started
        for i in range(2):
            (line,) = started.errors(i)
            assert "File too large" in line and "3 times in a row by now; there is no checkpoint yet" in line
        assert "failure 2 of 3" in started.log(0) and "step 5" in started.log(0)
    assert checkpoints.steps(tmp_path / "run") == []


@pytest.mark.slow
def test_the_folder_is_gone_for_a_while(rows, tmp_path):
    arguments = [
        *flags(rows, "{'data': -1}", TRAIN_STEPS=60),
        "--gin.train.save_every=5",
        "--gin.Retry.seconds=1",
        f"--model_dir={tmp_path / 'run'}",
    ]
    folder, away = tmp_path / "run" / "checkpoints", tmp_path / "away"
    with job(tmp_path / "logs", 2, *arguments) as started:
        when_steps_are_seen(started, tmp_path / "run", 7)
        folder.rename(away)
        folder.write_text("")  # a file in its place: not even root can write into it
        until = time.monotonic() + 300
        while "saving step" not in started.log(0) or "failed" not in started.log(0):
            assert time.monotonic() < until and started.processes[0].poll() is None, started
            time.sleep(0.05)
        folder.unlink()
        away.rename(folder)
        started.done(1200)
        assert "saving works again" in started.log(0)
    assert max(checkpoints.steps(tmp_path / "run")) == 60


@pytest.mark.slow
def test_what_is_damaged_for_one_is_damaged_for_all(rows, tmp_path):
    arguments = [
        *flags(rows, "{'data': 1, 'fsdp': 2}", TRAIN_STEPS=10),
        "--gin.train.save_every=5",
        f"--model_dir={tmp_path / 'run'}",
    ]
    with job(tmp_path / "logs", 2, *arguments) as started:
        started.done(1200)
    expected = train_losses(tmp_path / "run")
    # What process 1 wrote; process 0 can read all that it needs.
    folder = tmp_path / "run" / "checkpoints"
    pieces = list((folder / "10" / "params").glob("ocdbt.process_1/d/*"))
    for piece in pieces:
        piece.write_bytes(b"")
    assert pieces
    with job(tmp_path / "logs", 2, *arguments) as started:
        started.done(1200)
        assert "is damaged" in started.log(0) and "going on from step 5 instead" in started.log(0), started
    assert train_losses(tmp_path / "run") == expected
    assert (folder / "damaged-10").exists()


# --- Killed and stopped -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "who", "how"),
    [
        (2, 1, signal.SIGKILL),
        (2, 0, signal.SIGKILL),
        (2, 1, signal.SIGSTOP),
        (2, 0, signal.SIGSTOP),
        (4, 3, signal.SIGKILL),
        (4, 2, signal.SIGSTOP),
    ],
)
def test_one_dies_or_stands_still_and_the_others_name_it_and_end(rows, tmp_path, count, who, how):
    seconds = 20
    arguments = [
        *flags(rows, "{'data': -1}", TRAIN_STEPS=100_000),
        f"--gin.Processes.lost_seconds={seconds}",
        "--gin.train.save_every=10",
        f"--model_dir={tmp_path / 'run'}",
    ]
    with job(tmp_path / "logs", count, *arguments) as started:
        when_steps_are_seen(started, tmp_path / "run", 12, saved=True)
        started.processes[who].send_signal(how)
        others = [i for i in range(count) if i != who]
        until = time.monotonic() + 3 * seconds
        while any(started.processes[i].poll() is None for i in others):
            assert time.monotonic() < until, f"not within a bounded time\n{started}"
            time.sleep(0.1)
        assert {started.processes[i].poll() for i in others} == {75}, started
        for i in others:
            assert f"process {who} of {count} on " in started.errors(i)[0], started
    saved = checkpoints.steps(tmp_path / "run")[-1]
    with job(tmp_path / "logs", count, *arguments, f"--gin.TRAIN_STEPS={saved + 2}") as started:
        started.done(1200)
        assert f"going on from step {saved} " in started.log(0)
    assert len(train_losses(tmp_path / "run")) == saved + 2


@pytest.mark.slow
@pytest.mark.parametrize("other_dies", [True, False])
def test_one_aborts_maybe_for_another_s_end(rows, tmp_path, other_dies):
    """As gloo does, in C++, where messages are out of step."""
    arguments = [*flags(rows, "{'data': -1}", TRAIN_STEPS=100_000), f"--model_dir={tmp_path / 'run'}"]
    with job(tmp_path / "logs", 2, *arguments, "--gin.Processes.lost_seconds=10") as started:
        when_steps_are_seen(started, tmp_path / "run", 3)
        if other_dies:
            started.processes[1].kill()
        started.processes[0].send_signal(signal.SIGABRT)
        codes = started.wait(90)
        if other_dies:
            assert codes == [75, -signal.SIGKILL], started
            assert "process 1 of 2 on " in started.errors(0)[0], started
        else:
            assert codes == [-signal.SIGABRT, 75], started
            assert "process 0 of 2 on " in started.errors(1)[0], started


def when_steps_are_seen(started, folder, number, seconds=900, saved=False):
    """Waits for so many steps, and if asked for a complete checkpoint, which is written behind them."""
    until = time.monotonic() + seconds
    while steps_seen(folder) < number or (saved and not checkpoints.steps(folder)):
        assert time.monotonic() < until and all(p.poll() is None for p in started.processes), started
        time.sleep(0.05)


# --- The same batches -------------------------------------------------------------------------------------------------


def batches(folder, count, source, steps, **more):
    """(digests of global batches, positions after them), the same from every process."""

    def command(coordinator, i):
        place = [coordinator, count, i] if count > 1 else None
        return [
            str(pathlib.Path(__file__).parent / "helpers" / "batch_digests.py"),
            json.dumps({"source": source, "batch_size": 8, "steps": steps, "place": place, **more}),
        ]

    with job(folder, count, command=command) as started:
        started.done(600)
        found = [
            [line.partition(" ")[2] for line in started.log(i).splitlines() if line.startswith(("batch", "posi"))]
            for i in range(count)
        ]
    assert len(found[0]) == steps + 1 and all(other == found[0] for other in found)
    return found[0][:-1], json.loads(found[0][-1])


def check_same_batches(folder, source):
    whole, end = batches(folder / "1", 1, source, steps=6)
    assert len(set(whole)) == 6
    first, middle = batches(folder / "begin", 2, source, steps=3)
    assert first == whole[:3]
    for count in (2, 4):
        assert batches(folder / str(count), count, source, steps=6) == (whole, end)
        assert batches(folder / f"on-{count}", count, source, steps=3, positions=middle) == (whole[3:], end)


@pytest.mark.slow
def test_batches_are_the_same_bytes_however_many_processes_read_them(rows, tmp_path):
    check_same_batches(tmp_path, {"kind": "NpzSource", "pattern": str(rows), "num_streams": 4})


@pytest.mark.slow
def test_so_are_those_of_a_mixture_of_seqio(tmp_path):
    for name in ("a", "b"):
        lines = [f"{name} question {i}\tanswer {i * i}\n" for i in range(200)]
        (tmp_path / f"{name}.tsv").write_text("".join(lines))
    mixture = {f"tsv:{tmp_path / 'a.tsv'}": 0.75, f"tsv:{tmp_path / 'b.tsv'}": 0.25}
    source = {
        "kind": "SeqioSource",
        "mixture_or_task_name": mixture,
        "feature_lengths": {"inputs": 32, "targets": 16},
        "num_streams": 4,
        "block_records": 32,
        "task_modules": ["t5x_lite.tasks.files"],
        "bytes": True,
    }
    check_same_batches(tmp_path, source)
