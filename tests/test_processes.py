"""What the processes of a job are told, and how they answer: flags, environment, differences, verdicts."""

import pytest

from t5x_lite import peers, processes
from t5x_lite.errors import UserError


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"coordinator": "host"}, "--coordinator=host: write HOST:PORT"),
        ({"coordinator": "host:99999"}, "--coordinator=host:99999: write HOST:PORT"),
        ({"num_processes": "0"}, "--num_processes=0: give a whole number of at least 1"),
        ({"num_processes": "two"}, "--num_processes=two: give a whole number of at least 1"),
        ({"process_id": "-1"}, "--process_id=-1: give a whole number of at least 0"),
        (
            {"num_processes": "4", "process_id": "4"},
            "--process_id=4: of 4 processes (--num_processes) the last one is 3",
        ),
    ],
)
def test_mistaken_flags(flags, words):
    with pytest.raises(UserError) as caught:
        processes.read_flags(flags, {})
    assert str(caught.value).startswith(words)


def test_flags_come_before_the_environment():
    variables = {"JAX_COORDINATOR_ADDRESS": "there:1", "JAX_NUM_PROCESSES": "8", "JAX_PROCESS_ID": "3"}
    place = processes.find_place(processes.read_flags({"process_id": "5"}, variables), {})
    assert place == processes.Place("there:1", 8, 5)
    with pytest.raises(UserError, match="^JAX_NUM_PROCESSES=x: give a whole number"):
        processes.read_flags({}, {"JAX_NUM_PROCESSES": "x"})


def test_alone_without_any_or_by_choice():
    assert processes.find_place({}, {}) is None
    assert processes.find_place({"num_processes": 1}, {"OMPI_COMM_WORLD_SIZE": "4"}) is None


def test_what_is_missing_is_named():
    with pytest.raises(UserError, match="add --coordinator=HOST:PORT and --num_processes=N, or run it alone"):
        processes.find_place({"process_id": 1}, {})
    # Open MPI 5 does not say where process 0 is.
    variables = {
        "OMPI_COMM_WORLD_SIZE": "4",
        "OMPI_COMM_WORLD_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    }
    with pytest.raises(UserError, match=r"\(num_processes 4, process_id 1\).* add --coordinator=HOST:PORT, or"):
        processes.find_place({}, variables)
    place = processes.find_place({"coordinator": "first:1234"}, variables)
    assert place == processes.Place("first:1234", 4, 1, devices=(1,))


SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}


def test_slurm(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert processes.find_place({}, SLURM) == processes.Place(f"node07:{65535 - 4096 + 2}", 4, 3, devices=(1,))
    # What is said on the command line counts; one task on each machine has all of its devices.
    alone = {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1(x4)"}
    assert processes.find_place({"coordinator": "a:1"}, alone) == processes.Place("a:1", 4, 3)
    # So has a task that sees only its own GPU.
    assert processes.find_place({}, {**SLURM, "CUDA_VISIBLE_DEVICES": "0"}).devices is None
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert processes.find_place({}, SLURM) is None


def test_who_differs_in_what():
    usual = {"BATCH_SIZE": "8", "TRAIN_STEPS": "10", "the version of jax": "1"}
    everyone = [usual, {**usual, "BATCH_SIZE": "16"}, usual, {**usual, "BATCH_SIZE": "16", "MODEL_DIR": "x" * 80}]
    line = processes.differences(everyone)
    assert line.startswith(
        "the processes are not alike: process 1, 3 has BATCH_SIZE = 16, process 0 8; process 3 has MODEL_DIR = xxx"
    )
    assert "nothing; start all" in line and "\n" not in line and len(line) < 300
    assert "and 2 more" in processes.differences([{}, {str(i): "" for i in range(5)}])


def test_waits_are_times():
    with pytest.raises(UserError, match="Processes.lost_seconds must be at least 1 second, not 0"):
        processes.Processes(lost_seconds=0)
    processes.Processes(hang_seconds=None)


# --- Verdicts --------------------------------------------------------------------------------------------------------


def peer(came=100.0, moved=100.0, changes=5, doing="step 5", end=None):
    return peers.Peer("here", came, moved, {"count": 1, "changes": changes, "doing": doing, "end": end})


def judge(*everyone, now=101.0, hang=30.0):
    return peers.judge(everyone, now, 20.0, hang)


def test_no_verdict_on_the_living():
    assert judge(peer(), peer(changes=7)) is None
    assert judge(peer(), peer(moved=0.0)) is None, "one moves"
    assert judge(peer(moved=0.0), peer(moved=0.0)) is None, "all are at the same thing, which takes long"
    assert judge(peer(moved=0.0), peer(moved=0.0, changes=9), hang=None) is None


def test_who_gives_no_sign_is_lost():
    verdict = judge(peer(), peer(came=80.0, doing="the data of step 6"), peer(came=70.0))
    assert verdict["code"] == 75
    assert verdict["text"].startswith(
        "process 1 of 3 on here has given no sign of life for 21 s, last from 'the data of step 6' and process 2 of 3"
    )


def test_who_is_behind_hangs():
    verdict = judge(peer(moved=60.0, changes=7, doing="step 7"), peer(moved=50.0, doing="the data of step 6"))
    assert verdict["code"] == 75 and verdict["stacks"]
    assert verdict["text"].startswith(
        "process 1 of 2 on here hangs at 'the data of step 6', for 41 s, while process 0 waits at 'step 7'"
    )


def test_who_failed_is_named_and_its_exit_code_is_everybodys():
    verdict = judge(peer(came=0.0), peer(end={"code": 2, "why": "no such file"}))
    assert verdict == {"code": 2, "text": "process 1 of 2 on here failed (no such file), so this one stops, too"}


def test_signs_are_told_apart():
    one = peers.Peer("here", 0.0, 0.0)
    one.see({"count": 1, "changes": 0}, 5.0)
    assert (one.came, one.moved) == (5.0, 0.0)
    one.see({"count": 1, "changes": 0}, 6.0)
    assert one.came == 5.0
    one.see({"count": 2, "changes": 1}, 7.0)
    assert (one.came, one.moved) == (7.0, 7.0)
