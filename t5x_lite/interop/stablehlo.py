"""Serving without this library: scoring and decoding as serialized StableHLO (`jax.export`), and the weights beside.

What it takes to run is jax, numpy and safetensors; `README.md` in the folder shows how. Programs are for CPU, GPU and
TPU; the batch may have any size, the lengths are those given here.
"""

import dataclasses
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
from etils import epath
from jax import export

from t5x_lite import decoding, vocabularies
from t5x_lite.errors import UserError
from t5x_lite.interop import safetensors_files
from t5x_lite.interop import weights as w
from t5x_lite.models import Model

PLATFORMS = ("cpu", "cuda", "tpu")

README = """\
# A T5 model as StableHLO

Run it with jax, numpy and safetensors alone:

    import jax, numpy as np
    from jax import export
    from safetensors.numpy import load_file

    params = load_file("{weights}")
    predict = export.deserialize(bytearray(open("predict.stablehlo", "rb").read())).call
    score = export.deserialize(bytearray(open("score.stablehlo", "rb").read())).call
    ids, scores = predict(params, inputs)   # int32 [b, {source}] -> int32 [b, {target}], float32 [b]
    scores = score(params, inputs, targets)  # int32 [b, {source}], int32 [b, {length}] -> float32 [b]

Rows end with id {eos} (end of text) and are filled up with 0; any number of rows b. Scores are sums of natural-log
probabilities over a row's tokens, the end of text included. Decoding is {decoding}. `vocabulary.json` says how
ids are made of text{spiece}.
"""


def write(
    folder: epath.Path, weights: w.Weights, *, input_length: int, target_length: int, decoder: decoding.Decoder
) -> None:
    """Writes predict.stablehlo, score.stablehlo, the parameters, the vocabulary and a README.

    Args:
      input_length, target_length: of the rows of `inputs`, and of `targets` in scoring.
      decoder: how `predict` decodes; its `max_length` is the length of what it returns.

    Raises:
      UserError: a length below 1.
    """
    for name, value in (("input_length", input_length), ("target_length", target_length)):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"convert.{name} must be a whole number of at least 1, not {value!r}")
    vocabulary = vocabularies.from_dict(weights.vocabulary) if weights.vocabulary else None
    eos_id = vocabulary.eos_id if vocabulary else 1
    model = Model(weights.config)
    params = w.stacked(weights.params) if weights.config.scan_layers else weights.params

    def predict(params, inputs):
        return decoder(model, w.nested(params), inputs, eos_id)

    def score(params, inputs, targets):
        start = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
        batch = {"encoder_input_tokens": inputs, "decoder_input_tokens": start, "decoder_target_tokens": targets}
        return decoding.score(model, w.nested(params), batch)

    folder.mkdir(parents=True, exist_ok=True)
    abstract = {path: jax.ShapeDtypeStruct(tensor.shape, tensor.dtype) for path, tensor in params.items()}
    rows = export.symbolic_shape("b")[0]
    inputs = jax.ShapeDtypeStruct((rows, input_length), jnp.int32)
    targets = jax.ShapeDtypeStruct((rows, target_length), jnp.int32)
    _write_program(folder / "predict.stablehlo", predict, abstract, inputs)
    _write_program(folder / "score.stablehlo", score, abstract, inputs, targets)
    safetensors_files.write(folder, params, max_shard_bytes=2**63)
    description = {**(weights.vocabulary or {"kind": None}), "eos_id": eos_id, "pad_id": vocabularies.PAD_ID}
    description.pop("model_proto", None)
    (folder / "vocabulary.json").write_text(json.dumps(description, indent=2) + "\n")
    if isinstance(vocabulary, vocabularies.SentencePieceVocabulary):
        (folder / "vocabulary.model").write_bytes(vocabulary.model_proto)
    (folder / "model.json").write_text(json.dumps(weights.config.to_dict(), indent=2) + "\n")
    (folder / "README.md").write_text(
        README.format(
            weights=safetensors_files.NAME,
            source=input_length,
            target=decoder.max_length,
            length=target_length,
            eos=eos_id,
            decoding=", ".join(f"{f.name} {getattr(decoder, f.name)!r}" for f in dataclasses.fields(decoder)),
            spiece=" and `vocabulary.model` is the sentencepiece model"
            if (folder / "vocabulary.model").exists()
            else "",
        )
    )


def _write_program(file: epath.Path, function: Callable, *arguments) -> None:
    exported = export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
    file.write_bytes(bytes(exported.serialize()))
