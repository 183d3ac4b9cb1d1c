"""Names and shapes of T5 in Hugging Face's transformers (https://huggingface.co/docs/transformers/model_doc/t5).

Their linear layers hold [output, input] and their bias tables [buckets, h], so every tensor is ours transposed, save
for the embedding. The tables below are all there is to know; no torch.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.interop import weights
from t5x_lite.interop.weights import Tensor, check_shapes
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
    """A parameter's name and shape on both sides."""

    path: str  # ours, with {layers} where a layer's number may stand
    name: str  # theirs, with {i} for the layer's number
    shape: tuple[int, ...]  # ours, of one layer
    depth: int | None  # layers, None outside of them

    def names(self) -> list[str]:
        """Theirs, one for each layer."""
        return [self.name.format(i=i) for i in range(self.depth or 1)]

    def paths(self) -> list[str]:
        """Ours, one for each layer."""
        return [self.path.format(layers=f"layers_{i}") for i in range(self.depth or 1)]

    def their_shape(self) -> tuple[int, ...]:
        return self.shape if self.name == EMBEDDING else self.shape[::-1]


def parameters(config: T5Config) -> Iterator[Parameter]:
    """Every parameter of a model.

    Raises:
      UserError: an architecture that transformers' T5 does not have.
    """
    c = config
    if c.is_language_model or c.shared_stacks:
        raise UserError(
            "transformers' T5 has an encoder and a decoder of their own: T5Config.architecture = "
            f"{c.architecture!r} with shared_stacks = {c.shared_stacks} has no place in a Hugging Face folder"
        )
    if c != c.plain():
        raise UserError(
            "transformers' T5 has no place for what finetuning added to this model: fold LoRA and IA3 into the "
            "kernels with t5x_lite.finetuning.merge; adapters, prompts and biases cannot be folded"
        )
    sizes = {
        "d": c.emb_dim,
        "f": c.mlp_dim,
        "v": c.vocab_size,
        "h": c.num_heads,
        "j": c.num_heads * c.head_dim,
        "r": c.relpos_buckets,
    }

    def parameter(path: str, name: str, letters: str, depth: int | None = None) -> Parameter:
        return Parameter(path, name, tuple(sizes[letter] for letter in letters), depth)

    mlp = GATED_MLP if len(c.mlp_activations) == 2 else MLP
    yield parameter("token_embedder/embedding", EMBEDDING, "vd")
    for stack, depth in (("encoder", c.num_encoder_layers), ("decoder", c.num_decoder_layers)):
        bias = "layer.0.SelfAttention.relative_attention_bias.weight"
        if c.relpos_per_layer:  # umT5, https://arxiv.org/abs/2304.09151
            yield parameter(f"{stack}/{{layers}}/relpos_bias/rel_embedding", f"{stack}.block.{{i}}.{bias}", "hr", depth)
        else:
            yield parameter(f"{stack}/relpos_bias/rel_embedding", f"{stack}.block.0.{bias}", "hr")
        yield parameter(f"{stack}/{stack}_norm/scale", f"{stack}.final_layer_norm.weight", "d")
        for number, (norm, ours, theirs) in enumerate(SUBLAYERS[stack]):
            path, name = f"{stack}/{{layers}}", f"{stack}.block.{{i}}.layer.{number}"
            yield parameter(f"{path}/{norm}/scale", f"{name}.layer_norm.weight", "d", depth)
            for part, their_part, letters in mlp if ours == "mlp" else ATTENTION:
                yield parameter(f"{path}/{ours}/{part}", f"{name}.{theirs}.{their_part}.weight", letters, depth)
    if not c.logits_via_embedding:
        yield parameter("decoder/logits_dense/kernel", HEAD, "dv")


def tensors_from_hugging_face(tensors: Mapping[str, Tensor], config: T5Config) -> dict[str, Tensor]:
    """Our paths, layers apart, from a T5ForConditionalGeneration's names; the embedding's aliases may be there or not.

    Raises:
      UserError: tensors that are missing, unknown, of another shape, or aliases that differ from the embedding.
    """
    tensors = _without_aliases(tensors, config)
    table = list(parameters(config))
    expected = {name: p.their_shape() for p in table for name in p.names()}
    check_shapes("Hugging Face state dict", {name: t.shape for name, t in tensors.items()}, expected)
    return {
        path: tensors[name] if p.name == EMBEDDING else tensors[name].transposed()
        for p in table
        for path, name in zip(p.paths(), p.names(), strict=True)
    }


