"""A SLURM of one node: munged, slurmctld and slurmd under this user's id, in a folder of their own."""

import contextlib
import getpass
import os
import pathlib
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence

DAEMONS = ("munged", "slurmctld", "slurmd")

# Nothing that needs root, systemd, cgroups or a data base. The node claims CPUs and GPUs that are not there, so that a
# script for real nodes is accepted as it stands. Jobs of the partition `urgent` take the nodes from those of `main`,
# which are told so and have `grace` seconds.
CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 NodeHostname={host} CPUs=128 Gres=gpu:8
PartitionName=main Nodes=localhost Default=YES PriorityTier=1 GraceTime={grace}
PartitionName=urgent Nodes=localhost PriorityTier=2
"""


class Unavailable(Exception):
    """SLURM does not run here; the message says why, with the daemons' logs."""


class Cluster:
    """What a user does at a terminal.

    Attributes:
      environment: of every command; jobs inherit it.
    """

    def __init__(self, folder: pathlib.Path, environment: dict[str, str]):
        self._folder = folder
        self.environment = environment

    def run(self, *command: str) -> str:
        """The command's output. Raises AssertionError with what it said where it fails."""
        done = subprocess.run(
            command, env=self.environment, cwd=self._folder, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *arguments: str) -> str:
        """The number of a new job."""
        return self.run("sbatch", "--parsable", *arguments).strip()

    def job(self, number: str) -> dict[str, str]:
        """`scontrol show job`: JobState, Restarts, ExitCode, ..."""
        fields = self.run("scontrol", "show", "job", number, "--oneliner").split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def wait(self, number: str, states: Sequence[str], seconds: float) -> dict[str, str]:
        """The job, as soon as it is in one of `states`. Raises AssertionError after `seconds`."""
        end = time.monotonic() + seconds
        while (job := self.job(number))["JobState"] not in states:
            assert time.monotonic() < end, f"job {number} is still {job['JobState']}\n{self.condition()}"
            time.sleep(0.2)
        return job

    def condition(self) -> str:
        """Of jobs and nodes, and what the daemons said last."""
        asked = (("scontrol", "show", "jobs", "--oneliner"), ("scontrol", "show", "nodes", "--oneliner"))
        return "\n".join([*(self.run(*command) for command in asked), _logs(self._folder)])


@contextlib.contextmanager
def running(grace: int, environment: dict[str, str]) -> Iterator[Cluster]:
    """A cluster for as long as the context lasts.

    Args:
      grace: seconds that a job has to save when a more urgent one takes its node.
      environment: of every command, and so of the jobs.

    Raises:
      Unavailable: a program is missing or does not start.
    """
    missing = [name for name in (*DAEMONS, "sbatch") if shutil.which(name, path=_path()) is None]
    if missing:
        raise Unavailable(f"not installed: {', '.join(missing)} (Debian's slurm-wlm and munge)")
    # Not the test's own folder: a socket's path is short, and munged wants one that others may enter.
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, contextlib.ExitStack() as daemons:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        _configure(folder, grace)
        environment = {**environment, "SLURM_CONF": f"{folder}/slurm.conf", "PATH": _path()}
        cluster = Cluster(folder, environment)
        for command in (
            [
                "munged",
                "--foreground",
                f"--key-file={folder}/munge.key",
                f"--socket={folder}/munge.socket",
                f"--pid-file={folder}/munge.pid",
                f"--seed-file={folder}/munge.seed",
                f"--log-file={folder}/munge.log",
            ],
            ["slurmctld", "-D"],
            ["slurmd", "-D", "-N", "localhost"],
        ):
            daemons.enter_context(_daemon(command, folder, environment))
        _wait_for_the_node(cluster, folder)
        try:
            yield cluster
        finally:
            with contextlib.suppress(AssertionError):
                cluster.run("scancel", f"--user={getpass.getuser()}")
                end = time.monotonic() + 40
                while cluster.run("squeue", "--noheader", "--states=RUNNING,COMPLETING") and time.monotonic() < end:
                    time.sleep(0.2)


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where the daemons are, unlike the PATH of most users


def _configure(folder: pathlib.Path, grace: int) -> None:
    for name in ("state", "spool"):
        (folder / name).mkdir()
    for gpu in range(8):
        (folder / f"gpu{gpu}").touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")
    ports = []
    with contextlib.ExitStack() as sockets:
        for _ in range(2):
            free = sockets.enter_context(socket.socket())
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            folder=folder,
            user=getpass.getuser(),
            host=socket.gethostname().partition(".")[0],
            grace=grace,
            controller_port=ports[0],
            node_port=ports[1],
        )
    )
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o600)


@contextlib.contextmanager
def _daemon(command: Sequence[str], folder: pathlib.Path, environment: dict[str, str]) -> Iterator[None]:
    with open(folder / f"{command[0]}.log", "w") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_the_node(cluster: Cluster, folder: pathlib.Path, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    said = ""
    while said.strip() != "idle":  # with an asterisk it does not answer yet
        if time.monotonic() > end:
            raise Unavailable(f"no node after {seconds:.0f} s: {said}\n{_logs(folder)}")
        time.sleep(0.2)
        try:
            said = cluster.run("sinfo", "--noheader", "--format=%T")
        except (AssertionError, subprocess.TimeoutExpired) as e:
            said = str(e)


def _logs(folder: pathlib.Path) -> str:
    return "\n".join(f"{log.name}: {log.read_text()[-3000:]}" for log in sorted(folder.glob("*.log")))
