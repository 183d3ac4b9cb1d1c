"""The model's answers to a file of inputs, its scores for given answers, or its choice among given ones.

The path of a line: text → ids, cut to length → batches of similar length → a compiled program for each length →
text, put back into the order of the input. Nothing here needs TensorFlow or a task: the checkpoint carries the
vocabulary.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

import gin
from t5x_lite import configuration, decoding, ensembles, text_io, together, vocabularies
from t5x_lite.beam_search import EMPTY
from t5x_lite.errors import UserError
from t5x_lite.partitioning import MeshConfig, fetch, place

WINDOW = 16  # batches that are sorted by length together, and written together
SHORTEST = 16  # tokens; shorter inputs are padded to this
MODES = ("predict", "score", "rank")


@gin.configurable(module="t5x_lite")
def infer(
    checkpoint: str | Sequence[str] = gin.REQUIRED,
    input: str = gin.REQUIRED,
    output: str = gin.REQUIRED,
    mode: str = "predict",
    decoder: decoding.Decoder | None = None,
    decoder_prefix: str | None = None,
    choices: Sequence[str] | None = None,
    batch_size: int = 32,
    max_input_length: int = 512,
    max_target_length: int = 512,
    input_format: str | None = None,
    input_field: str | None = None,
    target_field: str | None = None,
    vocabulary: vocabularies.Vocabulary | None = None,
    mesh: MeshConfig | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> int:
    """Writes one JSON line for each line of the input, in its order.

    Mode "predict": `{"input", "prediction", "score"}`; the score is the sum of the tokens' natural-log probabilities,
    EOS included, or what the rule of beam search makes of it. With `Decoder.num_return_sequences` over 1
    `{"input", "predictions": [{"text", "score"}, …]}`, the best first. Mode "score": `{"input", "target", "score"}`.
    Mode "rank": `{"input", "prediction", "score", "scores"}`, the most probable of the choices, its score, and the
    scores of all in their order; choices that came with the line are repeated as `"choices"`.

    `"truncated": true` marks text that was cut to its maximal length. A line that cannot be understood gives
    `{"input", "error"}` and the job goes on.

    A job that was killed goes on where it stopped when it is run again in the same way; an input that has changed in
    the lines already done is refused.

    Several processes share the work of each batch, and the first one writes.

    Args:
      checkpoint: MODEL_DIR, its `checkpoints` folder (the newest step), one step's folder, or a checkpoint of another
        system (see `convert`); or several, as a list or with commas between, of one configuration: the means of their
        logits are used.
      input: .txt, .tsv or .jsonl file, or `-` for stdin.
      output: file to make, or `-` for stdout, which cannot be resumed.
      mode: "predict", "score" or "rank".
      decoder: how to decode; by default `Decoder()`, with its bindings.
      decoder_prefix: text that every prediction begins with; not part of its score.
      choices: the texts to rank for every line; without them each line of a .jsonl file has its own, "choices".
      batch_size: lines at a time. Results depend on it by rounding errors at most.
      max_input_length, max_target_length: tokens, EOS included; targets are read in mode "score", choices in "rank".
      input_format: "txt", "tsv" or "jsonl" where the file's ending does not say it.
      input_field, target_field: the column or field to read (see `text_io.TextInput`).
      vocabulary: instead of the checkpoint's.
      mesh: devices; by default `Mesh()`, with its bindings.
      overwrite: start anew, replacing the output and what a killed job left.
      dry_run: say what would run, and stop.

    Returns:
      The number of lines with an error.

    Raises:
      UserError: anything that is wrong before the first line, or an input that changed under a resumed job.
    """
    # 1. What was asked. Everything that can be refused without the model is refused here.
    if mode not in MODES:
        raise UserError(f'infer.mode must be "predict", "score" or "rank", not {mode!r}')
    if choices is not None:
        if isinstance(choices, str) or not choices or not all(isinstance(choice, str) for choice in choices):
            raise UserError(f'infer.choices must be a list of texts such as ["yes", "no"], not {choices!r}')
        choices = tuple(choices)
    if decoder_prefix is not None and not isinstance(decoder_prefix, str):
        raise UserError(f"infer.decoder_prefix must be one text for all lines, not {decoder_prefix!r}")
    for name, value, needed in (("choices", choices, "rank"), ("decoder_prefix", decoder_prefix, "predict")):
        if value and mode != needed:
            raise UserError(f'infer.{name} is for infer.mode="{needed}", not {mode!r}: drop one of them')
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("max_input_length", max_input_length, 2),
        ("max_target_length", max_target_length, 2),
    ):
        if value < least:
            raise UserError(f"infer.{name} must be at least {least}, not {value!r}")
    if together.several() and os.fspath(input) == text_io.STANDARD:
        raise UserError(
            "infer.input = -: several processes cannot read one standard input; give a file that all can read"
        )
    decoder = decoder or decoding.Decoder()
    partitioner = (mesh or MeshConfig()).build()
    if batch_size % partitioner.batch_shards:
        raise UserError(
            f"infer.batch_size={batch_size} cannot be divided over {partitioner.batch_shards} devices: "
            "make it a multiple, or change Mesh.shape"
        )
    source = text_io.TextInput(
        input,
        input_format,
        input_field,
        target_field,
        with_target=mode == "score",
        with_choices=mode == "rank" and choices is None,
    )
    if (
        text_io.STANDARD not in (source.path, os.fspath(output))
        and epath.Path(input).resolve() == epath.Path(output).resolve()
    ):
        raise UserError(f"infer.output is the input {input}: name another")
    configuration.check_all_read()

    # 2. The model.
    paths = ensembles.paths(checkpoint, "infer.checkpoint")
    model, params, metas = ensembles.load(paths, partitioner)
    if vocabulary is None:
        if not metas[0].get("vocabulary"):
            raise UserError(
                f"{paths[0]} carries no vocabulary: set infer.vocabulary=@SentencePieceVocabulary() and "
                "SentencePieceVocabulary.path"
            )
        vocabulary = vocabularies.from_dict(metas[0]["vocabulary"])
    if vocabulary.vocab_size > model.config.vocab_size:
        raise UserError(
            f"the vocabulary has {vocabulary.vocab_size} ids, but the model of {paths[0]} only "
            f"{model.config.vocab_size}: infer.vocabulary must be the one it was trained with"
        )
    prefix = vocabulary.encode(decoder_prefix or "")
    if len(prefix) >= decoder.max_length:
        raise UserError(
            f"infer.decoder_prefix has {len(prefix)} tokens, which leaves none of Decoder.max_length="
            f"{decoder.max_length}: shorten it, or raise that"
        )
    if dry_run:
        count = sum(leaf.size for leaf in jax.tree.leaves(params if len(paths) == 1 else params[0]))
        lines = [partitioner.describe()]
        lines += [f"{path}, step {meta['step']}: {count:,} parameters" for path, meta in zip(paths, metas, strict=True)]
        lines += [f"{vocabulary!r}\n{mode} {source.path} ({source.format}) -> {output}\n{decoder}"]
        if together.first():
            print("\n".join(lines))
        return 0
    worker = _Worker(
        model,
        params,
        vocabulary,
        decoder,
        partitioner,
        mode,
        batch_size,
        max_input_length,
        max_target_length,
        prefix,
        choices,
    )

    # 3. Where an earlier run stopped. Process 0 has the output, and tells the others how far it is.
    settings = {
        "checkpoint": ",".join(paths),
        "step": metas[0]["step"] if len(metas) == 1 else [meta["step"] for meta in metas],
        "vocabulary": _digest(vocabulary.to_dict()),
        "mode": mode,
        **(
            {f"Decoder.{k}": v for k, v in dataclasses.asdict(decoder).items()}
            if mode == "predict"
            else {"max_target_length": max_target_length}
        ),
        "decoder_prefix": decoder_prefix or None,
        "choices": choices,
        "max_input_length": max_input_length,
    }
    records = iter(source)
    out = text_io.open_output(output, settings, overwrite) if together.first() else None
    lines, errors = together.from_first("done", lambda: _skip_done(out, records, source.path, output))
    if out is None:
        collections.deque(itertools.islice(records, lines), maxlen=0)
    if lines:
        _say(f"infer: going on after line {lines:,}")

    # 4. Window by window.
    window = batch_size * (1 if source.path == text_io.STANDARD else WINDOW)  # a pipe's reader is waiting
    progress = _Progress(source, lines)
    while chunk := list(itertools.islice(records, window)):
        together.doing(f"line {lines + 1}")
        written = worker(chunk, first_line=lines)
        if out is not None:
            out.write(written)
        lines += len(written)
        errors += sum("error" in record for record in written)
        progress(lines)
    if out is not None:
        out.finish()
    _say(f"infer: {lines:,} lines -> {output}" + (f", {errors:,} of them with an error" if errors else ""))
    return errors


def _skip_done(out, records, path: str, output: str) -> tuple[int, int]:
    """Takes the records that an earlier run has answered; how many, and how many of them with an error.

    Raises:
      UserError: they are not those that it answered.
    """
    lines = errors = 0
    for before in out.done():
        record = next(records, None)
        if record is None or not _made_from(before, record):
            raise UserError(
                f"line {lines + 1} of {path} is not what {output}.partial was made from: start anew with "
                "infer.overwrite=True, or name another output"
            )
        lines += 1
        errors += "error" in before
    return lines, errors


# At the top of the module, so that a second call of the job in one process compiles nothing again. Tracing reads the
# rules of the partitioner in force, which jit does not see: they are an argument to be part of the key.
_STATIC = ("model", "eos_id", "decoder", "rules")


@functools.partial(jax.jit, static_argnames=_STATIC)
def _predict(params, inputs, row_ids, prefix, *, model, eos_id, decoder, rules):
    del rules
    return decoder(model, params, inputs, eos_id, row_ids, prefix)


@functools.partial(jax.jit, static_argnames=_STATIC)
def _score(params, inputs, targets, *, model, eos_id, decoder, rules):
    del eos_id, decoder, rules
    start = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
    batch = {"encoder_input_tokens": inputs, "decoder_input_tokens": start, "decoder_target_tokens": targets}
    return decoding.score(model, params, batch)


@functools.partial(jax.jit, static_argnames=_STATIC)
def _rank(params, inputs, choices, *, model, eos_id, decoder, rules):
    del eos_id, decoder, rules
    return decoding.rank(model, params, inputs, choices)


@dataclasses.dataclass
class _Row:
    """A record on its way through the model. `index` is its place in the window."""

    index: int
    inputs: list[int]
    targets: list[list[int]]  # the target, or the choices
    truncated: bool


class _Worker:
    """Turns a window of records into output records, in the same order."""

    def __init__(
        self,
        model,
        params,
        vocabulary,
        decoder,
        partitioner,
        mode,
        batch_size,
        max_input_length,
        max_target_length,
        prefix,
        choices,
    ):
        self.params, self.vocabulary, self.partitioner, self.mode = params, vocabulary, partitioner, mode
        self.batch_size = batch_size
        self.max_input_length, self.max_target_length = max_input_length, max_target_length
        self.choices = choices
        self._prefix = None
        if prefix:
            self._prefix = place(np.tile(np.array(prefix, np.int32), (batch_size, 1)), partitioner.batch)
        # What the programs depend on besides their arrays.
        self._static = {
            "model": model,
            "eos_id": vocabulary.eos_id,
            "decoder": decoder,
            "rules": repr(partitioner.rules),
        }

    def __call__(self, records: list[text_io.Record], first_line: int) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = [{}] * len(records)
        rows = []
        for index, record in enumerate(records):
            try:
                rows.append(self._row(index, record))
            except _Unusable as e:
                out[index] = {"input": record.input, "error": str(e)}
        # Neighbours in length share a batch, so that little of it is padding.
        rows.sort(key=lambda row: (len(row.targets), max(map(len, row.targets), default=0), len(row.inputs)))
        batches = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        with self.partitioner.activate():
            results = [self._start(batch, first_line) for batch in batches]  # all are queued before one is waited for
        for batch, result in zip(batches, results, strict=True):
            ids, scores = fetch(result)
            ids = [None] * len(batch) if ids is None else ids[: len(batch)].tolist()
            for row, row_ids, score in zip(batch, ids, scores.tolist(), strict=False):
                out[row.index] = self._finished(records[row.index], row, row_ids, score)
        return out

    def _row(self, index: int, record: text_io.Record) -> _Row:
        if record.error is not None:
            raise _Unusable(record.error)
        inputs, cut = self._ids(record.input, self.max_input_length)
        texts = {"predict": (), "score": (record.target,), "rank": self.choices or record.choices}[self.mode]
        targets = [self._ids(text, self.max_target_length) for text in texts]
        return _Row(index, inputs, [ids for ids, _ in targets], cut or any(c for _, c in targets))

    def _ids(self, text: str, max_length: int) -> tuple[list[int], bool]:
        """Ids with EOS, at most `max_length` of them, and whether that took a cut."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as e:
            raise _Unusable(f"a lone surrogate at character {e.start + 1}") from e
        ids = self.vocabulary.encode(text)
        return [*ids[: max_length - 1], self.vocabulary.eos_id], len(ids) > max_length - 1

    def _start(self, batch: list[_Row], first_line: int):
        """Queues a batch on the devices; (ids or None, scores), of arrays that may still be on their way."""
        inputs = self._padded([row.inputs for row in batch], self.max_input_length)
        if self.mode == "score":
            targets = self._padded([row.targets[0] for row in batch], self.max_target_length)
            return None, _score(self.params, inputs, targets, **self._static)
        if self.mode == "rank":
            return None, _rank(self.params, inputs, self._padded_choices(batch), **self._static)
        # A row is known by its line, so that sampling draws the same for it in any batch.
        places = [first_line + row.index for row in batch]
        places = np.array(places + [0] * (self.batch_size - len(batch)), np.int32)
        return _predict(self.params, inputs, place(places, self.partitioner.batch), self._prefix, **self._static)

    def _padded(self, rows: list[list[int]], max_length: int) -> jax.Array:
        """int32 [batch_size, n]: filled with empty rows, and n one of few lengths, so that few programs compile."""
        array = np.zeros((self.batch_size, bucket(max(map(len, rows)), max_length)), np.int32)
        for i, row in enumerate(rows):
            array[i, : len(row)] = row
        return place(array, self.partitioner.batch)

    def _padded_choices(self, batch: list[_Row]) -> jax.Array:
        """int32 [batch_size, c, t]: c and t powers of two, or c what all lines have. Every position costs a step."""
        c = len(self.choices) if self.choices else bucket(max(len(row.targets) for row in batch), None, 1)
        t = bucket(max(len(ids) for row in batch for ids in row.targets), self.max_target_length, 1)
        array = np.zeros((self.batch_size, c, t), np.int32)
        for i, row in enumerate(batch):
            for j, ids in enumerate(row.targets):
                array[i, j, : len(ids)] = ids
        return place(array, self.partitioner.batch)

    def _finished(
        self, record: text_io.Record, row: _Row, ids: list | None, score: float | list[float]
    ) -> dict[str, Any]:
        """The output; ids and score are lists of several where a row has several sequences or choices."""
        scores = score if isinstance(score, list) else [score]
        if self.mode == "rank":
            scores = scores[: len(row.targets)]
        if not all(map(math.isfinite, scores)):
            return {"input": record.input, "error": f"the score is {scores[0]}: the weights or dtype are unsound"}
        out: dict[str, Any] = {"input": record.input}
        if self.mode == "score":
            out |= {"target": record.target, "score": score}
        elif self.mode == "rank":
            out |= {"choices": list(record.choices)} if record.choices else {}
            best = max(range(len(scores)), key=scores.__getitem__)
            out |= {"prediction": (self.choices or record.choices)[best], "score": scores[best], "scores": scores}
        elif isinstance(score, list):
            # Beam search can find fewer than were asked for.
            out["predictions"] = [
                {"text": self.vocabulary.decode(i), "score": s} for i, s in zip(ids, scores, strict=True) if s > EMPTY
            ]
        else:
            out |= {"prediction": self.vocabulary.decode(ids), "score": score}
        if row.truncated:
            out["truncated"] = True
        return out


