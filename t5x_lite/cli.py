"""`t5x-lite JOB --gin_file=... --gin.NAME=VALUE ...`: flags in, one job called, one line for a mistake.

Exit codes: 0 done, 1 the program failed (with its trace), 2 the user can mend it (one line on stderr), 75 told to stop
by SIGTERM, or another process of the job is gone (started again, it goes on), 130 interrupted.

JAX and the jobs are imported only after the flags have been understood, so that `--help` and a misspelt flag are
answered at once.
"""

import dataclasses
import difflib
import importlib
import inspect
import logging
import os
import sys
import textwrap
import traceback
from collections.abc import Mapping, Sequence

import t5x_lite
from t5x_lite import buckets, configuration, console, gin_files, processes, remedies, start_up
from t5x_lite.errors import Preempted, UserError, did_you_mean, first_line, nearest


@dataclasses.dataclass(frozen=True)
class Job:
    """A gin configurable that the command line calls, and what `--help` says about it.

    `flags` are short forms: the flag's name, what is bound to its text, a line of help; `file_flags` those that name a
    gin file: the flag's name, the file with {} for the text, a line of help. `unneeded` are macros that gin files refer
    to, but not what this job reads of them; `also` are configurables whose bindings it reads besides its own.
    `processes`: whether several can share it. `words` is what is bound to the words without a flag, and what they are
    called; other jobs take none.
    """

    module: str
    function: str
    help: str
    example: str
    flags: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    unneeded: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    incomplete: bool = False
    processes: bool = False
    words: tuple[str, str] | None = None
    file_flags: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)

    @property
    def short_forms(self) -> Mapping[str, str]:
        """{flag: a line of help} of both kinds."""
        return {flag: text for flag, (_, text) in (self.file_flags | self.flags).items()}


_MODEL_DIR = {"model_dir": ("MODEL_DIR", "short for --gin.MODEL_DIR")}

