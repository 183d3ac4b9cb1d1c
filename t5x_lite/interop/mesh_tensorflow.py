"""Checkpoints of T5 in Mesh TensorFlow, as Google published the first models: `model.ckpt-N` and operative_config.gin.

Names after T5X's own importer (https://github.com/google-research/t5x/blob/main/t5x/checkpoint_importer.py); those of
the shared embedding, the attention, norms, feed-forward blocks and head also stand in Hugging Face's
`load_tf_weights_in_t5`. Kernels lie as ours do, so nothing is transposed. Not proven on a published checkpoint: models
with a relative position bias in each layer, and the layout of the optimizer's slots, which are therefore left out.
"""

import ast
import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from t5x_lite.errors import UserError
from t5x_lite.interop import shapes
from t5x_lite.interop import weights as w
from t5x_lite.models import T5Config

PREFIX = re.compile(r"(?P<prefix>model\.ckpt-(?P<step>\d+))\.index")
OPERATIVE_CONFIG = "operative_config.gin"

# Parts of a block's sublayers, which are numbered: our norm's name by (stack, number).
NORMS = {
    ("encoder", 0): "pre_attention_layer_norm",
    ("encoder", 1): "pre_mlp_layer_norm",
    ("decoder", 0): "pre_self_attention_layer_norm",
    ("decoder", 1): "pre_cross_attention_layer_norm",
    ("decoder", 2): "pre_mlp_layer_norm",
}
ATTENTIONS = {
    ("encoder", "SelfAttention"): "attention",
    ("decoder", "SelfAttention"): "self_attention",
    ("decoder", "EncDecAttention"): "encoder_decoder_attention",
}
KERNELS = {"q": "query", "k": "key", "v": "value", "o": "out"}

_LAYER = re.compile(r"(?P<stack>encoder|decoder)/block_(?P<i>\d+)/layer_(?P<n>\d+)/(?P<part>.+)")
# The optimizer's slots, counters, and a table of published models that nothing reads.
_SKIPPED = re.compile(r"global_step|.*_slot_\w+|.*/adam_[mv]|.*/EncDecAttention/relative_attention_bias")


def steps(folder: epath.Path) -> dict[int, str]:
    """Step -> prefix of the checkpoints in a folder."""
    matches = [match for at in folder.iterdir() if (match := PREFIX.fullmatch(at.name))] if folder.is_dir() else []
    matches.sort(key=lambda match: int(match["step"]))
    return {int(match["step"]): str(folder / match["prefix"]) for match in matches}


def read(prefix, *, model: T5Config | None = None, rules: w.Rules = ()) -> w.Weights:
    """One checkpoint, by its prefix `…/model.ckpt-1000000`.

    Args:
      model: instead of what the shapes and operative_config.gin tell.
      rules: `weights.apply_rules` on the variables' names, of which slots and counters are left out first.

    Raises:
      UserError: TensorFlow is not installed, or variables that do not make an encoder-decoder T5.
    """
    try:
        import tensorflow as tf
    except ImportError as e:
        raise UserError(
            f"{prefix} can only be read with TensorFlow, which is not installed: pip install "
            "tensorflow, or convert it on a machine that has it"
        ) from e
    try:
        reader = tf.train.load_checkpoint(str(prefix))
    except (tf.errors.OpError, ValueError) as e:
        raise UserError(f"{prefix} cannot be read as a TensorFlow checkpoint: {str(e).splitlines()[0]}") from e
    kinds = reader.get_variable_to_dtype_map()
    tensors = {
        name: w.Tensor(tuple(shape), np.dtype(kinds[name].as_numpy_dtype), functools.partial(reader.get_tensor, name))
        for name, shape in sorted(reader.get_variable_to_shape_map().items())
        if not _SKIPPED.fullmatch(name)
    }
    tensors = w.apply_rules(tensors, rules)
    paths = {name: our_path(name) for name in tensors}
    if unknown := [name for name, path in paths.items() if path is None]:
        raise UserError(
            f"{prefix} has variables that no encoder-decoder T5 has: {', '.join(unknown[:40])}; drop them "
            "with convert.assignment_map"
        )
    params = {paths[name]: tensor for name, tensor in tensors.items()}
    params = _shared_bias(params)
    folder = epath.Path(prefix).parent
    config = model or T5Config.from_dict({**shapes.config_of(params, str(prefix)).to_dict(), **_operative(folder)})
    step = int(str(prefix).rpartition("-")[2]) if str(prefix).rpartition("-")[2].isdigit() else 0
    return w.Weights(config, params, step).cast(w.common_dtype(params.values()))


def our_path(name: str) -> str | None:
    """Our path, layers apart, of a variable; None for one that no T5 has."""
    if name == "shared/embedding":
        return "token_embedder/embedding"
    if name == "decoder/logits/kernel":
        return "decoder/logits_dense/kernel"
    # Early models call every norm layer_norm and the last final_layer_norm, later ones (mT5) rms_norm.
    if match := re.fullmatch(r"(encoder|decoder)/(?:final_layer_norm|rms_norm)/scale", name):
        return f"{match[1]}/{match[1]}_norm/scale"
    match = _LAYER.fullmatch(name)
    if match is None:
        return None
    stack, layer, part = match["stack"], f"{match['stack']}/layers_{int(match['i'])}", match["part"]
    if part in ("layer_norm/scale", "rms_norm/scale"):
        norm = NORMS.get((stack, int(match["n"])))
        return norm and f"{layer}/{norm}/scale"
    if part == "SelfAttention/relative_attention_bias":
        return f"{layer}/relpos_bias/rel_embedding"
    if kernel := re.fullmatch(r"(\w+)/([qkvo])", part):
        attention = ATTENTIONS.get((stack, kernel[1]))
        return attention and f"{layer}/{attention}/{KERNELS[kernel[2]]}/kernel"
    if kernel := re.fullmatch(r"DenseReluDense/(wi|wi_0|wi_1|wo)/kernel", part):
        return f"{layer}/mlp/{kernel[1]}/kernel"
    return None


def _shared_bias(params: Mapping[str, w.Tensor]) -> dict[str, w.Tensor]:
    """A table in the first layer alone is the whole stack's."""
    out = dict(params)
    for stack in ("encoder", "decoder"):
        own = [path for path in params if path.startswith(f"{stack}/layers_") and "/relpos_bias/" in path]
        if own == [f"{stack}/layers_0/relpos_bias/rel_embedding"]:
            out[f"{stack}/relpos_bias/rel_embedding"] = out.pop(own[0])
    return out


def _operative(folder: epath.Path) -> dict[str, Any]:
    """What the operative configuration says beyond the shapes: the feed-forward block's activations."""
    file = folder / OPERATIVE_CONFIG
    if not file.exists():
        return {}
    text = re.sub(r"\\\n\s*", "", file.read_text())
    found = re.search(r"^[\w./]*DenseReluDense\.activation\s*=\s*(.+)$", text, re.MULTILINE)
    if found is None:
        return {}
    try:
        names = ast.literal_eval(found[1])
    except (ValueError, SyntaxError):
        raise UserError(
            f"{file}: DenseReluDense.activation = {found[1]} is no list of names; set convert.model"
        ) from None
    return {"mlp_activations": [names] if isinstance(names, str) else list(names)}
