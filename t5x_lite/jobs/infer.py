"""The model's answers to a file of inputs, or its scores for given answers.

The path of a line: text → ids, cut to length → batches of similar length → a compiled program for each length →
text, put back into the order of the input. Nothing here needs TensorFlow or a task: the checkpoint carries the
vocabulary.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import sys
import time
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from t5x_lite import checkpoints, configuration, decoding, text_io, vocabularies
from t5x_lite.errors import UserError
from t5x_lite.partitioning import MeshConfig

WINDOW = 16  # batches that are sorted by length together, and written together
SHORTEST = 16  # tokens; shorter inputs are padded to this


@gin.configurable(module="t5x_lite")
def infer(
    checkpoint: str = gin.REQUIRED,
    input: str = gin.REQUIRED,
    output: str = gin.REQUIRED,
    mode: str = "predict",
    decoder: decoding.Decoder | None = None,
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

    `{"input", "prediction", "score"}`, or in mode "score" `{"input", "target", "score"}`; the score is the sum of the
    tokens' natural-log probabilities, EOS included. `"truncated": true` marks text that was cut to its maximal length.
    A line that cannot be understood gives `{"input", "error"}` and the job goes on.

    A job that was killed goes on where it stopped when it is run again in the same way; an input that has changed in
    the lines already done is refused.

    Args:
      checkpoint: MODEL_DIR, its `checkpoints` folder (the newest step), one step's folder, or a checkpoint of another
        system (see `convert`).
      input: .txt, .tsv or .jsonl file, or `-` for stdin.
      output: file to make, or `-` for stdout, which cannot be resumed.
      mode: "predict" or "score".
      decoder: how to decode; by default `Decoder()`, with its bindings.
      batch_size: lines at a time. Results depend on it by rounding errors at most.
      max_input_length, max_target_length: tokens, EOS included; targets are read in mode "score".
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
    if mode not in ("predict", "score"):
        raise UserError(f'infer.mode must be "predict" or "score", not {mode!r}')
    for name, value, least in (("batch_size", batch_size, 1), ("max_input_length", max_input_length, 2),
                               ("max_target_length", max_target_length, 2)):
        if value < least:
            raise UserError(f"infer.{name} must be at least {least}, not {value!r}")
    if jax.process_count() > 1:
        raise UserError(f"infer runs in one process, not {jax.process_count()}: give each process its own input")
    decoder = decoder or decoding.Decoder()
    partitioner = (mesh or MeshConfig()).build()
    if batch_size % partitioner.batch_shards:
        raise UserError(f"infer.batch_size={batch_size} cannot be divided over {partitioner.batch_shards} devices: "
                        "make it a multiple, or change Mesh.shape")
    source = text_io.TextInput(input, input_format, input_field, target_field, with_target=mode == "score")
    if text_io.STANDARD not in (source.path, os.fspath(output)) and \
            epath.Path(input).resolve() == epath.Path(output).resolve():
        raise UserError(f"infer.output is the input {input}: name another")
    configuration.check_all_read()

    # 2. The model.
    model, params, meta = checkpoints.load_for_inference(checkpoint)
    if vocabulary is None:
        if not meta.get("vocabulary"):
            raise UserError(f"{checkpoint} carries no vocabulary: set infer.vocabulary=@SentencePieceVocabulary() and "
                            "SentencePieceVocabulary.path")
        vocabulary = vocabularies.from_dict(meta["vocabulary"])
    if vocabulary.vocab_size > model.config.vocab_size:
        raise UserError(f"the vocabulary has {vocabulary.vocab_size} ids, but the model of {checkpoint} only "
                        f"{model.config.vocab_size}: infer.vocabulary must be the one it was trained with")
    params = jax.device_put(params, partitioner.tree(model.abstract_params(), model.logical_axes()))
    if dry_run:
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        print(f"{partitioner.describe()}\n{checkpoint}, step {meta['step']}: {count:,} parameters\n{vocabulary!r}\n"
              f"{mode} {source.path} ({source.format}) -> {output}\n{decoder}")
        return 0
    worker = _Worker(model, params, vocabulary, decoder, partitioner, mode, batch_size,
                     max_input_length, max_target_length)

    # 3. Where an earlier run stopped.
    out = text_io.open_output(output, settings={
        "checkpoint": str(checkpoint),
        "step": meta["step"],
        "vocabulary": _digest(vocabulary.to_dict()),
        "mode": mode,
        **({f"Decoder.{k}": v for k, v in dataclasses.asdict(decoder).items()} if mode == "predict" else
           {"max_target_length": max_target_length}),
        "max_input_length": max_input_length,
    }, overwrite=overwrite)
    records = iter(source)
    lines = errors = 0
    for before in out.done():
        record = next(records, None)
        if record is None or not _made_from(before, record):
            raise UserError(f"line {lines + 1} of {source.path} is not what {output}.partial was made from: "
                            "start anew with infer.overwrite=True, or name another output")
        lines += 1
        errors += "error" in before
    if lines:
        _say(f"infer: going on after line {lines:,}")

    # 4. Window by window.
    window = batch_size * (1 if source.path == text_io.STANDARD else WINDOW)  # a pipe's reader is waiting
    progress = _Progress(source, lines)
    while chunk := list(itertools.islice(records, window)):
        written = worker(chunk, first_line=lines)
        out.write(written)
        lines += len(written)
        errors += sum("error" in record for record in written)
        progress(lines)
    out.finish()
    _say(f"infer: {lines:,} lines -> {output}" + (f", {errors:,} of them with an error" if errors else ""))
    return errors


# At the top of the module, so that a second call of the job in one process compiles nothing again. Tracing reads the
# rules of the partitioner in force, which jit does not see: they are an argument to be part of the key.
_STATIC = ("model", "eos_id", "decoder", "rules")


@functools.partial(jax.jit, static_argnames=_STATIC)
def _predict(params, inputs, row_ids, *, model, eos_id, decoder, rules):
    del rules
    return decoder(model, params, inputs, eos_id, row_ids)


@functools.partial(jax.jit, static_argnames=_STATIC)
def _score(params, inputs, targets, *, model, eos_id, decoder, rules):
    del eos_id, decoder, rules
    start = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
    batch = {"encoder_input_tokens": inputs, "decoder_input_tokens": start, "decoder_target_tokens": targets}
    return decoding.score(model, params, batch)


@dataclasses.dataclass
class _Row:
    """A record on its way through the model. `place` is its index in the window."""

    place: int
    inputs: list[int]
    targets: list[int]
    truncated: bool


class _Worker:
    """Turns a window of records into output records, in the same order."""

    def __init__(self, model, params, vocabulary, decoder, partitioner, mode, batch_size, max_input_length,
                 max_target_length):
        self.params, self.vocabulary, self.partitioner, self.mode = params, vocabulary, partitioner, mode
        self.batch_size = batch_size
        self.max_input_length, self.max_target_length = max_input_length, max_target_length
        # What the programs depend on besides their arrays.
        self._static = {"model": model, "eos_id": vocabulary.eos_id, "decoder": decoder,
                        "rules": repr(partitioner.rules)}

    def __call__(self, records: list[text_io.Record], first_line: int) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = [{}] * len(records)
        rows = []
        for place, record in enumerate(records):
            try:
                rows.append(self._row(place, record))
            except _Unusable as e:
                out[place] = {"input": record.input, "error": str(e)}
        # Neighbours in length share a batch, so that little of it is padding.
        rows.sort(key=lambda row: (len(row.targets), len(row.inputs)))
        batches = [rows[i:i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        with self.partitioner.activate():
            results = [self._start(batch, first_line) for batch in batches]  # all are queued before one is waited for
        for batch, (ids, scores) in zip(batches, results, strict=True):
            ids = [None] * len(batch) if ids is None else np.asarray(ids)[:len(batch)].tolist()
            for row, row_ids, score in zip(batch, ids, np.asarray(scores).tolist(), strict=False):
                out[row.place] = self._finished(records[row.place], row, row_ids, score)
        return out

    def _row(self, place: int, record: text_io.Record) -> _Row:
        if record.error is not None:
            raise _Unusable(record.error)
        inputs, cut = self._ids(record.input, self.max_input_length)
        targets, target_cut = self._ids(record.target, self.max_target_length) if self.mode == "score" else ([], False)
        return _Row(place, inputs, targets, cut or target_cut)

    def _ids(self, text: str, max_length: int) -> tuple[list[int], bool]:
        """Ids with EOS, at most `max_length` of them, and whether that took a cut."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as e:
            raise _Unusable(f"a lone surrogate at character {e.start + 1}") from e
        ids = self.vocabulary.encode(text)
        return [*ids[:max_length - 1], self.vocabulary.eos_id], len(ids) > max_length - 1

    def _start(self, batch: list[_Row], first_line: int):
        """Queues a batch on the devices; (ids or None, scores), of arrays that may still be on their way."""
        inputs = self._padded([row.inputs for row in batch], self.max_input_length)
        if self.mode == "score":
            targets = self._padded([row.targets for row in batch], self.max_target_length)
            return None, _score(self.params, inputs, targets, **self._static)
        # A row is known by its line, so that sampling draws the same for it in any batch.
        places = [first_line + row.place for row in batch]
        places = np.array(places + [0] * (self.batch_size - len(batch)), np.int32)
        return _predict(self.params, inputs, jax.device_put(places, self.partitioner.batch), **self._static)

    def _padded(self, rows: list[list[int]], max_length: int) -> jax.Array:
        """int32 [batch_size, n]: filled with empty rows, and n one of few lengths, so that few programs compile."""
        array = np.zeros((self.batch_size, bucket(max(map(len, rows)), max_length)), np.int32)
        for i, row in enumerate(rows):
            array[i, :len(row)] = row
        return jax.device_put(array, self.partitioner.batch)

    def _finished(self, record: text_io.Record, row: _Row, ids: list[int] | None, score: float) -> dict[str, Any]:
        if not math.isfinite(score):
            return {"input": record.input, "error": f"the score is {score}: the weights or dtype are unsound"}
        out = {"input": record.input}
        if self.mode == "score":
            out["target"] = record.target
        else:
            out["prediction"] = self.vocabulary.decode(ids)
        out["score"] = score
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
        _say(f"infer: {lines:,} lines" + ("" if fraction is None else f" ({fraction:.0%})")
             + f", {(lines - self._first) / (now - self._start):.1f} lines/s")


def bucket(length: int, longest: int) -> int:
    """The length to pad to: a power of two of at least `SHORTEST`, or `longest` where that is less."""
    return min(longest, max(SHORTEST, 1 << (length - 1).bit_length()))


def _made_from(out: dict[str, Any], record: text_io.Record) -> bool:
    """Whether an output record belongs to an input record (those with errors do not name the target)."""
    return out["input"] == record.input and out.get("target", record.target) == record.target


def _digest(d: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(d, sort_keys=True).encode()).hexdigest()[:16]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
