"""`t5x-lite JOB --gin_file=... --gin.NAME=VALUE ...`: flags in, one job called, one line for a mistake.

Exit codes: 0 done, 1 the program failed (with its trace), 2 the user can mend it (one line on stderr), 75 told to stop
by SIGTERM, or another process of the job is gone (started again, it goes on), 130 interrupted.

JAX and the jobs are imported only after the flags have been understood, so that `--help` and a misspelt flag are
answered at once.
"""

import importlib
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Sequence

import t5x_lite
from t5x_lite import buckets, configuration, console, processes, remedies, start_up
from t5x_lite.command_line import JOB_SWITCHES, Options, general_help, job_help, parse_flags
from t5x_lite.errors import Preempted, UserError, first_line
from t5x_lite.jobs import JOBS, MODULES


def main(argv: Sequence[str] | None = None) -> int:
    """Run `t5x-lite` with `argv` (default: the process's) and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    verbose = "--verbose" in argv  # read apart, as how to talk: these must hold for mistakes in the flags too
    with console.set_up(next((word for word in argv if word in JOBS), ""), "--quiet" in argv, _log_format(argv)):
        return _main(argv, verbose)


def _log_format(argv: Sequence[str]) -> str:
    """Of the last flag that says it, however it is written; a wrong one is refused later."""
    given = [argv[i + 1] for i in range(len(argv) - 1) if argv[i] == "--log_format"]
    given += [word.partition("=")[2] for word in argv if word.startswith("--log_format=")]
    return given[-1] if given else "text"


def _main(argv: list[str], verbose: bool) -> int:
    if not verbose:
        # What TensorFlow and Orbax say at start-up is of no use to the reader of a training log.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        logging.getLogger("absl").setLevel(logging.ERROR)
    options = Options()
    try:
        options = parse_flags(argv)
        if options.version:
            print(f"t5x-lite {t5x_lite.__version__}")
        elif options.help:
            print(job_help(options.job) if options.job else general_help())
        elif not options.job:
            print(general_help(), file=sys.stderr)
            return 2
        else:
            code = run_job(options)
            processes.leave()
            return code
        return 0
    except UserError as e:
        return _mistake(e, verbose, e)
    except Preempted as e:
        console.say(f"t5x-lite: {e.message}; started again, it goes on", console.WARNING, everyone=True)
        processes.leave()
        return Preempted.CODE
    except KeyboardInterrupt as e:
        console.say("t5x-lite: interrupted", console.WARNING, everyone=True)
        return _failed(130, e)
    except Exception as e:
        if line := remedies.remedy(e, options.job):
            return _mistake(UserError(line), verbose, e)
        _show_trace(e)
        return _failed(1, e)


def _mistake(problem: UserError, verbose: bool, cause: BaseException) -> int:
    if verbose:
        _show_trace(cause)
    # Only the first line: gin appends the configurables that an exception passed through.
    line = (str(problem).splitlines() or [""])[0]
    console.say(f"t5x-lite: error: {line}", console.ERROR, everyone=True)
    return _failed(2, cause)


def _show_trace(problem: BaseException) -> None:
    console.say("".join(traceback.format_exception(problem)).rstrip(), console.ERROR, everyone=True)


def _failed(code: int, problem: BaseException) -> int:
    why = f"{type(problem).__name__}: " if code == 1 else ""
    processes.fail(code, f"{why}{first_line(problem)}" or "interrupted", problem)
    return code


def run_job(options: Options) -> int:
    """Import the job, set gin up, call the job; 1 when it reports problems that it went on after, else 0."""
    job = JOBS[options.job]
    if options.place and not job.processes:
        raise UserError(f"--{next(iter(options.place))}: {options.job} runs in one process")
    place = processes.read_flags(options.place) if job.processes else {}
    # A user's modules are named in gin files (`import my_tasks`) and usually lie in the current folder. Last, so that
    # a folder there never hides an installed package.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())

    # 1. Names: every configurable that gin files may mention.
    function = getattr(importlib.import_module(job.module), job.function)
    for module in MODULES:
        importlib.import_module(module)

    # 2. Configuration: any mistake ends here.
    parsed = configuration.parse(
        options.gin_files,
        options.bindings,
        options.search_paths,
        root=f"t5x_lite.{job.function}",
        flags={target: f"--{flag}" for flag, (target, _) in job.flags.items()},
        unneeded=job.unneeded,
        incomplete=job.incomplete,
        also=job.also,
        elsewhere={
            other.function: f"{other.function} is of the job {name}, and this is {options.job}"
            for name, other in JOBS.items()
            if name != options.job
        },
    )
    buckets.check(configuration.values_in_force())
    if parsed.files:
        names = (f"  {file.name}" + (f"  ({file.path})" if file.name != file.path else "") for file in parsed.files)
        console.say("\n".join(["gin files:", *names]), everyone=True)
    for note in parsed.notes:
        console.say(f"t5x-lite: note: {note}", everyone=True)
    arguments: dict[str, bool | int] = {}
    for switch, what in JOB_SWITCHES.items():
        if getattr(options, switch):
            if switch not in inspect.signature(function).parameters:
                raise UserError(f"--{switch}: {options.job} has no {what}")
            arguments[switch] = True
    for name, value in options.numbers.items():
        if name not in inspect.signature(function).parameters:
            raise UserError(f"--{name}: {options.job} shows no batches")
        if not options.dry_run:
            raise UserError(f"--{name} needs --dry_run: it shows what would be trained on, and trains nothing")
        arguments[name] = value

    # 3. Flags of XLA, then processes: several find each other here, after the configuration and before the first
    #    question to JAX about its devices. The binding's values are read in any case.
    start_up.device_flags()
    waits = processes.Processes()
    if job.processes:
        facts = {"the job": options.job, "the flags": " ".join(sorted(arguments)), **configuration.bound_values()}
        processes.start(processes.find_place(place), waits, facts, preemptible=options.job == "train")

    # 4. The job.
    start_up.compilation_cache()
    return 1 if function(**arguments) else 0
