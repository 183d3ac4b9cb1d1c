"""A job in several processes: how they find each other, and how they come to one answer.

    flags, environment or cluster ── coordinator ── all alike? ── devices ── job ── leave together

How they come to one answer is `together.py`, and who of them is gone, `peers.py`.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin
from t5x_lite import console, peers, together
from t5x_lite.errors import UserError, first_line

# The flags, what each means, and the variables that stand for them.
FLAGS = {
    "coordinator": ("HOST:PORT", "where process 0 listens; the same for all", "JAX_COORDINATOR_ADDRESS"),
    "num_processes": ("N", "how many processes run the job", "JAX_NUM_PROCESSES"),
    "process_id": ("I", "which one this is, from 0 on", "JAX_PROCESS_ID"),
}
# What decides what is computed, besides this project's own code.
_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "seqio",
    "tensorflow",
    "tensorflow-text",
    "sentencepiece",
)


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class Processes:
    """How long the processes of a job wait for each other.

    Attributes:
      start_seconds: until all have come.
      lost_seconds: without a sign of life from a process (killed, stopped, its machine gone); the others then stop,
        name it and end with exit code 75, which asks to be started again.
      hang_seconds: without progress of a process that lives but is behind the others; they stop likewise, with the
        stacks of all threads. None for never.

    Raises:
      UserError: not a time.
    """

    start_seconds: int = 300
    lost_seconds: float = 120.0
    hang_seconds: float | None = 1800.0

    def __post_init__(self):
        for name in ("start_seconds", "lost_seconds", "hang_seconds"):
            value = getattr(self, name)
            if value is None and name == "hang_seconds":
                continue
            if not isinstance(value, (int, float)) or value < 1:
                raise UserError(f"Processes.{name} must be at least 1 second, not {value!r}")


@dataclasses.dataclass(frozen=True)
class Place:
    """Which process of how many this is, and where they meet. `devices`: those of the machine's that it may use, or
    None for all."""

    coordinator: str
    num_processes: int
    process_id: int
    devices: tuple[int, ...] | None = None


def read_flags(flags: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What flags, or else the environment, say of FLAGS; nothing where they say nothing.

    Raises:
      UserError: no number, no port, or a process beyond the last one.
    """
    found: dict[str, Any] = {}
    for name, (form, _, variable) in FLAGS.items():
        value = flags.get(name) or environment.get(variable)
        if not value:
            continue
        said = f"--{name}={value}" if flags.get(name) else f"{variable}={value}"
        if name == "coordinator":
            host, _, port = value.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise UserError(f"{said}: write {form}, the address of process 0's machine and a free port there")
            found[name] = value
        elif not value.isdecimal() or (name == "num_processes" and not int(value)):
            raise UserError(f"{said}: give a whole number of at least {int(name == 'num_processes')}")
        else:
            found[name] = int(value)
    n, i = found.get("num_processes"), found.get("process_id")
    if n is not None and i is not None and i >= n:
        raise UserError(f"--process_id={i}: of {n} processes (--num_processes) the last one is {n - 1}")
    return found


def find_place(given: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Place | None:
    """Where this process stands: what was given, and what the cluster says of the rest; None where it is alone.

    Clusters are found by JAX: SLURM, Open MPI, TPU pods, and Kubernetes (an indexed Job or a JobSet).

    Raises:
      UserError: a part is neither given nor known.
    """
    if given.get("num_processes") == 1:
        return None
    known = dict(given)
    if "num_processes" not in known and "process_id" not in known and "OMPI_COMM_WORLD_SIZE" in environment:
        # Open MPI 5 no longer has what JAX looks for, the coordinator's address.
        known |= {
            "num_processes": int(environment["OMPI_COMM_WORLD_SIZE"]),
            "process_id": int(environment["OMPI_COMM_WORLD_RANK"]),
        }
    if len(known) < len(FLAGS):
        known = _ask_cluster(known)
    if known.get("num_processes") == 1 or not known:
        return None
    missing = [f"--{name}={form}" for name, (form, _, _) in FLAGS.items() if known.get(name) is None]
    if missing:
        said = ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)
        raise UserError(
            f"this is one of several processes ({said}), but no cluster was found that says the rest: add "
            f"{' and '.join(missing)}, or run it alone with --num_processes=1"
        )
    return Place(**known, devices=_own_devices(environment))


def _ask_cluster(known: Mapping[str, Any]) -> dict[str, Any]:
    # Not public, but the only way to learn what `jax.distributed.initialize` would do without its doing it: alone, a
    # process needs no coordinator.
    from jax._src import clusters

    try:
        detect: Callable[..., Any] = clusters.ClusterEnv.auto_detect_unset_distributed_params
        found = detect(*(known.get(name) for name in FLAGS), None, None, 30)
    except Exception as e:  # of whatever kind: it speaks to other systems
        raise UserError(
            f"this looks like a cluster, but it does not say who is who ({first_line(e)}): give "
            "--coordinator, --num_processes and --process_id, or --num_processes=1 for this process alone"
        ) from e
    return {name: value for name, value in zip(FLAGS, found[:3], strict=True) if value is not None}


def _own_devices(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """The GPU of a process that shares its machine with others of the job, and sees more GPUs than one."""
    local = environment.get("SLURM_LOCALID", environment.get("OMPI_COMM_WORLD_LOCAL_RANK"))
    alone = (
        environment.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0] == "1"
        or environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    )
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    if local is None or alone or (visible and "," not in visible) or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    return (int(local),)


# ----------------------------------------------------------------------------------------------------------------------
# Start and end
# ----------------------------------------------------------------------------------------------------------------------


