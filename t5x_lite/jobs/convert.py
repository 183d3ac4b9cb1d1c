"""Checkpoints in from and out to other systems, and between forms of this project's own.

source ── detected by content ── tensors by our names, read one at a time ── checked ── target, renamed into place
"""

import dataclasses
import math
import time

import gin
from t5x_lite import configuration, console, decoding, monitor, run_folder, vocabularies
from t5x_lite.errors import UserError
from t5x_lite.interop import formats, hugging_face_folder, native, t5x
from t5x_lite.interop import weights as w
from t5x_lite.models import T5Config
from t5x_lite.models.config import DTYPES

FORMATS = ("t5x_lite", "hugging_face", "t5x", "stablehlo")


@gin.configurable(module="t5x_lite")
def convert(
    source: str = gin.REQUIRED,
    target: str = gin.REQUIRED,
    format: str = "t5x_lite",
    step: int | None = None,
    dtype: str | None = None,
    scan_layers: bool | None = None,
    optimizer_state: bool | None = None,
    vocabulary: vocabularies.Vocabulary | None = None,
    model: T5Config | None = None,
    assignment_map: w.Rules = (),
    max_shard_bytes: int = hugging_face_folder.MAX_SHARD_BYTES,
    input_length: int = 512,
    target_length: int = 128,
    decoder: decoding.Decoder | None = None,
    dry_run: bool = False,
) -> int:
    """Reads a checkpoint of any known system and writes it as `format`, a tensor at a time.

    Read are this project's own, Hugging Face's (T5, mT5, ByT5, Flan-T5, umT5), T5X's, and Mesh TensorFlow's; which one
    it is, its content tells. Nothing appears at `target` before everything is written.

    Args:
      source: a MODEL_DIR or a step in it; a Hugging Face folder; a T5X model_dir or `checkpoint_N`; a Mesh TensorFlow
        folder or `model.ckpt-N`.
      target: a folder that does not exist yet: a MODEL_DIR, or a Hugging Face, T5X or StableHLO folder.
      format: "t5x_lite", "hugging_face", "t5x" or "stablehlo".
      step: which of several checkpoints; the newest by default.
      dtype: of the parameters written; by default the widest that the source has.
      scan_layers: layers stacked or apart, in "t5x_lite" and "stablehlo"; by default as in the source, or stacked.
      optimizer_state: take it along, as this project's own checkpoints and T5X's Adafactor can; by default from the
        former only.
      vocabulary: for a source that has none (T5X, Mesh TensorFlow), or instead of its own.
      model: what a source does not say of itself, or instead of what it says.
      assignment_map: pairs (regular expression, replacement or None), tried in order on each tensor's name in the
        source; the first that matches the whole name renames the tensor, or drops it.
      max_shard_bytes: of "hugging_face" files.
      input_length, target_length: of "stablehlo" programs, in tokens.
      decoder: of "stablehlo"; by default `Decoder()`, with its bindings.
      dry_run: read the names and shapes, say what would be written, and stop.

    Returns:
      0.

    Raises:
      UserError: a source that is none, tensors that are missing, unknown or of another shape (each named), a target
        that exists, or a format that cannot hold the model.
    """
    # 1. What was asked.
    if format not in FORMATS:
        raise UserError(f"convert.format must be one of {', '.join(FORMATS)}, not {format!r}")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"convert.dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    if not isinstance(max_shard_bytes, int) or max_shard_bytes < 1:
        raise UserError(f"convert.max_shard_bytes must be a whole number of at least 1, not {max_shard_bytes!r}")
    decoder = decoder or decoding.Decoder()
    configuration.check_all_read()
    folder = run_folder.new_folder(target, "convert.target")

    # 2. Names and shapes; no array is read yet.
    started = time.monotonic()
    kind, _ = formats.detect(source, step)
    if optimizer_state is None:
        optimizer_state = kind == formats.NATIVE
    if optimizer_state and kind not in (formats.NATIVE, formats.T5X):
        raise UserError(
            f"{source} ({kind}) has no optimizer state that can be converted: leave out convert.optimizer_state"
        )
    kind, weights = formats.read(
        source,
        step=step,
        model=model,
        rules=assignment_map,
        vocabulary=vocabulary,
        optimizer_state=optimizer_state and format in ("t5x_lite", "t5x"),
    )
    if scan_layers is not None:
        weights = dataclasses.replace(weights, config=dataclasses.replace(weights.config, scan_layers=scan_layers))
    if dtype is not None:
        weights = weights.cast(dtype)
    count = sum(math.prod(tensor.shape) for tensor in weights.params.values())
    state = "" if weights.opt_state is None else " and the optimizer's state"
    console.say(f"convert: {source} ({kind}), step {weights.step}: {count:,} parameters{state}")
    if weights.vocabulary is None:
        console.say(
            "convert: note: the source has no vocabulary, so the target has none; convert.vocabulary gives it one"
        )
    if dry_run:
        console.say(f"convert: would write {target} ({format}, {weights.config.param_dtype})")
        return 0

    # 3. Beside the target, then into its place.
    tensors = len(weights.params) + len(weights.opt_state or {})
    with run_folder.made_beside(folder) as unfinished, monitor.Progress("convert", tensors, "tensors") as progress:
        weights = weights.watched(progress.add)
        if format == "t5x_lite":
            native.write(unfinished, weights)
        elif format == "hugging_face":
            hugging_face_folder.write(unfinished, weights, max_shard_bytes)
        elif format == "t5x":
            t5x.write(unfinished, weights)
        else:
            from t5x_lite.interop import stablehlo  # the only one that needs jax.export

            stablehlo.write(
                unfinished, weights, input_length=input_length, target_length=target_length, decoder=decoder
            )
    console.say(
        f"convert: wrote {target} ({format}, {weights.config.param_dtype}) in {time.monotonic() - started:.1f} s"
    )
    return 0
