"""The jobs: one gin-configurable function each, and the table by which the command line calls them.

Nothing is imported here: `--help` and a misspelt flag are answered at once.
"""

import dataclasses
from collections.abc import Mapping


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
