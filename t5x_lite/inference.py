"""Texts through a model: its answers, its scores for given answers, or of given choices.

The path of a text: ids, cut to length → batches of similar length → a compiled program for each length → text. This is
what the job `infer`, `t5x_lite.Model` and the job `serve` share. Nothing here needs TensorFlow or a task.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite import decoding
from t5x_lite.beam_search import EMPTY
from t5x_lite.errors import UserError
from t5x_lite.models import Model
from t5x_lite.partitioning import Partitioner, fetch, place
from t5x_lite.vocabularies import Vocabulary

SHORTEST = 16  # tokens; shorter inputs are padded to this
FEWER_ROWS = 4  # what a smaller batch has a part of


class Unusable(Exception):
    """A text that cannot go through the model; says why."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A text as ids, and what is asked of it.

    Attributes:
      inputs: ids, EOS included.
      targets: those of the text to score, or of each choice.
      truncated: whether one of them was cut to its maximal length.
      row_id: what the row is called in the noise of sampling.
      decoder: where an answer is asked for.
      prefix: ids that the answer begins with.
    """

    inputs: list[int]
    targets: list[list[int]] = dataclasses.field(default_factory=list)
    truncated: bool = False
    row_id: int = 0
    decoder: decoding.Decoder | None = None
    prefix: tuple[int, ...] = ()

    @functools.cached_property
    def kind(self) -> Any:
        """Rows of one kind can share a batch."""
        if self.decoder is None:
            return None
        program = self.decoder.program()
        return program, self.prefix, tuple(self.decoder.settings().items()) if program.method == "beam" else ()

    @property
    def _lengths(self) -> tuple[int, int, int]:
        return len(self.targets), max(map(len, self.targets), default=0), len(self.inputs)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came of a row.

    Attributes:
      texts: what was decoded, the best first; none where scores were asked for.
      scores: of each text, or of each target. Sums of the tokens' natural-log probabilities, EOS included, or what the
        rule of beam search makes of them.
      error: why there is none of it, or None.
    """

    texts: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    error: str | None = None


