"""Names and shapes of T5 in Hugging Face's transformers (https://huggingface.co/docs/transformers/model_doc/t5).

Their linear layers hold [output, input] and their bias tables [buckets, h], so every tensor is ours transposed, save
for the embedding. The tables below are all there is to know; numpy arrays in, numpy arrays out, no torch.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.models.config import T5Config

# Parts of a layer: our name, theirs, shape of ours (d, f, v, h as in t5x_lite.models; j = h*k, r = buckets).
ATTENTION = (
    ("query/kernel", "q", "dj"),
    ("key/kernel", "k", "dj"),
    ("value/kernel", "v", "dj"),
    ("out/kernel", "o", "jd"),
)
MLP = (("wi/kernel", "wi", "df"), ("wo/kernel", "wo", "fd"))
GATED_MLP = (("wi_0/kernel", "wi_0", "df"), ("wi_1/kernel", "wi_1", "df"), ("wo/kernel", "wo", "fd"))

# Sublayers in order, which numbers them on their side: our norm, our block, their block.
SUBLAYERS = {
    "encoder": (
        ("pre_attention_layer_norm", "attention", "SelfAttention"),
        ("pre_mlp_layer_norm", "mlp", "DenseReluDense"),
    ),
    "decoder": (
        ("pre_self_attention_layer_norm", "self_attention", "SelfAttention"),
        ("pre_cross_attention_layer_norm", "encoder_decoder_attention", "EncDecAttention"),
        ("pre_mlp_layer_norm", "mlp", "DenseReluDense"),
    ),
}

EMBEDDING = "shared.weight"
HEAD = "lm_head.weight"
EMBEDDING_ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# Published 1.0 checkpoints carry this table, a left-over of the conversion from Mesh TensorFlow that no model reads.
UNREAD = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)

# Their plain "gelu" is the exact form, which T5Config does not have; "gated-gelu" is the tanh form.
ACTIVATIONS = {
    "relu": ("relu",),
    "silu": ("silu",),
    "gated-relu": ("relu", "linear"),
    "gated-gelu": ("gelu", "linear"),
    "gated-silu": ("silu", "linear"),
}


class Parameter(NamedTuple):
    path: str  # ours, with {layers} where a layer's number may stand
    name: str  # theirs, with {i} for the layer's number
    shape: tuple[int, ...]  # ours, of one layer
    depth: int | None  # layers, None outside of them

    def names(self) -> list[str]:
        """Theirs, one for each layer."""
        return [self.name.format(i=i) for i in range(self.depth or 1)]

    def paths(self, scanned: bool) -> list[str]:
        """Ours: one where layers are stacked, otherwise one for each layer."""
        if scanned or self.depth is None:
            return [self.path.format(layers="layers")]
        return [self.path.format(layers=f"layers_{i}") for i in range(self.depth)]

    def stacked(self, scanned: bool) -> bool:
        return scanned and self.depth is not None

    def turned(self, array: np.ndarray) -> np.ndarray:
        """From one side's layout into the other's."""
        return array if self.name == EMBEDDING else array.T

    def their_shape(self) -> tuple[int, ...]:
        return self.shape if self.name == EMBEDDING else self.shape[::-1]


def parameters(config: T5Config) -> Iterator[Parameter]:
    """Every parameter of a model."""
    c = config
    sizes = {"d": c.emb_dim, "f": c.mlp_dim, "v": c.vocab_size, "h": c.num_heads, "j": c.num_heads * c.head_dim,
             "r": c.relpos_buckets}

    def parameter(path: str, name: str, letters: str, depth: int | None = None) -> Parameter:
        return Parameter(path, name, tuple(sizes[letter] for letter in letters), depth)

    mlp = GATED_MLP if len(c.mlp_activations) == 2 else MLP
    yield parameter("token_embedder/embedding", EMBEDDING, "vd")
    for stack, depth in (("encoder", c.num_encoder_layers), ("decoder", c.num_decoder_layers)):
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield parameter(f"{stack}/relpos_bias/rel_embedding", bias, "hr")
        yield parameter(f"{stack}/{stack}_norm/scale", f"{stack}.final_layer_norm.weight", "d")
        for number, (norm, ours, theirs) in enumerate(SUBLAYERS[stack]):
            path, name = f"{stack}/{{layers}}", f"{stack}.block.{{i}}.layer.{number}"
            yield parameter(f"{path}/{norm}/scale", f"{name}.layer_norm.weight", "d", depth)
            for part, their_part, letters in mlp if ours == "mlp" else ATTENTION:
                yield parameter(f"{path}/{ours}/{part}", f"{name}.{theirs}.{their_part}.weight", letters, depth)
    if not c.logits_via_embedding:
        yield parameter("decoder/logits_dense/kernel", HEAD, "dv")


def params_from_hugging_face(state_dict: Mapping[str, np.ndarray], config: T5Config) -> dict[str, Any]:
    """Parameters of `Model(config)` from a T5ForConditionalGeneration's state dict.

    Args:
      state_dict: arrays by name, in any float dtype; the embedding's aliases may be there or not.

    Returns:
      A nested dictionary of numpy arrays in `config.param_dtype`, scanned or not as the configuration says.

    Raises:
      UserError: tensors that are missing, unknown, of another shape, or aliases that differ from the embedding.
    """
    state = _without_aliases(state_dict, config)
    table = list(parameters(config))
    expected = {name: p.their_shape() for p in table for name in p.names()}
    _check("Hugging Face state dict", {name: np.shape(array) for name, array in state.items()}, expected)
    tree: dict[str, Any] = {}
    for p in table:
        arrays = [np.asarray(p.turned(state[name]), dtype=np.dtype(config.param_dtype)) for name in p.names()]
        if p.stacked(config.scan_layers):
            arrays = [np.stack(arrays)]
        for path, array in zip(p.paths(config.scan_layers), arrays, strict=True):
            *parents, leaf = path.split("/")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = array
    return tree


def params_to_hugging_face(params: Mapping[str, Any], config: T5Config) -> dict[str, np.ndarray]:
    """The state dict that T5ForConditionalGeneration loads: the parameters of `Model(config)` in their own dtype.

    The embedding's aliases are left out, as transformers itself leaves them out of its files.

    Raises:
      UserError: parameters that are missing, unknown or of another shape than `config` says.
    """
    arrays = dict(_flatten(params))
    table = list(parameters(config))
    expected = {
        path: (p.depth, *p.shape) if p.stacked(config.scan_layers) else p.shape
        for p in table
        for path in p.paths(config.scan_layers)
    }
    _check("parameters", {path: np.shape(array) for path, array in arrays.items()}, expected)
    state = {}
    for p in table:
        layers = [np.asarray(arrays[path]) for path in p.paths(config.scan_layers)]
        if p.stacked(config.scan_layers):
            layers = list(layers[0])
        # A transposed view would not do: safetensors writes the buffer as it lies.
        state |= {name: np.ascontiguousarray(p.turned(a)) for name, a in zip(p.names(), layers, strict=True)}
    return state


def config_from_hugging_face(values: Mapping[str, Any]) -> T5Config:
    """The model that a config.json describes, in float32 and scanned (`dataclasses.replace` for another choice).

    Raises:
      UserError: a model that is not T5's architecture (t5 or mt5), or a choice that T5Config does not have.
    """
    model_type = values.get("model_type", "t5")
    if model_type not in ("t5", "mt5"):
        raise UserError(f"config.json: model_type must be t5 or mt5, not {model_type!r}")
    required = ("vocab_size", "d_model", "num_heads", "d_kv", "d_ff", "num_layers")
    missing = [key for key in required if key not in values]
    if missing:
        raise UserError(f"config.json has no {', '.join(missing)}: is it that of a T5 model?")
    activation = values.get("feed_forward_proj", "relu")
    if activation not in ACTIVATIONS:
        raise UserError(f"config.json: feed_forward_proj must be one of {', '.join(ACTIVATIONS)}, not {activation!r}")
    epsilon = values.get("layer_norm_epsilon", 1e-6)
    if epsilon != 1e-6:
        raise UserError(f"config.json: layer_norm_epsilon must be 1e-6, not {epsilon!r}")
    return T5Config.from_dict({
        "vocab_size": values["vocab_size"],
        "emb_dim": values["d_model"],
        "num_heads": values["num_heads"],
        "head_dim": values["d_kv"],
        "mlp_dim": values["d_ff"],
        "num_encoder_layers": values["num_layers"],
        "num_decoder_layers": values.get("num_decoder_layers") or values["num_layers"],
        "mlp_activations": ACTIVATIONS[activation],
        # transformers 5 writes tie_word_embeddings = true for every T5 and keeps the choice under the other name.
        "logits_via_embedding": values.get("scale_decoder_outputs", values.get("tie_word_embeddings", True)),
        "dropout_rate": values.get("dropout_rate", 0.1),
        "relpos_buckets": values.get("relative_attention_num_buckets", 32),
        "relpos_max_distance": values.get("relative_attention_max_distance", 128),
    })


def _without_aliases(state_dict: Mapping[str, np.ndarray], config: T5Config) -> dict[str, np.ndarray]:
    """Drops what repeats the embedding, after comparing, and what no model reads."""
    state = {name: array for name, array in state_dict.items() if name not in UNREAD}
    for name in (*EMBEDDING_ALIASES, *((HEAD,) if config.logits_via_embedding else ())):
        if name in state:
            alias = state.pop(name)
            if not np.array_equal(alias, state.setdefault(EMBEDDING, alias)):
                raise UserError(
                    f"Hugging Face state dict: {name} differs from {EMBEDDING}; a model with an output head of its own "
                    "needs T5Config.logits_via_embedding = False"
                )
    return state


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _check(what: str, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    wrong = [f"{n} is {found[n]}, not {expected[n]}" for n in expected if n in found and found[n] != expected[n]]
    faults = (
        ("missing", [name for name in expected if name not in found]),
        ("unknown", [name for name in found if name not in expected]),
        ("of another shape", wrong),
    )
    parts = [f"{fault}: {_some(names)}" for fault, names in faults if names]
    if parts:
        raise UserError(f"{what} and T5Config disagree; {'; '.join(parts)}. Use the configuration of this model")


def _some(names: Iterable[str], limit: int = 4) -> str:
    names = sorted(names)
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
