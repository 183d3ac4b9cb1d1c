"""The command line: its flags understood, and what `--help` says of them."""

import dataclasses
import difflib
import os
import textwrap
from collections.abc import Mapping, Sequence

from t5x_lite import configuration, console, gin_files, processes
from t5x_lite.errors import UserError, did_you_mean, nearest
from t5x_lite.jobs import JOBS


@dataclasses.dataclass
class Options:
    """The command line, understood."""

    job: str = ""
    gin_files: list[str] = dataclasses.field(default_factory=list)
    bindings: list[configuration.Binding] = dataclasses.field(default_factory=list)
    search_paths: list[str] = dataclasses.field(default_factory=list)
    dry_run: bool = False
    allow_config_change: bool = False
    search: bool = False
    words: list[str] = dataclasses.field(default_factory=list)  # those without a flag
    numbers: dict[str, int] = dataclasses.field(default_factory=dict)  # of NUMBERS, those that were given
    place: dict[str, str] = dataclasses.field(default_factory=dict)  # of processes.FLAGS, those that were given
    quiet: bool = False
    verbose: bool = False
    help: bool = False
    version: bool = False


# ----------------------------------------------------------------------------------------------------------------------
# Flags
# ----------------------------------------------------------------------------------------------------------------------

# Parameters of the jobs that know them, and what they are about.
JOB_SWITCHES = {"dry_run": "dry run", "allow_config_change": "run to go on with", "search": "search"}
_SWITCHES = (*JOB_SWITCHES, "quiet", "verbose", "help", "version")
NUMBERS = ("show_batches", "at_step")
_FILES = ("gin_file", "gin_search_paths")


def parse_flags(argv: Sequence[str]) -> Options:
    """Understand the command line.

    A flag's value follows `=` or is the next argument.

    Raises:
      UserError: an unknown job or flag (with the nearest one), or a flag without its value.
    """
    options = Options()
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        if argument == "-h" or (argument == "help" and not options.job):
            argument = "--help"
        if not argument.startswith("--"):
            if not options.job:
                options.job = _job_name(argument)
                continue
            if JOBS[options.job].words:
                options.words.append(os.path.expanduser(argument))
                continue
            if "=" in argument:
                raise UserError(f"'{argument}' is not a flag; did you mean --gin.{argument}?")
            raise UserError(
                f"'{argument}' is not a flag; every choice is --flag=value, see t5x-lite {options.job} --help"
            )
        name, equals, value = argument[2:].partition("=")
        if name in _SWITCHES:
            if equals:
                raise UserError(f"--{name} takes no value")
            setattr(options, name, True)
            continue
        known = name in (*_FILES, "log_format", *NUMBERS, *processes.FLAGS) or name.startswith("gin.")
        if not known and name not in _short_forms(options):
            raise UserError(_unknown_flag(name, options.job))
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"--{name} has no value: write --{name}=VALUE")
            value = rest.pop(0)
        if name == "gin_file":
            options.gin_files.append(os.path.expanduser(value))
        elif name == "gin_search_paths":
            options.search_paths += [os.path.expanduser(path) for path in value.split(",") if path]
        elif name == "log_format":
            if value not in console.FORMATS:
                raise UserError(f"--log_format={value}: write {' or '.join(console.FORMATS)}")
        elif name in NUMBERS:
            if not value.isdecimal() or not int(value):
                raise UserError(f"--{name}={value}: give a whole number of at least 1")
            options.numbers[name] = int(value)
        elif name in processes.FLAGS:
            options.place[name] = value
        elif name.startswith("gin."):
            options.bindings.append(configuration.Binding(name.removeprefix("gin."), value, f"--{name}"))
        elif not value:
            raise UserError(f"--{name} has no value: write --{name}=VALUE")
        elif name in JOBS[options.job].file_flags:
            options.gin_files.append(_shipped_file(JOBS[options.job].file_flags[name][0], name, value))
        else:
            target, _ = JOBS[options.job].flags[name]
            # Always text, so it is quoted: --model_dir=2024 is a folder and not a number.
            options.bindings.append(configuration.Binding(target, repr(os.path.expanduser(value)), f"--{name}"))
    if options.words:
        target, words = JOBS[options.job].words
        options.bindings.append(configuration.Binding(target, repr(tuple(options.words)), words))
    return options


def _short_forms(options: Options) -> Mapping[str, str]:
    return JOBS[options.job].short_forms if options.job else {}


def _shipped_file(pattern: str, flag: str, value: str) -> str:
    """The file that a file flag names."""
    start, end = pattern.split("{}")
    known = [n.removeprefix(start).removesuffix(end) for n in gin_files.shipped_names() if n.startswith(start)]
    if value not in known:
        raise UserError(
            f"--{flag}={value}: no such {flag}{did_you_mean(nearest(value, known))}; there is {', '.join(known)}"
        )
    return pattern.format(value)


