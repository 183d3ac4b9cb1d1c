"""The job `reference`: all that can be set, in one text that is made from the code and the shipped gin files."""

import importlib
import os
import sys
from collections.abc import Sequence

from etils import epath

import gin
from t5x_lite import command_line, configuration, console, jobs, reference_text, run_folder


@gin.configurable("reference", module="t5x_lite")
def reference(output: str | None = None, task_modules: Sequence[str] = ("t5x_lite.tasks",)) -> int:
    """Writes Markdown: each job's flags; each macro; each configurable with its parameters and their defaults.

    Macros and parameters come with the shipped gin files that set them.

    Args:
      output: a file; stdout by default.
      task_modules: whose configurables are written down, too. Where TensorFlow is not installed, set it to ().

    Returns:
      0.
    """
    configuration.check_all_read()
    for module in [*(job.module for job in jobs.JOBS.values()), *jobs.MODULES, *task_modules]:
        importlib.import_module(module)
    flags = {name: (job.help, command_line.flags_of(name)) for name, job in jobs.JOBS.items()}
    text = reference_text.make(flags)
    if output is None:
        sys.stdout.write(text)
        return 0
    path = epath.Path(os.path.expanduser(output))
    path.parent.mkdir(parents=True, exist_ok=True)
    run_folder.write_whole(path, text)
    console.say(f"{path}: {len(text) / 1024:,.0f} KiB")
    return 0