def tensors_to_hugging_face(params: Mapping[str, Tensor], config: T5Config) -> dict[str, Tensor]:
    """The inverse of `tensors_from_hugging_face`, layer after layer of each parameter.

    The embedding's aliases are left out, as transformers itself leaves them out of its files.

    Raises:
      UserError: parameters that are missing, unknown or of another shape than `config` says.
    """
    table = list(parameters(config))
    expected = {path: p.shape for p in table for path in p.paths()}
    check_shapes("parameters", {path: t.shape for path, t in params.items()}, expected)
    return {
        name: params[path] if p.name == EMBEDDING else params[path].transposed()
        for p in table
        for path, name in zip(p.paths(), p.names(), strict=True)
    }


def params_from_hugging_face(state_dict: Mapping[str, np.ndarray], config: T5Config) -> dict[str, Any]:
    """Parameters of `Model(config)` from a T5ForConditionalGeneration's state dict of arrays, in any float dtype.

    Returns:
      A nested dictionary of numpy arrays in `config.param_dtype`, scanned or not as the configuration says.

    Raises:
      UserError: as `tensors_from_hugging_face`.
    """
    params = tensors_from_hugging_face({name: Tensor.of(a) for name, a in state_dict.items()}, config)
    params = {path: tensor.cast(config.param_dtype) for path, tensor in params.items()}
    params = weights.stacked(params) if config.scan_layers else params
    return weights.nested({path: tensor.read() for path, tensor in params.items()})


def params_to_hugging_face(params: Mapping[str, Any], config: T5Config) -> dict[str, np.ndarray]:
    """The state dict that T5ForConditionalGeneration loads: the parameters of `Model(config)` in their own dtype.

    Raises:
      UserError: parameters that are missing, unknown or of another shape than `config` says.
    """
    apart = weights.split({path: Tensor.of(np.asarray(array)) for path, array in _flatten(params)})
    # A transposed view would not do: safetensors writes the buffer as it lies.
    return {name: np.ascontiguousarray(t.read()) for name, t in tensors_to_hugging_face(apart, config).items()}


def config_from_hugging_face(values: Mapping[str, Any]) -> T5Config:
    """The model that a config.json describes, in float32 and scanned (`dataclasses.replace` for another choice).

    Raises:
      UserError: a model that is not T5's architecture (t5, mt5 or umt5), or a choice that T5Config does not have.
    """
    model_type = values.get("model_type", "t5")
    if model_type not in ("t5", "mt5", "umt5"):
        raise UserError(f"config.json: model_type must be t5, mt5 or umt5, not {model_type!r}")
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
    return T5Config.from_dict(
        {
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
            "relpos_per_layer": model_type == "umt5",
        }
    )


def config_to_hugging_face(config: T5Config) -> dict[str, Any]:
    """The config.json of a model.

    Raises:
      UserError: activations that transformers has no name for.
    """
    names = {activations: name for name, activations in ACTIVATIONS.items()}
    if config.mlp_activations not in names:
        raise UserError(
            f"transformers has no T5 with T5Config.mlp_activations = {config.mlp_activations!r}; it has "
            f"{', '.join(str(a) for a in names)}"
        )
    per_layer = config.relpos_per_layer
    return {
        "architectures": ["UMT5ForConditionalGeneration" if per_layer else "T5ForConditionalGeneration"],
        "model_type": "umt5" if per_layer else "t5",
        "vocab_size": config.vocab_size,
        "d_model": config.emb_dim,
        "num_heads": config.num_heads,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_dim,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "feed_forward_proj": names[config.mlp_activations],
        "tie_word_embeddings": config.logits_via_embedding,
        "dropout_rate": config.dropout_rate,
        "relative_attention_num_buckets": config.relpos_buckets,
        "relative_attention_max_distance": config.relpos_max_distance,
        "layer_norm_epsilon": 1e-6,
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "use_cache": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "dtype": config.param_dtype,
        "torch_dtype": config.param_dtype,  # the same for transformers before 5
    }


def has_own_head(tensors: Mapping[str, Tensor]) -> bool:
    """Whether there is an output head that is not the embedding."""
    return (
        HEAD in tensors and EMBEDDING in tensors and not np.array_equal(tensors[HEAD].read(), tensors[EMBEDDING].read())
    )


def _without_aliases(tensors: Mapping[str, Tensor], config: T5Config) -> dict[str, Tensor]:
    """Drops what repeats the embedding, after comparing, and what no model reads."""
    state = {name: tensor for name, tensor in tensors.items() if name not in UNREAD}
    for name in (*EMBEDDING_ALIASES, *((HEAD,) if config.logits_via_embedding else ())):
        if name in state:
            alias = state.pop(name)
            if EMBEDDING not in state:
                state[EMBEDDING] = alias
            elif not np.array_equal(alias.read(), state[EMBEDDING].read()):
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