def _job_name(name: str) -> str:
    if name not in JOBS:
        near = difflib.get_close_matches(name, JOBS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"jobs are {', '.join(JOBS)}"
        raise UserError(f"no job '{name}'; {hint}")
    return name


def _unknown_flag(name: str, job: str) -> str:
    flags = [*_FILES, "log_format", *_SWITCHES, *NUMBERS, *processes.FLAGS, *(JOBS[job].short_forms if job else ())]
    near = difflib.get_close_matches(name.replace("-", "_"), flags, n=1, cutoff=0.6)
    if near:
        hint = f"did you mean --{near[0]}?"
    elif not job and name in JOBS:
        hint = f"a job has no dashes: t5x-lite {name}"
    elif not job and any(name in j.short_forms for j in JOBS.values()):
        hint = "name the job first: t5x-lite JOB --flag=value"
    elif job and any(name in j.short_forms for j in JOBS.values()):
        hint = f"{job} takes {', '.join('--' + flag for flag in JOBS[job].short_forms)}"
    elif name.upper() in configuration.MACROS:
        hint = f"did you mean --gin.{name.upper()}?"
    else:
        hint = f"values are set by --gin.NAME=VALUE, see t5x-lite {job + ' ' if job else ''}--help"
    return f"unknown flag --{name}; {hint}"


# ----------------------------------------------------------------------------------------------------------------------
# Help
# ----------------------------------------------------------------------------------------------------------------------


def general_help() -> str:
    """Return the text of `t5x-lite --help`."""
    jobs = "\n".join(f"  {name:<12}{job.help}" for name, job in JOBS.items())
    return (
        textwrap.dedent("""\
        usage: t5x-lite JOB [--gin_file=FILE ...] [--gin.NAME=VALUE ...] [--dry_run] [--quiet]

        jobs (t5x-lite JOB --help says more):
        {jobs}

        for example:
          {example}
        """)
        .format(jobs=jobs, example=JOBS["train"].example.replace("\n", "\n  "))
        .rstrip()
    )


def flags_of(name: str) -> list[tuple[str, str]]:
    """(flag with the form of its value, what it is for) of all flags that a job takes."""
    job = JOBS[name]
    return [
        (
            "--gin_file=FILE",
            "a gin file, yours or a shipped one such as models/t5_1_1/small.gin; repeat it; the order "
            "does not matter, your own files override shipped ones",
        ),
        (
            "--gin.NAME=VALUE",
            "set a macro (--gin.BATCH_SIZE=32) or a parameter (--gin.T5Config.remat=full); it beats every file",
        ),
        ("--gin_search_paths=A,B", "more folders in which gin files are looked up"),
        *((f"--{flag}=TEXT", text) for flag, text in job.short_forms.items()),
        ("--dry_run", "check everything, say what would be done, do nothing"),
        *(
            [
                ("--allow_config_change", "go on in MODEL_DIR although the model, the data or the seed is another"),
                (
                    "--show_batches=N",
                    "with --dry_run: the texts of N batches, with their weights and where they come from",
                ),
                ("--at_step=N", "with --show_batches: from the batch of step N on, say that of a jump in the loss"),
            ]
            if name == "train"
            else []
        ),
        *(
            [("--search", "find the mesh, remat policy and number of microbatches that fit and are fastest")]
            if name == "plan"
            else []
        ),
        ("--quiet", "say no more than warnings, errors and results"),
        ("--log_format=json", "each line an object: time, level, job, message, and step where there is one; no bars"),
        ("--verbose", "show the trace of an error in the configuration too"),
        *(
            (
                f"--{flag}={form}",
                f"of a job in several processes: {text}, or {variable}; not needed under SLURM, Open "
                "MPI, Kubernetes and on TPU pods",
            )
            for flag, (form, text, variable) in processes.FLAGS.items()
            if job.processes
        ),
    ]


def job_help(name: str) -> str:
    """Return the text of `t5x-lite NAME --help`."""
    job = JOBS[name]
    example = ["  " + line for line in job.example.splitlines()]
    lines = [f"t5x-lite {name}: {job.help}", "", "for example:", *example, "", "flags:"]
    lines += [line for flag, text in flags_of(name) for line in _entry(flag, text)]
    lines += ["", "macros that the shipped gin files use (set those that your files mention):"]
    for macro, (meaning, example) in configuration.MACROS.items():
        lines += _entry(macro, f"{meaning}; e.g. {example}")
    lines += [
        "",
        "shipped gin files:",
        *textwrap.wrap(
            " ".join(gin_files.shipped_names()),
            116,
            initial_indent="  ",
            subsequent_indent="  ",
            break_on_hyphens=False,
        ),
    ]
    return "\n".join(lines)


def _entry(head: str, text: str) -> list[str]:
    return textwrap.wrap(
        f"{head:<25}{text}",
        116,
        initial_indent="  ",
        subsequent_indent=" " * 27,
        break_long_words=False,
        break_on_hyphens=False,
    )