def start(place: Place | None, waits: Processes, facts: Mapping[str, str], preemptible: bool) -> None:
    """Joins the other processes and makes sure that all are about to do the same. Comes before any other use of JAX.

    Args:
      facts: name -> text, what must be equal in all of them, besides versions and code.
      preemptible: the job asks for SIGTERM by `preemption.Notice`; else SIGTERM ends the process.

    Raises:
      UserError: they do not find each other, or differ (named: who, and in what).
    """
    if place is None:
        return
    import jax

    me = f"process {place.process_id} of {place.num_processes} on {socket.gethostname()}"
    console.say(
        f"{me}: looking for the coordinator, process 0 at {place.coordinator}, for {waits.start_seconds} s at most",
        everyone=True,
    )
    jax.config.update("jax_enable_preemption_service", preemptible)
    # Later than our own watch, which names who is lost; JAX then ends a process without a word to Python.
    last_resort = int(2 * waits.lost_seconds) + 60
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.num_processes,
            place.process_id,
            place.devices,
            cluster_detection_method="deactivate",
            initialization_timeout=waits.start_seconds,
            heartbeat_timeout_seconds=last_resort,
            shutdown_timeout_seconds=last_resort,
        )
    except Exception as e:  # of several kinds, by what went wrong in the connection
        what = "cannot listen" if not place.process_id else "finds no coordinator"
        raise UserError(
            f"{me} {what} at {place.coordinator}, or others did not come within {waits.start_seconds} s "
            f"({first_line(e)}): see --coordinator, --num_processes and --process_id of all processes, and "
            "Processes.start_seconds"
        ) from e
    from jax._src import distributed  # the public module does not hand out the client

    client = distributed.global_state.client
    member = together.Member(place.process_id, place.num_processes, client)
    together.join(member)
    hosts = together.gathered("hosts", socket.gethostname())
    member.watch = peers.Watch(
        client, place.process_id, hosts, place.coordinator, waits.lost_seconds, waits.hang_seconds
    )
    _check_alike({"--num_processes": str(place.num_processes), **facts, **_versions()})
    _check_devices(me, place.coordinator)


def _check_alike(facts: Mapping[str, str]) -> None:
    text = json.dumps(facts, sort_keys=True)
    if len(set(together.gathered("digest", hashlib.sha256(text.encode()).hexdigest()))) == 1:
        return
    everyone = [json.loads(said) for said in together.gathered("facts", text)]
    raise UserError(differences(everyone))


def differences(everyone: Sequence[Mapping[str, str]]) -> str:
    """One line: which processes differ from most of the others, and in what.

    Args:
      everyone: of each process, name -> text.
    """
    parts = []
    for name in dict.fromkeys(name for facts in everyone for name in facts):
        values = [facts.get(name, "nothing") for facts in everyone]
        # Of two equally common values process 0 has the right one.
        usual = max(dict.fromkeys(values), key=values.count)
        for value in dict.fromkeys(values):
            if value != usual:
                who = [str(i) for i, other in enumerate(values) if other == value]
                parts.append(
                    f"process {', '.join(who)} has {name} = {_short(value)}, process {values.index(usual)} "
                    f"{_short(usual)}"
                )
    more = f"; and {len(parts) - 3} more" if len(parts) > 3 else ""
    return (
        f"the processes are not alike: {'; '.join(parts[:3])}{more}; start all of them with the same command and code"
    )


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _versions() -> dict[str, str]:
    """Of Python, of the packages that are there, and of this one's files."""
    found = {"the version of Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[f"the version of {name}"] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**found, "the code of t5x_lite (a digest of its files)": _code_digest()}


def _code_digest() -> str:
    folder = pathlib.Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _check_devices(me: str, coordinator: str) -> None:
    import jax

    here, everywhere = jax.local_devices(), jax.devices()
    kind = here[0].device_kind
    console.say(
        f"{me}: {len(here)} of {len(everywhere)} devices ({here[0].platform}, {kind}); coordinator {coordinator}",
        everyone=True,
    )
    said = {"devices": f"{len(here)} × {here[0].platform} {kind}"}
    everyone = [json.loads(text) for text in together.gathered("devices", json.dumps(said))]
    if any(other != everyone[0] for other in everyone):
        raise UserError(differences(everyone))


def leave() -> None:
    """The orderly end of the job in this process: waits for the others to come to theirs."""
    member = together.me()
    if member is None:
        return
    import jax

    together.gathered("end", "")
    member.watch.close()
    together.join(None)
    with contextlib.suppress(Exception):  # the job is done; who is gone by now is gone
        jax.distributed.shutdown()


def fail(code: int, why: str, problem: BaseException) -> None:
    """The end of the job in this process by a failure. Among several, the others are told and stop, too; the process is
    ended here, for the interpreter's own way would wait for them.

    Args:
      code: the exit code.
      why: one line, for the others.
      problem: where it is JAX's or comes of that, it may be due to another process, which is then named instead.
    """
    member = together.me()
    if member is None:
        return
    if member.watch:
        if _may_be_anothers(problem):
            console.say(
                f"t5x-lite: an exchange with the other processes failed ({first_line(problem)}); who is gone will be "
                "known in a moment",
                everyone=True,
            )
            member.watch.wait_for_verdict()
        member.watch.tell(code, why)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _may_be_anothers(problem: BaseException | None) -> bool:
    import jax

    while problem is not None:
        if isinstance(problem, jax.errors.JaxRuntimeError):
            return not str(problem).startswith(("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"))
        problem = problem.__cause__ or problem.__context__
    return False
