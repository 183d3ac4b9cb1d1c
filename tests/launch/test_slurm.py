"""launch/slurm.sbatch on a real SLURM: two tasks train, are pre-empted, are queued again, and end where undisturbed
ones do."""

import os
import pathlib
import sysconfig
import time

import pytest
import slurm_cluster
from npz_runs import flags, steps_seen, train_losses, write_rows
from processes import one_device

pytestmark = pytest.mark.slow  # starts, some ten seconds each, of two processes on two cores

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "launch" / "slurm.sbatch"
TASKS = 2
STEPS = 600
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


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
    rows = tmp_path_factory.mktemp("rows") / "rows.npz"
    write_rows(rows, 64)
    job, *rest = flags(rows, mesh=f"{{'data': {TASKS}, 'fsdp': 1}}", TRAIN_STEPS=STEPS)
    assert job == "train"  # the script's own first word
    return rest


class Job:
    """Two tasks that train into `folder`/run and write `folder`/log."""

    def __init__(self, slurm, folder, *arguments):
        self._slurm = slurm
        self.run = folder / "run"
        self.log = folder / "log"
        self.number = slurm.submit(
            "--nodes=1",
            f"--ntasks-per-node={TASKS}",
            f"--output={self.log}",
            str(SCRIPT),
            *arguments,
            f"--model_dir={self.run}",
        )

    def wait_for_steps(self, n, seconds=600):
        end = time.monotonic() + seconds
        while steps_seen(self.run) < n:
            assert time.monotonic() < end, self.log.read_text() + self._slurm.condition()
            time.sleep(0.1)

    def queued_again(self):
        """The step at which it stopped."""
        found = self._slurm.wait(self.number, ("PENDING", *ENDED), 300)
        assert found["JobState"] == "PENDING", self.log.read_text()
        return len(train_losses(self.run))

    def start_soon(self):
        """SLURM would have it wait for two minutes. At once is too soon: for a second or two after a job has been ended
        its node refuses it as already killed."""
        self._slurm.run("scontrol", "update", f"JobId={self.number}", "StartTime=now+10")

    def ended(self):
        """(state, exit code, how often it was queued again)"""
        found = self._slurm.wait(self.number, ENDED, 1200)
        return found["JobState"], found["ExitCode"], int(found["Restarts"])


def test_a_disturbed_run_is_queued_again_and_ends_where_the_undisturbed_one_does(slurm, arguments, tmp_path):
    (tmp_path / "undisturbed").mkdir()
    undisturbed = Job(slurm, tmp_path / "undisturbed", *arguments)
    assert undisturbed.ended() == ("COMPLETED", "0:0", 0), undisturbed.log.read_text()

    (tmp_path / "disturbed").mkdir()
    job = Job(slurm, tmp_path / "disturbed", *arguments)
    job.wait_for_steps(10)
    urgent = slurm.submit("--partition=urgent", "--gpus-per-node=8", "--wrap=true", f"--output={os.devnull}")
    first = job.queued_again()
    slurm.wait(urgent, ("COMPLETED",), 60)
    job.start_soon()
    job.wait_for_steps(first + 10)
    slurm.run("scancel", "--signal=TERM", job.number)
    second = job.queued_again()
    job.start_soon()
    assert job.ended() == ("COMPLETED", "0:0", 2), job.log.read_text()

    log = job.log.read_text()
    assert 10 <= first < second < STEPS
    assert log.count("told to stop (SIGTERM); started again, it goes on") == 2 * TASKS, log
    assert log.count(f"job {job.number}: exit code 75") == 2, log
    assert f"going on from step {first} of" in log and f"going on from step {second} of" in log, log
    for start in (1, 2, 3):
        assert f"job {job.number}, start {start}: {TASKS} tasks on localhost" in log, log
    losses = train_losses(job.run)
    assert len(losses) == STEPS and losses == train_losses(undisturbed.run)


def test_a_mistake_ends_the_job(slurm, arguments, tmp_path):
    job = Job(slurm, tmp_path, *arguments, "--gin.BATCH_SIZES=8")
    assert job.ended() == ("FAILED", "2:0", 0), job.log.read_text()
    assert "t5x-lite: error:" in job.log.read_text() and "BATCH_SIZE" in job.log.read_text()
