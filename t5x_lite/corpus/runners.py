"""Which of Beam's runners does the work: by default worker processes on this machine, else what the flags name."""

import logging
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from t5x_lite.errors import UserError


class Runner(NamedTuple):
    """A runner and its options, both Beam's; None for the runner that the options name."""

    runner: Any
    options: Any

    @property
    def here(self) -> bool:
        """Whether it is the one for this machine, which holds in memory whatever it groups."""
        return self.runner is not None


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def choose(flags: str, workers: int | None, log: str) -> Runner:
    """The runner of a pipeline.

    Args:
      flags: Beam's; with `--runner` among them nothing else is added.
      workers: processes on this machine; None for one for each core.
      log: the file for what worker processes say.

    Raises:
      UserError: Beam is not installed, or there are no workers.
    """
    # Beam's remarks on what is not installed, and on each worker that starts, are of no use to the reader.
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    logging.getLogger().addFilter(_is_error)  # for what is logged at the root itself
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners.portability.fn_api_runner import FnApiRunner
        from apache_beam.transforms.environments import SubprocessSDKEnvironment
    except ModuleNotFoundError as e:
        raise UserError(f"corpus needs Apache Beam ({e}): install the extra with pip install 't5x-lite[corpus]'") from e
    given: Sequence[str] = shlex.split(flags)
    if any(flag.partition("=")[0] == "--runner" for flag in given):
        return Runner(None, PipelineOptions(given))
    workers = os.cpu_count() if workers is None else workers
    if type(workers) is not int or workers < 1:
        raise UserError(f"corpus.workers must be a whole number of at least 1, not {workers!r}")
    if workers == 1:
        return Runner(FnApiRunner(), PipelineOptions(given))
    # Named here rather than by --runner=DirectRunner, which looks for a program to download first.
    command = f"{shlex.quote(sys.executable)} -P -m apache_beam.runners.worker.sdk_worker_main 2>>{shlex.quote(log)}"
    runner = FnApiRunner(default_environment=SubprocessSDKEnvironment.from_command_string(command))
    return Runner(runner, PipelineOptions([f"--direct_num_workers={workers}", *given]))