JOBS = {
    "train": Job(
        "t5x_lite.jobs.train",
        "train",
        "pretrain or finetune a model; started again, it goes on where it stopped",
        "t5x-lite train --gin_file=models/t5_1_1/small.gin --gin_file=runs/pretrain.gin \\\n"
        "    --gin.MIXTURE_OR_TASK_NAME=pydocs_span_corruption --gin.BATCH_SIZE=32 --model_dir=/tmp/t5x_lite/run",
        _MODEL_DIR,
        processes=True,
    ),
    "eval": Job(
        "t5x_lite.jobs.evaluate",
        "evaluate",
        "compute the metrics of one checkpoint, the latest, or all",
        "t5x-lite eval --gin_file=runs/eval.gin --gin.MIXTURE_OR_TASK_NAME=pydocs_summarize \\\n"
        "    --model_dir=/tmp/t5x_lite/run",
        _MODEL_DIR,
        processes=True,
    ),
    "infer": Job(
        "t5x_lite.jobs.infer",
        "infer",
        "write the model's answers to a file of inputs",
        "t5x-lite infer --checkpoint=/tmp/t5x_lite/run --input=questions.jsonl --output=answers.jsonl",
        {
            "checkpoint": ("infer.checkpoint", "a MODEL_DIR, or one checkpoint in it; A,B averages the logits"),
            "input": ("infer.input", "the file to read"),
            "output": ("infer.output", "the file to write"),
        },
        processes=True,
    ),
    "serve": Job(
        "t5x_lite.jobs.serve",
        "serve",
        "serve a page to try a model, and answers as JSON over HTTP",
        "t5x-lite serve --checkpoint=/tmp/t5x_lite/run --port=8080",
        {
            "checkpoint": ("serve.checkpoint", "a MODEL_DIR, one checkpoint in it, or a Hugging Face folder"),
            "host": ("serve.host", "the address to listen on; 127.0.0.1, this machine alone, by default"),
            "port": ("serve.port", "8080 by default; 0 takes a free one"),
        },
    ),
    "plan": Job(
        "t5x_lite.jobs.plan",
        "plan",
        "say what a run would need on hardware that is not here: memory, messages, time",
        "t5x-lite plan --hardware=v5e:16x16 --gin_file=models/t5_1_1/xxl.gin --gin_file=runs/pretrain.gin \\\n"
        "    --gin.BATCH_SIZE=2048 --gin.T5Config.remat=full --gin.MESH=\"{'data': 1, 'fsdp': 64, 'tensor': 4}\"",
        {
            "hardware": ("plan.hardware", "KIND:SHAPE: v5e:16x16, 2xv5p:4x4x8 (slices), h200:64, cpu:8"),
            "save": ("plan.save", "a folder for the compiled step, for train to start from"),
            "json": ("plan.json_file", "a file for the same as JSON"),
        },
        ("MODEL_DIR", "MIXTURE_OR_TASK_NAME", "INITIAL_CHECKPOINT_PATH"),
        ("t5x_lite.train",),
    ),
    "inspect": Job(
        "t5x_lite.jobs.inspect",
        "inspect",
        "show a task step by step, a mixture, a checkpoint, or what a configuration binds and where",
        "t5x-lite inspect --task=pydocs_span_corruption",
        {
            "task": ("inspect.task", "a task or mixture, as MIXTURE_OR_TASK_NAME"),
            "checkpoint": ("inspect.checkpoint", "a MODEL_DIR, one checkpoint in it, or another system's"),
            "against": ("inspect.against", "with --checkpoint: another one, for what differs"),
            "json": ("inspect.json_file", "a file for the same as JSON, - for stdout alone"),
        },
        incomplete=True,
    ),
    "study": Job(
        "t5x_lite.jobs.study",
        "study",
        "print a table of the T5 paper, run one of its rows, or compare rows (--gin_file=study/miniature.gin)",
        "t5x-lite study --row=T6-25 --scale=mini --corpus=pydocs --runs=/tmp/t5x_lite/study",
        {
            "table": ("study.table", "the table's number in the paper; beside its scores, those of runs below --runs"),
            "row": ("study.row", "a file of gin/study, T6-25: pretrain, then finetune on each task"),
            "runs": ("study.runs", "the folder of the runs, runs/study by default"),
            "scale": ("study.scale", "a file of gin/study/scales, for smaller models and fewer steps"),
            "corpus": ("study.corpus", "a file of gin/study/corpora, for other tasks than the paper's"),
        },
    ),
    "reference": Job(
        "t5x_lite.jobs.reference",
        "reference",
        "write down every flag, macro and configurable, with defaults and the shipped files that bind them",
        "t5x-lite reference --output=/tmp/t5x_lite/reference.md",
        {"output": ("reference.output", "the Markdown file to write, stdout by default")},
    ),
    "report": Job(
        "t5x_lite.jobs.report",
        "report",
        "make one page of one or several runs: curves, tables, predictions",
        "t5x-lite report /tmp/t5x_lite/run /tmp/t5x_lite/other --output=/tmp/t5x_lite/report.html",
        {
            "output": ("report.output", "the file to write, report.html by default"),
            "title": ("report.title", "above the page"),
        },
        words=("report.model_dirs", "MODEL_DIR ..."),
    ),
    "convert": Job(
        "t5x_lite.jobs.convert",
        "convert",
        "bring checkpoints in from and out to other systems, or into another form",
        "t5x-lite convert --from=/tmp/t5x_lite/run --to=/tmp/t5x_lite/exported --format=hugging_face",
        {
            "from": ("convert.source", "a checkpoint of this project, Hugging Face, T5X or Mesh TensorFlow"),
            "to": ("convert.target", "the folder to make"),
            "format": ("convert.format", "t5x_lite (the default), hugging_face, t5x or stablehlo"),
        },
    ),
    "release": Job(
        "t5x_lite.jobs.release",
        "release",
        "make a folder to publish of a finished run: weights for transformers, tokenizer, model card",
        "t5x-lite release --model_dir=/tmp/t5x_lite/run --to=/tmp/t5x_lite/my-t5 --license=apache-2.0",
        {
            "model_dir": ("release.model_dir", "the run"),
            "to": ("release.target", "the folder to make"),
            "license": ("release.license", "the model's, as a hub names it: apache-2.0, cc-by-4.0, other"),
            "name": ("release.name", "the model's; by default the folder's"),
        },
    ),
    "corpus": Job(
        "t5x_lite.jobs.corpus",
        "corpus",
        "clean web crawls (WET or WARC files) into a data set such as C4",
        "t5x-lite corpus --input='crawl/*.warc.wet.gz' --variant=en --output_dir=/tmp/t5x_lite/data \\\n"
        "    --gin.BAD_WORDS=words/en",
        {
            "input": ("corpus.input", "the crawl's files: paths or globs, apart by commas"),
            "output_dir": ("corpus.output_dir", "the folder of data sets, to be named by TFDS_DATA_DIR afterwards"),
            "pipeline_options": ("corpus.pipeline_options", "flags for Beam: --runner=DataflowRunner …"),
        },
        file_flags={
            "variant": (
                "corpus/{}.gin",
                "en, en.noclean, realnewslike, webtextlike or multilingual: a file of gin/corpus",
            )
        },
    ),
    "vocabulary": Job(
        "t5x_lite.jobs.vocabulary",
        "vocabulary",
        "train a SentencePiece vocabulary on a task's texts",
        "t5x-lite vocabulary --task=c4_v020_unsupervised --output=/tmp/t5x_lite/sentencepiece.model \\\n"
        "    --gin.vocabulary.size=32000",
        {
            "task": ("vocabulary.task", "a task, as MIXTURE_OR_TASK_NAME; its texts are read as they are"),
            "output": ("vocabulary.output", "the file to write"),
        },
    ),
    "cache": Job(
        "t5x_lite.jobs.cache",
        "cache",
        "tokenize a task once, for runs with SeqioSource.cache_dir",
        "t5x-lite cache --task=pydocs_span_corruption --output_dir=/tmp/t5x_lite/cache",
        {
            "task": ("cache.task", "a task or mixture, as MIXTURE_OR_TASK_NAME"),
            "output_dir": ("cache.output_dir", "the folder of caches"),
        },
    ),
}

