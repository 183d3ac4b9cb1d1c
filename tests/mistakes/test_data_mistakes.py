"""Mistakes about data that are read as text: what is typed, and the whole line that answers it, before any step."""

import pytest

TRAIN = [
    "train",
    "--gin_file=models/t5_1_1/mini.gin",
    "--gin_file=runs/finetune.gin",
    "--model_dir=run",
    "--gin.INITIAL_CHECKPOINT_PATH=None",
    "--gin.DROPOUT_RATE=0.0",
    "--gin.VOCABULARY=@ByteVocabulary()",
    "--gin.T5Config.vocab_size=384",
    "--gin.BATCH_SIZE=8",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 16}",
    "--gin.TRAIN_STEPS=1",
    "--gin.EVALUATION_EXAMPLES=4",
]


def on(name: str, *flags: str) -> list[str]:
    return [*TRAIN, f"--gin.MIXTURE_OR_TASK_NAME={name}", *flags]


COLUMNS = (
    "; set TextFiles.columns (and template) to what is there: names from the first line, or numbers from 0 where it "
    "has none"
)
MISTAKES = {
    "a file without its kind": (
        on("pairs.tsv"),
        "MIXTURE_OR_TASK_NAME = 'pairs.tsv' is not registered by t5x_lite.tasks; for a file write tsv:pairs.tsv, "
        "jsonl:pairs.tsv or text:pairs.tsv",
    ),
    "no file there": (
        on("tsv:none.tsv"),
        "train data 'none.tsv': no such file; give a file or a glob such as /data/*.tsv",
    ),
    "an empty file": (on("tsv:empty.tsv"), "empty.tsv: no line that can be used among 0"),
    "a column by a name that it has not": (
        on("tsv:pairs.tsv", "--gin.TextFiles.columns=('question', 'answer')"),
        f"pairs.tsv:1: no column 'question', the line names 'question 0', 'answer 0'{COLUMNS}",
    ),
    "a column beyond the last": (
        on("tsv:pairs.tsv", "--gin.TextFiles.columns=(0, 5)"),
        f"pairs.tsv:1: no column 5, the line has 2 column(s){COLUMNS}",
    ),
    "a template without a place": (
        on("tsv:pairs.tsv", "--gin.TextFiles.template=translate"),
        "TextFiles.template = 'translate' has no place for an input: write {} where it stands, as in 'translate: {}'",
    ),
    "broken lines": (
        on("jsonl:broken.jsonl"),
        "broken.jsonl:1: not JSON: Expecting property name enclosed in double quotes: line 1 column 16 (char 15); 101 "
        "of 101 line(s) skipped (101 not JSON), more than TextFiles.max_bad_lines = 100: mend the lines, or raise it "
        "to skip them",
    ),
    "features of other names": (
        on("tsv:pairs.tsv", "--gin.TASK_FEATURE_LENGTHS={'input': 32, 'target': 16}"),
        'TASK_FEATURE_LENGTHS lacks inputs, targets; for example {"inputs": 512, "targets": 114}',
    ),
    "no place for targets": (
        on("tsv:pairs.tsv", "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 0}"),
        "TASK_FEATURE_LENGTHS has 0 for targets: give at least 1, the end of a text",
    ),
    "a vocabulary larger than the embedding": (
        on("tsv:pairs.tsv", "--gin.T5Config.vocab_size=256"),
        "the vocabulary has 384 ids, but T5Config.vocab_size = 256; set T5Config.vocab_size to 384",
    ),
    "no vocabulary": (
        on("tsv:pairs.tsv", "--gin.VOCABULARY=None"),
        "tsv:pairs.tsv: files have no vocabulary of their own; set VOCABULARY = @ByteVocabulary(), or "
        "@SentencePieceVocabulary() with SentencePieceVocabulary.path, or start from a checkpoint",
    ),
    "a module that is not there": (
        on("tsv:pairs.tsv", "--gin.TASK_MODULES=('my_task',)"),
        "task_modules names 'my_task', which cannot be imported: No module named 'my_task'",
    ),
    "a metric of another task": (
        on("tsv:pairs.tsv", "--gin.train.early_stopping_metric=eval/pair/los"),
        "train.early_stopping_metric = 'eval/pair/los' will not be evaluated (did you mean eval/pairs/loss?): there "
        "are eval/pairs/loss, eval/pairs/token_accuracy, and the tasks' own, eval/<task>/<metric>",
    ),
    "another objective's preprocessor": (
        on("tsv:pairs.tsv", "--gin.preprocessors.span_corruption.noise_density=0.3"),
        "--gin.preprocessors.span_corruption.noise_density was read by nothing, since this job never used "
        "span_corruption; correct the name, or remove the binding",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_about_data_is_answered_by_one_line(name, told):
    argv, line = MISTAKES[name]
    assert told(*argv) == line