class _Unusable(Exception):
    """A record that cannot go through the model; says why."""


class _Progress:
    """A line on stderr now and then: how far, how fast."""

    def __init__(self, source: text_io.TextInput, lines: int):
        self._source, self._first, self._start = source, lines, time.monotonic()
        self._last = self._start

    def __call__(self, lines: int) -> None:
        now = time.monotonic()
        if now - self._last < 1.0:
            return
        self._last = now
        fraction = self._source.fraction
        _say(
            f"infer: {lines:,} lines"
            + ("" if fraction is None else f" ({fraction:.0%})")
            + f", {(lines - self._first) / (now - self._start):.1f} lines/s"
        )


def bucket(length: int, longest: int | None, shortest: int = SHORTEST) -> int:
    """The length to pad to: a power of two of at least `shortest`, or `longest` where that is less."""
    power = max(shortest, 1 << (length - 1).bit_length())
    return power if longest is None else min(longest, power)


def _made_from(out: dict[str, Any], record: text_io.Record) -> bool:
    """Whether an output record belongs to an input record (those with errors do not name the target)."""
    return (
        out["input"] == record.input
        and out.get("target", record.target) == record.target
        and tuple(out.get("choices", record.choices or ())) == (record.choices or ())
    )


def _digest(d: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(d, sort_keys=True).encode()).hexdigest()[:16]


def _say(line: str) -> None:
    if together.first():
        print(line, file=sys.stderr, flush=True)
