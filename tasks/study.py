"""What the study needs besides T5's own tasks: books beside Wikipedia, truncated data, and pydocs in mixtures."""

import functools

import seqio
import tensorflow as tf

import gin
from t5x_lite.errors import UserError
from t5x_lite.tasks import c4, mixtures, preprocessors, rates, unsupervised  # noqa: F401  (mixtures: it mixes them)
from t5x_lite.tasks.pydocs import tasks as pydocs_tasks  # noqa: F401  (mixed, too)
from t5x_lite.tasks.truncated import add_truncated


@gin.configurable(module="t5x_lite")
def books(pattern: str | None = None) -> str:
    """Text files of books, one a line, in place of the Toronto Books Corpus, which is not distributed any more.

    Args:
      pattern: a glob, also of a remote folder.

    Raises:
      UserError: not set, or no such file.
    """
    if pattern is None:
        raise UserError(
            "the Toronto Books Corpus is not distributed: set books.pattern to text files with a book on "
            "each line, for example books.pattern = '/data/books/*.txt'"
        )
    if not tf.io.gfile.glob(pattern):
        raise UserError(f"books.pattern = {pattern!r}: no such file")
    return pattern


def _books(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    del split
    files = tf.data.Dataset.list_files(books(), shuffle=shuffle_files, seed=seed)
    return tf.data.TextLineDataset(files).map(lambda line: {"text": line})


# Both by their sizes: 16 GB of Wikipedia, 20 GB with the books (Raffel et al. 2020, table 8).
unsupervised.add_task(
    "books_unsupervised",
    seqio.FunctionDataSource(_books, splits=("train",)),
    c4.features(),
    preprocessors.unsupervised,
    seqio.preprocessors.append_eos_after_trim,
)
seqio.MixtureRegistry.add(
    "wikipedia_tbc_unsupervised", [("wikipedia_20190301.en_v003_unsupervised", 16), ("books_unsupervised", 4)]
)

_UNLABELLED, _LABELLED = "pydocs_unsupervised", ("pydocs_library", "pydocs_summarize")

for _task in ("c4_v020_unsupervised", _UNLABELLED, *_LABELLED):
    add_truncated(_task)

_add = seqio.MixtureRegistry.add
_by_examples = functools.partial(_add, default_rate=rates.rate_num_examples)

_add("pydocs_library_and_summarize_truncated", [("pydocs_library_truncated", 1.0), ("pydocs_summarize_truncated", 3.0)])
_add("pydocs_all_equal", [*_LABELLED, _UNLABELLED], default_rate=1.0)
_by_examples("pydocs_all_proportional", [*_LABELLED, _UNLABELLED])
_by_examples("pydocs_all_supervised_proportional", list(_LABELLED))
_by_examples("pydocs_all_mix", [(_UNLABELLED, rates.rate_unsupervised), *_LABELLED])
for _left_out in _LABELLED:
    _others = [task for task in _LABELLED if task != _left_out]
    _by_examples(f"pydocs_leave_one_out_{_left_out}", [*_others, _UNLABELLED])
