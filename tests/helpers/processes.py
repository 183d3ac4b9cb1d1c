"""The processes that tests start: their environment, and one program in several of them at once."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence


def devices(number: int) -> dict[str, str]:
    """This process's environment, with so many CPU devices instead of eight."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={number}")
    return {**os.environ, "XLA_FLAGS": flags}


def one_device() -> dict[str, str]:
    """What a laptop has, and quicker to compile for."""
    return devices(1)


class Job:
    """One program in several processes of this machine, from its start to its end.

    Args:
      folder: where each process's output goes, `0.log` and so on.
      count: how many processes.
      arguments: of `t5x-lite`.
      each: process -> flags of its own, after the others.
      devices_each: CPU devices of a process.
      environment: more variables.
      command: (coordinator, process) -> another command than `t5x-lite`.
    """

    def __init__(
        self,
        folder,
        count: int,
        *arguments: str,
        each: Mapping[int, Sequence[str]] | None = None,
        devices_each: int = 1,
        environment: Mapping[str, str] | None = None,
        command: Callable[[str, int], list[str]] | None = None,
    ):
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        self.logs = [pathlib.Path(folder) / f"{i}.log" for i in range(count)]
        coordinator = f"127.0.0.1:{free_port()}"

        def t5x_lite(coordinator: str, i: int) -> list[str]:
            place = [f"--coordinator={coordinator}", f"--num_processes={count}", f"--process_id={i}"]
            return ["-m", "t5x_lite", *arguments, *place, *(each or {}).get(i, ())]

        self.processes = []
        for i, log in enumerate(self.logs):
            with open(log, "wb") as output:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-P", *(command or t5x_lite)(coordinator, i)],
                        env={**devices(devices_each), **(environment or {})},
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )

    def log(self, i: int) -> str:
        return self.logs[i].read_text(errors="replace")

    def errors(self, i: int) -> list[str]:
        """The lines that say why a process stopped, without their beginning."""
        start = "t5x-lite: error: "
        return [line.removeprefix(start) for line in self.log(i).splitlines() if line.startswith(start)]

    def wait(self, seconds: float = 300) -> list[int]:
        """The exit codes. Raises TimeoutError, with what they wrote, where one is still there."""
        until = time.monotonic() + seconds
        try:
            return [process.wait(max(0.0, until - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired as e:
            raise TimeoutError(f"still there after {seconds} s:\n{self}") from e

    def done(self, seconds: float = 300) -> None:
        """Waits for all to end well."""
        codes = self.wait(seconds)
        assert codes == [0] * len(codes), f"{codes}\n{self}"

    def __str__(self):
        return "\n".join(f"--- {i}\n{self.log(i)[-3000:]}" for i in range(len(self.logs)))

    def close(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()


@contextlib.contextmanager
def job(*args, **kwargs) -> Iterator[Job]:
    """A `Job` of which nothing is left when the context ends."""
    started = Job(*args, **kwargs)
    try:
        yield started
    finally:
        started.close()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
