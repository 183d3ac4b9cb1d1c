"""A SentencePiece vocabulary of a task's texts, as T5's was made of C4's (Raffel et al. 2020, section 2.1)."""

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

import gin
from t5x_lite import configuration, console, monitor
from t5x_lite.errors import UserError, did_you_mean, first_line, nearest
from t5x_lite.text_files import TextFiles

_LONGEST_LINE = 16_384  # bytes; longer ones are left out


@gin.configurable(module="t5x_lite")
def vocabulary(
    task: str = gin.REQUIRED,
    output: str = gin.REQUIRED,
    size: int = 32_000,
    split: str = "train",
    field: str = "text",
    characters: int = 100_000_000,
    model_type: str = "unigram",
    character_coverage: float = 0.99995,
    byte_fallback: bool = False,
    seed: int = 0,
    threads: int = 16,
    task_modules: Sequence[str] = ("t5x_lite.tasks",),
    text_files: TextFiles | None = None,
) -> int:
    """Trains a SentencePiece model on the texts of a task, in T5's form: padding 0, EOS 1, unknown 2, no sentinels.

    A run puts it in the place of a task's own with `VOCABULARY=@SentencePieceVocabulary()` and
    `SentencePieceVocabulary.path=<output>`, which adds 100 sentinels.

    Args:
      task: as MIXTURE_OR_TASK_NAME; its source is read, before any preprocessing.
      output: the file to write.
      size: pieces; fewer where the texts do not have so many.
      split: whose texts.
      field: of the records, the text.
      characters: at most so many of them, of records chosen by `seed`.
      model_type: "unigram" or "bpe".
      character_coverage: the share of the texts' characters that get pieces.
      byte_fallback: whether other characters are spelt in bytes, rather than unknown.
      threads: a part of what is made: sums are taken thread by thread.
      task_modules, text_files: as in `SeqioSource`.

    Returns:
      0.

    Raises:
      UserError: an unknown task or field, data that are not here, a file that exists, or texts too few for a model.
    """
    target = epath.Path(os.path.expanduser(output))
    if target.exists():
        raise UserError(f"{output} exists: name a new file, nothing is written over")
    from t5x_lite import seqio_names, seqio_sources  # TensorFlow: seconds
    from t5x_lite.vocabularies import ByteVocabulary

    # The task's own vocabulary is not looked at, and files must have one.
    names = seqio_names.Named(task, tuple(task_modules), ByteVocabulary(), text_files, {})
    tasks = seqio_sources.tasks_with_split(seqio_names.find(names), split)
    configuration.check_all_read()

    counts = {"texts": 0, "characters": 0}
    model = io.BytesIO()
    import sentencepiece

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(tasks, split, field, characters, seed, counts),
            model_writer=model,
            model_type=model_type,
            vocab_size=size,
            hard_vocab_limit=False,
            character_coverage=character_coverage,
            byte_fallback=byte_fallback,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            max_sentence_length=_LONGEST_LINE,
            num_threads=threads,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as e:
        raise UserError(
            f"no vocabulary of {counts['characters']:,} characters of {task}: {first_line(e)}; set "
            "vocabulary.size, or give more text"
        ) from e
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.parent / f".{target.name}.unfinished-{os.getpid()}"
    unfinished.write_bytes(model.getvalue())
    unfinished.rename(target)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()
    console.say(
        f"vocabulary: {output}: {pieces:,} pieces, of {counts['texts']:,} texts with {counts['characters']:,} "
        "characters"
    )
    return 0


def _lines(tasks, split: str, field: str, characters: int, seed: int, counts: dict[str, int]) -> Iterator[str]:
    """The lines of the texts, an equal share of the characters from each task."""
    with monitor.Progress("vocabulary: reading", characters, "characters at most") as progress:
        for number, task in enumerate(tasks, 1):
            for record in task.source.get_dataset(split, shuffle=True, seed=seed).as_numpy_iterator():
                if counts["characters"] >= characters * number / len(tasks):
                    break
                text = _text(record, field)
                counts["texts"] += 1
                counts["characters"] += len(text)
                progress.at(counts["characters"])
                yield from filter(None, text.split("\n"))


def _text(record: Mapping[str, Any], field: str) -> str:
    if field not in record:
        raise UserError(
            f"vocabulary.field = {field!r}{did_you_mean(nearest(field, record))}: the records have {', '.join(record)}"
        )
    return record[field].decode("utf-8")