# Modules whose import registers the names that gin files may use, whichever job runs. None imports TensorFlow.
MODULES = (
    "t5x_lite.models",
    "t5x_lite.losses",
    "t5x_lite.optimizers",
    "t5x_lite.partitioning",
    "t5x_lite.trainer",
    "t5x_lite.data",
    "t5x_lite.vocabularies",
    "t5x_lite.decoding",
    "t5x_lite.evaluation",
    "t5x_lite.study",
)


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
    numbers: dict[str, int] = dataclasses.field(default_factory=dict)  # of _NUMBERS, those that were given
    place: dict[str, str] = dataclasses.field(default_factory=dict)  # of processes.FLAGS, those that were given
    quiet: bool = False
    verbose: bool = False
    help: bool = False
    version: bool = False


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
    for switch, what in _JOB_SWITCHES.items():
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


# ----------------------------------------------------------------------------------------------------------------------
# Flags
# ----------------------------------------------------------------------------------------------------------------------

# Parameters of the jobs that know them, and what they are about.
_JOB_SWITCHES = {"dry_run": "dry run", "allow_config_change": "run to go on with", "search": "search"}
_SWITCHES = (*_JOB_SWITCHES, "quiet", "verbose", "help", "version")
_NUMBERS = ("show_batches", "at_step")
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
        known = name in (*_FILES, "log_format", *_NUMBERS, *processes.FLAGS) or name.startswith("gin.")
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
        elif name in _NUMBERS:
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
    flags = [*_FILES, "log_format", *_SWITCHES, *_NUMBERS, *processes.FLAGS, *(JOBS[job].short_forms if job else ())]
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
