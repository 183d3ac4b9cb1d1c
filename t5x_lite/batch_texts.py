"""The texts of training batches: what a step is trained on, with weights, and where each text comes from.

The batch of a step is a function of the configuration, the seed and the step, so that it can be made again at any time:
from the positions in the newest checkpoint before it, or from the beginning. (Batches that a run has thrown away after
a loss that was not finite are known to the checkpoints that came later, and not to the beginning.)
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from t5x_lite import checkpoints
from t5x_lite.data import Blocks, Row, Stream
from t5x_lite.errors import UserError
from t5x_lite.vocabularies import Vocabulary

# By how many characters a text is found in the records again: at most, and at least where it is longer than that.
TAIL = (40, 12)
PLACES = 3  # to name for one text


def show(
    blocks: Blocks, num_streams: int, batch_size: int, model_dir, count: int = 1, at_step: int | None = None
) -> Iterator[str]:
    """Yields the rows of `count` batches, each as some lines of text.

    Args:
      model_dir: whose checkpoints say where the data stood; it need not be there.
      at_step: of the first batch, counted from 1; by default the one after the newest checkpoint.

    Raises:
      UserError: data without a vocabulary, or checkpoints of a run with another number of streams.
    """
    if blocks.vocabulary is None:
        raise UserError("the data have no vocabulary to read them with; set its source's `vocabulary`")
    before = [0, *(step for step in checkpoints.steps(model_dir) if at_step is None or step < at_step)]
    positions = np.zeros((num_streams, 2), np.int64)
    if before[-1]:
        positions = checkpoints.read_positions(checkpoints.find_step(model_dir, before[-1]))
    if len(positions) != num_streams:
        raise UserError(f"{model_dir} was begun with {len(positions)} data streams, not {num_streams}; set NUM_STREAMS")
    streams = [Stream(blocks, i, position) for i, position in enumerate(positions)]
    first = before[-1] + 1 if at_step is None else at_step
    for _ in range(before[-1] + 1, first):
        for stream in streams:
            stream.take(batch_size // num_streams)
    origins = _Origins(blocks)
    for step in range(first, first + count):
        for i in range(batch_size):
            index = i * num_streams // batch_size
            (row,) = streams[index].take(1)
            k, after = streams[index].position
            yield (
                f"step {step}, row {i}: stream {index}, row {after - 1} of its block {k}\n"
                + "\n".join(_segments(row, blocks.vocabulary, origins.of(index, k)))
            )


def _segments(row: Row, vocabulary, origins) -> Iterator[str]:
    targets, weights = row["decoder_target_tokens"], row["decoder_loss_weights"]
    inputs = row.get("encoder_input_tokens", np.zeros(0, np.int32))
    ids = row.get("decoder_segment_ids", (targets > 0).astype(np.int32))
    inputs_ids = row.get("encoder_segment_ids", (inputs > 0).astype(np.int32))
    for segment in range(1, max(ids.max(initial=0), inputs_ids.max(initial=0)) + 1):
        mine = {"inputs": inputs[inputs_ids == segment], "targets": targets[ids == segment]}
        weighing = weights[ids == segment]
        sizes = " and ".join(f"{len(tokens)} of {name}" for name, tokens in mine.items() if len(tokens))
        yield f"  segment {segment}: tokens, {sizes}; weight {weighing.sum():g}"
        texts = {name: as_text(vocabulary, tokens) for name, tokens in mine.items() if len(tokens)}
        for name, text in texts.items():
            # Quoted, so that newlines and blanks can be seen.
            yield f"    {name:<8} {text!r}"
        if found := _find(list(texts.values()), origins):
            yield f"    from     {', '.join(found)}"


def as_text(vocabulary: Vocabulary, ids: np.ndarray) -> str:
    """All of the ids as text, the end of text and sentinels included."""
    sentinels = vocabulary.vocab_size - vocabulary.extra_ids
    parts, run = [], []
    for i in [*ids.tolist(), None]:
        # Bytes have no text for their sentinels; word pieces have, and lose a blank beside it when taken apart.
        mark = i is None or i == vocabulary.eos_id or (i >= sentinels and not vocabulary.decode([i]))
        if not mark:
            run.append(i)
            continue
        parts.append(vocabulary.decode(run))
        run = []
        if i is not None:
            parts.append("</s>" if i == vocabulary.eos_id else f"<extra_id_{vocabulary.vocab_size - 1 - i}>")
    return "".join(parts)


class _Origins:
    """The records of each stream's newest block, as text to look in."""

    def __init__(self, blocks: Blocks):
        self._origins = getattr(blocks, "origins", lambda stream, k: ())
        self._known: dict[int, tuple[int, list[tuple[str, str]]]] = {}

    def of(self, stream: int, k: int) -> list[tuple[str, str]]:
        """(where, text) of each record of a block."""
        if self._known.get(stream, (None,))[0] != k:
            self._known[stream] = k, [(where, _plain(_joined(record))) for where, record in self._origins(stream, k)]
        return self._known[stream][1]


def _joined(record: Mapping[str, Any]) -> str:
    return " ".join(v.decode("utf-8", "replace") for v in record.values() if isinstance(v, bytes))


def _find(texts: list[str], origins: list[tuple[str, str]]) -> list[str]:
    """Where the longest pieces of the texts lie: all of them, or else any."""
    pieces = [piece for text in texts for piece in map(_plain, re.split(r"<extra_id_\d+>|</s>", text)) if piece]
    found = [_find_end(piece, origins) for piece in sorted(pieces, key=len, reverse=True)[:PLACES]]
    together = [where for where in found[0] if all(where in places for places in found)] if found else []
    return list(dict.fromkeys(together or itertools.chain(*found)))[:PLACES]


def _find_end(piece: str, origins: list[tuple[str, str]]) -> list[str]:
    """Where the end of a piece lies; the words before it may be a task's prefix."""
    most, least = TAIL
    words = piece[-most:].split()
    ends = [" ".join(words[start:]) for start in range(len(words))]
    for end in ends:
        if len(end) >= min(least, len(ends[0])) and (places := [where for where, text in origins if end in text]):
            return places
    return []


def _plain(text: str) -> str:
    return " ".join(text.split())
