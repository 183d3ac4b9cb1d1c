"""launch/tpu_vm.sh against a gcloud that notes what it is told and has folders for hosts; and against the real one's
grammar."""

import json
import pathlib
import shlex
import shutil
import subprocess
import time

import fake_gcloud
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "tpu_vm.sh"
VARIABLES = {
    "NAME": "t5",
    "ZONE": "europe-west4-b",
    "TPU": "v5litepod-8",
    "RUNTIME": "v2-alpha-tpuv5-lite",
    "POLL_SECONDS": "0.1",
}
# What a shell would take apart, expand or end a word at.
ARGUMENTS = [
    "--gin_file=models/t5_1_1/mini.gin",
    "--gin.MESH={'data': 1, 'fsdp': 16}",
    '--gin.NAME=a "b" $HOME `id` \\n;#& *',
    "--model_dir=gs://bucket/it's here",
    "--gin.EMPTY=",
    "",
]


class World:
    def __init__(self, folder, plan=("0",), **variables):
        self.folder = folder
        self._environment = {**fake_gcloud.make(folder, list(plan)), **VARIABLES, **variables}

    def start(self, *arguments):
        return subprocess.Popen(
            ["bash", SCRIPT, *arguments],
            env=self._environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, *arguments, code=0):
        with self.start(*arguments) as process:
            try:
                output, _ = process.communicate(timeout=60)
            finally:
                process.kill()
        assert process.returncode == code, output
        return output

    def calls(self):
        """The words of each, `compute tpus queued-resources` left out."""
        file = self.folder / "calls"
        return [json.loads(line)[3:] for line in file.read_text().splitlines()] if file.exists() else []

    def started(self, host, n):
        return (self.folder / f"host{host}" / f"started.{n}").read_text().splitlines()


def words_of(printed):
    """Of each command that a dry run prints."""
    return [shlex.split(line) for line in printed.splitlines() if not line.startswith("#")]


def test_from_nothing_to_nothing(tmp_path):
    world = World(
        tmp_path,
        CREATE_FLAGS="--spot --network=mine",
        SSH_FLAGS="--tunnel-through-iap",
        SETTINGS="TFDS_DATA_DIR=gs://bucket/tfds",
    )
    assert world.run("create").splitlines() == ["t5: WAITING_FOR_RESOURCES", "t5: ACTIVE"]
    assert world.calls()[0] == [
        "create",
        "t5",
        "--zone=europe-west4-b",
        "--accelerator-type=v5litepod-8",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--node-id=t5",
        "--spot",
        "--network=mine",
    ]

    world.run("install")
    for host in range(fake_gcloud.HOSTS):
        home = tmp_path / f"host{host}"
        assert f"{home}/t5x-lite[tpu]" in (home / "installed").read_text()
        assert (home / "t5x-lite" / "gin" / "runs" / "pretrain.gin").exists()

    output = world.run("train", *ARGUMENTS)
    assert f"start 0 in {tmp_path}/host0/t5x-lite, TFDS_DATA_DIR=gs://bucket/tfds" in output and "exit code 0" in output
    for host in range(fake_gcloud.HOSTS):
        assert world.started(host, 0) == ["train", *ARGUMENTS]
    assert all("--tunnel-through-iap" in call for call in world.calls() if call[0] in ("ssh", "scp"))

    world.run("delete")
    assert world.calls()[-1] == ["delete", "t5", "--zone=europe-west4-b", "--force", "--quiet"]


def test_logs_of_another_host(tmp_path):
    world = World(tmp_path, WORKER="1")
    for command in ("create", "install", "train"):
        output = world.run(command)
    assert f"start 0 in {tmp_path}/host1" in output
    assert f"start 0 in {tmp_path}/host1" in world.run("logs")


@pytest.mark.parametrize(
    "plan, anew",
    [
        (["75 ACTIVE", "0"], False),  # told to stop, but the TPU stays
        (["75 SUSPENDED", "0"], True),  # the TPU is taken away, and the connection is lost with it
    ],
)
def test_a_stopped_run_is_started_again(tmp_path, plan, anew):
    world = World(tmp_path, plan)
    for command in ("create", "install"):
        world.run(command)
    before = len(world.calls())
    output = world.run("train", *ARGUMENTS)
    assert "starting again" in output and output.endswith("exit code 0\n")
    assert world.started(0, 0 if anew else 1) == ["train", *ARGUMENTS]
    kinds = [call[0] for call in world.calls()[before:] if call[0] != "describe"]
    renewal = ["delete", "create", "scp", "ssh"] if anew else []
    assert kinds == ["ssh", "ssh", *renewal, "ssh", "ssh"]


def test_a_mistake_ends_it(tmp_path):
    world = World(tmp_path, ["2"])
    for command in ("create", "install"):
        world.run(command)
    assert "exit code 2" in world.run("train", code=2)


def test_stop_saves_and_is_not_started_again(tmp_path):
    world = World(tmp_path, ["waits"])
    for command in ("create", "install"):
        world.run(command)
    training = world.start("train")
    end = time.monotonic() + 30
    while not (tmp_path / "host1" / "started.0").exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    time.sleep(0.5)  # the trap is set after the file is written
    world.run("stop")
    output, _ = training.communicate(timeout=30)
    assert training.returncode == 143 and "told to stop" in output, output
    assert (tmp_path / "host0" / "t5x-lite-run" / "code").read_text() == "75\n"
    world.run("delete")


def test_several_slices(tmp_path):
    world = World(tmp_path, SLICES="4")
    world.run("create")
    assert {"--node-count=4", "--node-prefix=t5"} < set(world.calls()[0])


def test_a_dry_run_prints_what_would_be_run_and_runs_nothing(tmp_path):
    world = World(tmp_path, CREATE_FLAGS="--spot")
    printed = [
        world.run("--dry_run", command, *(ARGUMENTS if command == "train" else ()))
        for command in ("create", "install", "train", "logs", "stop", "delete")
    ]
    assert world.calls() == []
    commands = words_of("".join(printed))
    assert all(words[:4] == ["gcloud", "compute", "tpus", "queued-resources"] for words in commands)
    (start,) = [words[-1].removeprefix("--command=") for words in commands if " start " in words[-1]]
    assert shlex.split(start)[-len(ARGUMENTS) :] == ARGUMENTS  # what the shell over there reads


@pytest.mark.slow  # gcloud takes a second to start
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="no gcloud here, whose grammar would be asked")
def test_gcloud_knows_every_flag(tmp_path):
    printed = World(tmp_path / "one", CREATE_FLAGS="--spot", SSH_FLAGS="--tunnel-through-iap").run("--dry_run", "train")
    printed += World(tmp_path / "several", SLICES="2").run("--dry_run", "create")
    for command in words_of(printed):
        # What is to be run on the hosts is not gcloud's.
        words = ["--command=x" if word.startswith("--command=") else word for word in command]
        done = subprocess.run(
            ["gcloud", "meta", "lint-gcloud-commands", f"--command-string={shlex.join(words)}"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        (found,) = json.loads(done.stdout)
        assert found["success"], found["error_message"]


@pytest.mark.parametrize("missing, command", [("NAME", "delete"), ("ZONE", "logs"), ("TPU", "create")])
def test_what_is_not_set_is_asked_for(tmp_path, missing, command):
    world = World(tmp_path, **{missing: ""})
    assert f"set {missing}" in world.run(command, code=1)
    assert world.calls() == []
