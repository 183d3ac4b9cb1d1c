"""Folders of Hugging Face's transformers: config.json, the weights, and the tokenizer's files, in and out."""

import dataclasses
import functools
import json
from typing import Any

import jax.numpy as jnp
from etils import epath

from t5x_lite import vocabularies
from t5x_lite.errors import UserError
from t5x_lite.interop import hugging_face, safetensors_files
from t5x_lite.interop import weights as w
from t5x_lite.models import T5Config

CONFIG = "config.json"
TORCH = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"
TOKENIZER = "tokenizer_config.json"
SENTENCEPIECE = "spiece.model"
MAX_SHARD_BYTES = 5 * 10**9


def is_one(folder: epath.Path) -> bool:
    """Whether the folder has a `config.json` and weights in one of the forms that `transformers` writes."""
    files = (safetensors_files.NAME, safetensors_files.INDEX, TORCH, TORCH_INDEX)
    return (folder / CONFIG).exists() and any((folder / file).exists() for file in files)


def read(path, *, model: T5Config | None = None, rules: w.Rules = ()) -> w.Weights:
    """The model of a folder that `save_pretrained` wrote or a hub serves.

    Args:
      model: instead of what config.json says.
      rules: `weights.apply_rules` on the names in the files.

    Raises:
      UserError: another architecture, tensors that do not fit it, or files that cannot be read.
    """
    folder = epath.Path(path)
    values = _json(folder / CONFIG)
    config = model or hugging_face.config_from_hugging_face(values)
    tensors = safetensors_files.read(folder)
    tensors = w.apply_rules(_read_torch(folder) if tensors is None else tensors, rules)
    if model is None and values.get("model_type") in ("mt5", "umt5") and hugging_face.has_own_head(tensors):
        # transformers 5 writes tie_word_embeddings = true for every one of these, and nothing else that would tell.
        config = dataclasses.replace(config, logits_via_embedding=False)
    params = hugging_face.tensors_from_hugging_face(tensors, config)
    weights = w.Weights(config, params, vocabulary=_read_vocabulary(folder))
    return weights.cast(w.common_dtype(params.values()))


def write(folder: epath.Path, weights: w.Weights, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Writes what `T5ForConditionalGeneration.from_pretrained` (or UMT5's) and the tokenizer's classes load.

    Raises:
      UserError: a model that transformers does not have.
    """
    values = hugging_face.config_to_hugging_face(weights.config)
    tensors = hugging_face.tensors_to_hugging_face(weights.params, weights.config)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / CONFIG, values)
    tokens = {key: values[key] for key in ("pad_token_id", "eos_token_id", "decoder_start_token_id")}
    _write_json(folder / "generation_config.json", tokens)
    safetensors_files.write(folder, tensors, max_shard_bytes)
    if weights.vocabulary is not None:
        _write_vocabulary(folder, weights.vocabulary)


def _read_torch(folder: epath.Path) -> dict[str, w.Tensor]:
    """Tensors of pytorch_model.bin or its shards; nothing but weights is unpickled."""
    try:
        import torch
    except ImportError as e:
        raise UserError(
            f"{folder} has its weights in PyTorch's format only, and torch is not installed: pip install "
            f"torch, or save the model with safetensors"
        ) from e
    files = [TORCH]
    if (folder / TORCH_INDEX).exists():
        files = sorted(set(_json(folder / TORCH_INDEX)["weight_map"].values()))
    tensors: dict[str, w.Tensor] = {}
    for file in files:
        at = str(folder / file)
        try:
            try:
                state = torch.load(at, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # files of before PyTorch 1.6 cannot be mapped
                state = torch.load(at, map_location="cpu", weights_only=True)
        except Exception as e:  # torch raises pickle's, zipfile's, its own and others
            reason = (str(e).splitlines() or [""])[0]
            raise UserError(
                f"{at} cannot be read as weights only ({type(e).__name__}: {reason[:200]}): get the model "
                "as safetensors"
            ) from e
        for name, tensor in state.items():
            dtype = str(tensor.dtype).removeprefix("torch.")
            if dtype not in ("float64", "float32", "float16", "bfloat16"):
                raise UserError(
                    f"{at}: {name} is {dtype}, which is no weight that can be converted; drop it with "
                    "convert.assignment_map if it is not one"
                )
            tensors[name] = w.Tensor(tuple(tensor.shape), jnp.dtype(dtype), functools.partial(_array, tensor, torch))
    return tensors


def _array(tensor, torch):
    if tensor.dtype == torch.bfloat16:  # numpy has none of its own
        return tensor.contiguous().view(torch.int16).numpy().view(jnp.bfloat16)
    return tensor.numpy()


def _read_vocabulary(folder: epath.Path) -> dict[str, Any] | None:
    about = _json(folder / TOKENIZER) if (folder / TOKENIZER).exists() else {}
    if str(about.get("tokenizer_class", "")).startswith("ByT5"):
        return vocabularies.ByteVocabulary(about.get("extra_ids", 125)).to_dict()
    if not (folder / SENTENCEPIECE).exists():
        return None
    extra_ids = about.get("extra_ids", 100)
    return vocabularies.SentencePieceVocabulary.from_path(folder / SENTENCEPIECE, extra_ids).to_dict()


def _write_vocabulary(folder: epath.Path, described: dict[str, Any]) -> None:
    vocabulary = vocabularies.from_dict(described)
    common = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "extra_ids": vocabulary.extra_ids}
    if isinstance(vocabulary, vocabularies.ByteVocabulary):
        _write_json(folder / TOKENIZER, {"tokenizer_class": "ByT5Tokenizer", **common})
        return
    own = vocabulary.without_sentinels()
    # Their tokenizer adds the sentinels by itself, <extra_id_0> last.
    if vocabularies.SentencePieceVocabulary(own, vocabulary.extra_ids) != vocabulary:
        raise UserError(
            "transformers' T5Tokenizer knows sentinels only as the last ids, counted downwards, and this "
            "vocabulary has them elsewhere; convert.vocabulary names another"
        )
    (folder / SENTENCEPIECE).write_bytes(own)
    _write_json(folder / TOKENIZER, {"tokenizer_class": "T5Tokenizer", **common, "legacy": False})


def _json(file: epath.Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as e:
        raise UserError(f"{file} cannot be read ({type(e).__name__}: {e}): download it again") from e
    if not isinstance(values, dict):
        raise UserError(f"{file} is no JSON object: download it again")
    return values


def _write_json(file: epath.Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n")
