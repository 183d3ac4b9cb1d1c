"""launch/slurm.sbatch on a real SLURM: two tasks train, are pre-empted, are queued again, and end where undisturbed ones
do."""

import os
import pathlib
import sysconfig
import time

import numpy as np
import pytest
import slurm_cluster
from job_runs import losses
from processes import one_device

pytestmark = pytest.mark.slow  # starts, some ten seconds each, of two processes on two cores

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = f"{ROOT}/launch/slurm.sbatch"
TASKS = 2
STEPS = 600


@pytest.fixture(scope="module")
def slurm():
    installed = pathlib.Path(sysconfig.get_path("scripts")) / "t5x-lite"
    try:
        with slurm_cluster.running(grace=120, environment={**one_device(), "T5X_LITE": str(installed)}) as cluster:
            yield cluster
    except slurm_cluster.Unavailable as e:
        pytest.skip(f"SLURM does not start here: {e}")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """Of `train`, for a run whose steps take milliseconds."""
    rows = tmp_path_factory.mktemp("rows") / "rows.npz"
    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(2, 64, (64, 8)), rng.integers(2, 64, (64, 6))
    np.savez(rows, encoder_input_tokens=inputs, decoder_input_tokens=np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
             decoder_target_tokens=targets, decoder_loss_weights=np.ones_like(targets))
    sizes = dict(emb_dim=16, mlp_dim=16, head_dim=8, num_heads=2, vocab_size=64, num_encoder_layers=1,
                 num_decoder_layers=1)
    return ["--gin_file=models/t5_1_1/mini.gin", "--gin_file=runs/train_npz.gin", f"--gin.NPZ_PATTERN={rows}",
            *(f"--gin.T5Config.{name}={value}" for name, value in sizes.items()), "--gin.BATCH_SIZE=8",
            "--gin.train.log_every=1", f"--gin.TRAIN_STEPS={STEPS}"]


def submit(slurm, folder, *arguments):
    """The job's number; it runs in `folder`/run and writes `folder`/log."""
    return slurm.submit("--nodes=1", f"--ntasks-per-node={TASKS}", f"--output={folder}/log", SCRIPT, *arguments,
                        f"--model_dir={folder}/run")


def ended(slurm, job, folder, seconds=300):
    """(job, log) when it has ended, however."""
    found = slurm.wait(job, ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"), seconds)
    return found, (folder / "log").read_text()


@pytest.fixture(scope="module")
def undisturbed(slurm, arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    job, log = ended(slurm, submit(slurm, folder, *arguments), folder)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("COMPLETED", "0:0", "0"), log
    assert f"{TASKS} tasks on localhost" in log
    return losses(folder / "run")


def wait_for_steps(folder, n, seconds=180):
    metrics, end = folder / "run" / "metrics.jsonl", time.monotonic() + seconds
    while not metrics.exists() or metrics.read_text().count("train/loss") < n:
        assert time.monotonic() < end, (folder / "log").read_text()
        time.sleep(0.1)


@pytest.mark.parametrize("disturb", ["a more urgent job", "a signal"])
def test_a_disturbed_run_is_queued_again_and_ends_where_the_undisturbed_one_does(
        slurm, arguments, undisturbed, disturb, tmp_path):
    number = submit(slurm, tmp_path, *arguments)
    wait_for_steps(tmp_path, 20)
    if disturb == "a signal":
        slurm.run("scancel", "--signal=TERM", number)
    else:
        urgent = slurm.submit("--partition=urgent", "--gpus-per-node=8", "--wrap=true", f"--output={os.devnull}")
    assert slurm.wait(number, ("PENDING", "COMPLETED", "FAILED"), 120)["JobState"] == "PENDING"
    stopped_at = max(losses(tmp_path / "run"))
    assert 20 <= stopped_at < STEPS
    if disturb != "a signal":
        slurm.wait(urgent, ("COMPLETED",), 60)
    slurm.run("scontrol", "update", f"JobId={number}", "StartTime=now")  # SLURM has it wait for two minutes

    job, log = ended(slurm, number, tmp_path)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("COMPLETED", "0:0", "1"), log
    assert log.count("told to stop (SIGTERM); started again, it goes on") == TASKS, log
    assert "exit code 75" in log and f"going on from step {stopped_at} of" in log, log
    assert losses(tmp_path / "run") == undisturbed and len(undisturbed) == STEPS


def test_a_mistake_ends_the_job(slurm, arguments, tmp_path):
    job, log = ended(slurm, submit(slurm, tmp_path, *arguments, "--gin.BATCH_SIZES=8"), tmp_path)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "2:0", "0"), log
    assert "t5x-lite: error:" in log and "BATCH_SIZE" in log, log
