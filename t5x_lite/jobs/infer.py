"""The model's answers to a file of inputs, its scores for given answers, or its choice among given ones.

The lines of a window go through the model together (see `t5x_lite.inference`) and are put back into the order of the
input. Nothing here needs TensorFlow or a task: the checkpoint carries the vocabulary.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

import gin
from t5x_lite import configuration, console, decoding, ensembles, inference, monitor, text_io, together, vocabularies
from t5x_lite.errors import UserError
from t5x_lite.inference import Answer, Answerer, Row, Unusable
from t5x_lite.partitioning import MeshConfig

WINDOW = 16  # batches that are sorted by length together, and written together
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
    inference.check_batch_size(batch_size, partitioner, "infer.batch_size")
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
    inference.check_vocabulary(vocabulary, model, paths[0], "infer.vocabulary must be the one it was trained with")
    prefix = vocabulary.encode(decoder_prefix or "")
    inference.check_prefix(prefix, decoder, "infer.decoder_prefix", "Decoder.max_length")
    if dry_run:
        count = sum(leaf.size for leaf in jax.tree.leaves(params if len(paths) == 1 else params[0]))
        lines = [partitioner.describe()]
        lines += [f"{path}, step {meta['step']}: {count:,} parameters" for path, meta in zip(paths, metas, strict=True)]
        lines += [f"{vocabulary!r}\n{mode} {source.path} ({source.format}) -> {output}\n{decoder}"]
        console.show("\n".join(lines))
        return 0
    answerer = Answerer(model, params, vocabulary, partitioner, batch_size, max_input_length, max_target_length)
    worker = _Worker(answerer, mode, decoder, prefix, choices)

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
        console.say(f"infer: going on after line {lines:,}")

    # 4. Window by window.
    window = batch_size * (1 if source.path == text_io.STANDARD else WINDOW)  # a pipe's reader is waiting
    with monitor.Progress("infer", unit="lines", done=lines) as progress:
        while chunk := list(itertools.islice(records, window)):
            together.doing(f"line {lines + 1}")
            written = worker(chunk, first_line=lines)
            if out is not None:
                out.write(written)
            lines += len(written)
            errors += sum("error" in record for record in written)
            progress.at(lines, share=source.fraction)
    if out is not None:
        out.finish()
    console.say(f"infer: {lines:,} lines -> {output}" + (f", {errors:,} of them with an error" if errors else ""))
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


class _Worker:
    """Turns a window of records into output records, in the same order."""

    def __init__(self, answerer: Answerer, mode: str, decoder: decoding.Decoder, prefix, choices):
        self._answerer, self._mode, self._decoder = answerer, mode, decoder
        self._prefix, self._choices = tuple(prefix), choices

    def __call__(self, records: list[text_io.Record], first_line: int) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = [{}] * len(records)
        rows: dict[int, Row] = {}
        for place, record in enumerate(records):
            try:
                rows[place] = self._row(record, first_line + place)
            except Unusable as e:
                out[place] = {"input": record.input, "error": str(e)}
        for (place, row), answer in zip(rows.items(), self._answers(list(rows.values())), strict=True):
            out[place] = self._written(records[place], row, answer)
        return out

    def _row(self, record: text_io.Record, line: int) -> Row:
        if record.error is not None:
            raise Unusable(record.error)
        if self._mode == "predict":
            # A row is known by its line, so that sampling draws the same for it in any batch.
            return self._answerer.read(record.input, row_id=line, decoder=self._decoder, prefix=self._prefix)
        return self._answerer.read(record.input, (record.target,) if self._mode == "score" else self._given(record))

    def _answers(self, rows: list[Row]) -> list[Answer]:
        if self._mode == "rank":
            return self._answerer.rank(rows, same=self._choices is not None)
        return self._answerer.predict(rows) if self._mode == "predict" else self._answerer.score(rows)

    def _given(self, record: text_io.Record) -> tuple[str, ...]:
        return self._choices or record.choices

    def _written(self, record: text_io.Record, row: Row, answer: Answer) -> dict[str, Any]:
        if answer.error is not None:
            return {"input": record.input, "error": answer.error}
        out: dict[str, Any] = {"input": record.input}
        scores = list(answer.scores)
        if self._mode == "score":
            out |= {"target": record.target, "score": scores[0]}
        elif self._mode == "rank":
            out |= {"choices": list(record.choices)} if record.choices else {}
            best = max(range(len(scores)), key=scores.__getitem__)
            out |= {"prediction": self._given(record)[best], "score": scores[best], "scores": scores}
        elif self._decoder.num_return_sequences > 1:
            out["predictions"] = [{"text": t, "score": s} for t, s in zip(answer.texts, scores, strict=True)]
        else:
            out |= {"prediction": answer.texts[0], "score": scores[0]}
        if row.truncated:
            out["truncated"] = True
        return out


def _made_from(out: dict[str, Any], record: text_io.Record) -> bool:
    """Whether an output record belongs to an input record (those with errors do not name the target)."""
    return (
        out["input"] == record.input
        and out.get("target", record.target) == record.target
        and tuple(out.get("choices", record.choices or ())) == (record.choices or ())
    )


def _digest(d: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(d, sort_keys=True).encode()).hexdigest()[:16]
