"""The job `release`: a finished run as a folder to publish."""

import re
from typing import Any

import gin
from t5x_lite import checkpoints, configuration, console, run_folder
from t5x_lite.errors import UserError
from t5x_lite.interop import formats, hugging_face_folder
from t5x_lite.models.config import DTYPES
from t5x_lite.models.finetuning_config import METHODS
from t5x_lite.report import model_card, runs


@gin.configurable("release", module="t5x_lite")
def release(
    model_dir: str = gin.REQUIRED,
    target: str = gin.REQUIRED,
    license: str = gin.REQUIRED,
    name: str | None = None,
    step: int | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = hugging_face_folder.MAX_SHARD_BYTES,
    dry_run: bool = False,
) -> int:
    """Writes a run's model as a folder that transformers loads and a hub shows.

    It has the weights as safetensors, `config.json`, the tokenizer, the run's `config.gin`, and `README.md`, a model
    card of what the run's folder tells: data, steps, tokens, hardware, metrics, predictions.
    Nothing appears at `target` before everything is written. Look through config.gin and README.md before you publish
    them: they name folders and show texts of the data.

    Args:
      model_dir: the run.
      target: a folder that does not exist yet.
      license: of the model, as a hub names it: apache-2.0, cc-by-4.0, other, …
      name: of the model; by default that of `target`.
      step: of the checkpoint; the newest by default.
      dtype: of the weights; by default that of the run's parameters.
      max_shard_bytes: of one file of weights.
      dry_run: print the model card, and stop.

    Returns:
      0.

    Raises:
      UserError: no run or no such checkpoint, a model that transformers does not have, or a target that exists.
    """
    # 1. What was asked.
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9.+-]*", license):
        raise UserError(f"--license={license}: give a license's short name, such as apache-2.0 or cc-by-4.0")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"release.dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    folder = run_folder.new_folder(target, "release.target")
    configuration.check_all_read()
    (run,) = runs.read([model_dir])
    checkpoint = checkpoints.find_step(run.folder, step)
    meta = checkpoints.read_meta(checkpoint)
    _check_model(meta["model"])

    # 2. Names and shapes, and the card.
    _, weights = formats.read(checkpoint)
    if dtype is not None:
        weights = weights.cast(dtype)
    card = model_card.make(run, meta, weights, name=name or folder.name, license=license)
    if dry_run:
        console.show(card.rstrip())
        return 0
    if weights.vocabulary is None:
        console.say("release: note: the run has no vocabulary, so the folder has no tokenizer")

    # 3. Beside the target, then into its place.
    with run_folder.made_beside(folder) as unfinished:
        hugging_face_folder.write(unfinished, weights, max_shard_bytes)
        (unfinished / "README.md").write_text(card)
        if run.config:
            (unfinished / "config.gin").write_text(run.config)
        else:
            console.say(f"release: note: {run.folder} has no config.gin, so the folder has none")
    console.say(
        f"release: wrote step {weights.step} of {run.folder} to {target}; look through its README.md and config.gin"
    )
    return 0


def _check_model(model: dict[str, Any]) -> None:
    if model.get("architecture", "encoder_decoder") != "encoder_decoder" or model.get("shared_stacks"):
        raise UserError(
            "release: transformers' T5 has an encoder and a decoder apart; a language model or a shared stack is "
            "published as --format=t5x_lite of t5x-lite convert"
        )
    added = [method for method in METHODS if model.get(method) is not None]
    if added:
        raise UserError(
            f"release: transformers' T5 has no place for what finetuning added to the model: {', '.join(added)}"
        )