class Answerer:
    """A model that is given texts.

    Args:
      params: a parameter tree on the mesh, or several of one model, whose logits are averaged.
      batch_size: rows at a time. Results depend on it by rounding errors at most.
      max_input_length, max_target_length: tokens, EOS included.
      adapts_rows: few rows go through a program for few rows, a quarter or a sixteenth of the batch and so on: sooner
        done, and more to compile. Else there is one number of rows.

    Raises:
      UserError: the devices do not divide the batch.
    """

    def __init__(
        self,
        model: Model,
        params: Any,
        vocabulary: Vocabulary,
        partitioner: Partitioner,
        batch_size: int,
        max_input_length: int,
        max_target_length: int,
        adapts_rows: bool = False,
    ):
        self.model, self.params, self.vocabulary, self.partitioner = model, params, vocabulary, partitioner
        self.batch_size = batch_size
        self.max_input_length, self.max_target_length = max_input_length, max_target_length
        self._adapts_rows = adapts_rows
        check_batch_size(batch_size, partitioner)
        # What the programs depend on besides their arrays.
        self._static = {"model": model, "rules": repr(partitioner.rules)}

    def read(self, text: str, targets: Sequence[str] = (), **asked) -> Row:
        """A row of the text and the targets to score.

        Args:
          **asked: `Row`'s other attributes.

        Raises:
          Unusable: they are no Unicode text.
        """
        inputs, cut = self._ids(text, self.max_input_length)
        each = [self._ids(target, self.max_target_length) for target in targets]
        return Row(inputs, [ids for ids, _ in each], cut or any(c for _, c in each), **asked)

    def predict(self, rows: Sequence[Row]) -> list[Answer]:
        """What the model answers, with the rows' decoders; all rows are of one `Row.kind`."""
        return self._in_batches(rows, self._start_predicting, self._predicted)

    def score(self, rows: Sequence[Row]) -> list[Answer]:
        """The log-likelihood of the one target of each row."""
        return self._in_batches(rows, self._start_scoring, _scored)

    def rank(self, rows: Sequence[Row], same: bool = False) -> list[Answer]:
        """The log-likelihood of each target of each row.

        Args:
          same: all rows have as many.
        """
        return self._in_batches(rows, functools.partial(self._start_ranking, same=same), _scored)

    def _in_batches(self, rows, start, finish) -> list[Answer]:
        # Neighbours in length share a batch, so that little of it is padding.
        order = sorted(range(len(rows)), key=lambda i: rows[i]._lengths)
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        with self.partitioner.activate():
            # All are queued before one is waited for.
            results = [start([rows[i] for i in batch]) for batch in batches]
        answers = [Answer()] * len(rows)
        for batch, result in zip(batches, results, strict=True):
            ids, scores = fetch(result)
            ids = [None] * len(batch) if ids is None else ids[: len(batch)]
            for i, row_ids, score in zip(batch, ids, scores.tolist(), strict=False):
                answers[i] = _checked(finish(rows[i], row_ids, score if isinstance(score, list) else [score]))
        return answers

    # The queueing of a batch on the devices gives (ids or None, scores), of arrays that may still be on their way.

    def _start_predicting(self, rows: list[Row]):
        n, prefix, program = self._number(rows), rows[0].prefix, rows[0].decoder.program()
        each = [row.decoder.settings() for row in rows]
        if program.method == "beam":
            settings = each[0]
        else:
            each += each[:1] * (n - len(rows))
            settings = {name: self._place(np.array([s[name] for s in each])) for name in each[0]}
        row_ids = np.array([row.row_id for row in rows] + [0] * (n - len(rows)), np.int32)
        return _predict(
            self.params,
            self._padded([row.inputs for row in rows], self.max_input_length),
            self._place(row_ids),
            self._place(np.tile(np.array(prefix, np.int32), (n, 1))) if prefix else None,
            settings,
            decoder=program,
            eos_id=self.vocabulary.eos_id,
            **self._static,
        )

    def _start_scoring(self, rows: list[Row]):
        inputs = self._padded([row.inputs for row in rows], self.max_input_length)
        targets = self._padded([row.targets[0] for row in rows], self.max_target_length)
        return None, _score(self.params, inputs, targets, **self._static)

    def _start_ranking(self, rows: list[Row], same: bool):
        inputs = self._padded([row.inputs for row in rows], self.max_input_length)
        return None, _rank(self.params, inputs, self._padded_choices(rows, same), **self._static)

    def _predicted(self, row: Row, ids: np.ndarray, scores: list[float]) -> Answer:
        # Beam search can find fewer than were asked for.
        found = [
            (self.vocabulary.decode(i[: row.decoder.max_length].tolist()), s)
            for i, s in zip(np.atleast_2d(ids), scores, strict=True)
            if s > EMPTY or len(scores) == 1 or not math.isfinite(s)
        ]
        return Answer(tuple(text for text, _ in found), tuple(score for _, score in found))

    def _ids(self, text: str, max_length: int) -> tuple[list[int], bool]:
        """Ids with EOS, at most `max_length` of them, and whether that took a cut."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as e:
            raise Unusable(f"a lone surrogate at character {e.start + 1}") from e
        ids = self.vocabulary.encode(text)
        return [*ids[: max_length - 1], self.vocabulary.eos_id], len(ids) > max_length - 1

    def _number(self, rows: Sequence[Any]) -> int:
        """Rows of the batch that these go in."""
        n = self.batch_size
        while self._adapts_rows and n % FEWER_ROWS == 0 and len(rows) <= n // FEWER_ROWS:
            if n // FEWER_ROWS % self.partitioner.batch_shards:
                break
            n //= FEWER_ROWS
        return n

    def _padded(self, rows: list[list[int]], max_length: int) -> jax.Array:
        """int32 [b, n]: filled with empty rows, and n one of few lengths, so that few programs compile."""
        return self._place(padded(rows, max_length, self._number(rows)))

    def _padded_choices(self, rows: list[Row], same: bool) -> jax.Array:
        """int32 [b, c, t]: c and t powers of two, or c what all rows have. Every position costs a step."""
        c = len(rows[0].targets) if same else bucket(max(len(row.targets) for row in rows), None, 1)
        t = bucket(max(len(ids) for row in rows for ids in row.targets), self.max_target_length, 1)
        array = np.zeros((self._number(rows), c, t), np.int32)
        for i, row in enumerate(rows):
            for j, ids in enumerate(row.targets):
                array[i, j, : len(ids)] = ids
        return self._place(array)

    def _place(self, array: np.ndarray) -> jax.Array:
        return place(array, self.partitioner.batch)


def _scored(row: Row, ids: None, scores: list[float]) -> Answer:
    del ids
    return Answer((), tuple(scores[: len(row.targets)]))


def _checked(answer: Answer) -> Answer:
    if all(map(math.isfinite, answer.scores)):
        return answer
    return Answer(error=f"the score is {answer.scores[0]}: the weights or dtype are unsound")


# At the top of the module, so that a second call in one process compiles nothing again. Tracing reads the rules of the
# partitioner in force, which jit does not see: they are an argument to be part of the key.


@functools.partial(jax.jit, static_argnames=("model", "eos_id", "decoder", "rules"))
def _predict(params, inputs, row_ids, prefix, settings, *, model, eos_id, decoder, rules):
    del rules
    return decoder(model, params, inputs, eos_id, row_ids, prefix, settings)


@functools.partial(jax.jit, static_argnames=("model", "rules"))
def _score(params, inputs, targets, *, model, rules):
    del rules
    start = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
    batch = {"encoder_input_tokens": inputs, "decoder_input_tokens": start, "decoder_target_tokens": targets}
    return decoding.score(model, params, batch)


@functools.partial(jax.jit, static_argnames=("model", "rules"))
def _rank(params, inputs, choices, *, model, rules):
    del rules
    return decoding.rank(model, params, inputs, choices)


def bucket(length: int, longest: int | None, shortest: int = SHORTEST) -> int:
    """The length to pad to: a power of two of at least `shortest`, or `longest` where that is less."""
    power = max(shortest, 1 << (length - 1).bit_length())
    return power if longest is None else min(longest, power)


def padded(rows: Sequence[Sequence[int]], max_length: int, number: int | None = None) -> np.ndarray:
    """int32 [number, n]: ids, 0 where padded, with n a `bucket` of the longest row; by default as many as there are."""
    array = np.zeros((number or len(rows), bucket(max(map(len, rows)), max_length)), np.int32)
    for i, row in enumerate(rows):
        array[i, : len(row)] = row
    return array


def check_batch_size(batch_size: int, partitioner: Partitioner, binding: str = "batch_size") -> None:
    """Raises UserError where the devices that share a batch do not divide it.

    Args:
      binding: what to blame.
    """
    shards = partitioner.batch_shards
    if batch_size % shards:
        raise UserError(
            f"{binding}={batch_size} cannot be divided over {shards} devices: make it a multiple, or change Mesh.shape"
        )


def check_vocabulary(vocabulary: Vocabulary, model: Model, path: Any, remedy: str) -> None:
    """Raises UserError where the vocabulary has ids that the model has no place for.

    Args:
      path: whose model it is.
    """
    if vocabulary.vocab_size > model.config.vocab_size:
        raise UserError(
            f"the vocabulary has {vocabulary.vocab_size} ids, but the model of {path} only {model.config.vocab_size}: "
            f"{remedy}"
        )


def check_prefix(
    prefix: Sequence[int], decoder: decoding.Decoder, binding: str = "decoder_prefix", limit: str = "max_length"
) -> None:
    """Raises UserError where the prefix leaves no room for an answer.

    Args:
      binding, limit: what to blame.
    """
    if len(prefix) >= decoder.max_length:
        raise UserError(
            f"{binding} has {len(prefix)} tokens, which leaves none of {limit}={decoder.max_length}: shorten it, or "
            "raise that"
        )
