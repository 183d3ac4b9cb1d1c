"""The sizes and choices that make one T5 of another."""

import dataclasses
from typing import Any

import gin
from t5x_lite.errors import UserError
from t5x_lite.models import finetuning_config

ACTIVATIONS = ("relu", "gelu", "silu", "linear")
REMAT_POLICIES = ("none", "minimal", "offload", "full")
DTYPES = ("float32", "bfloat16", "float16", "float64")
ATTENTIONS = ("auto", "arrays", "tiles")
ARCHITECTURES = ("encoder_decoder", "prefix_lm", "causal_lm")


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class T5Config:
    """Shape of a T5 model (Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 2.1).

    T5 1.0: `mlp_activations=("relu",)`, `logits_via_embedding=True`. T5 1.1: `("gelu", "linear")`, `False`
    (Shazeer 2020, https://arxiv.org/abs/2002.05202). The study's other architectures (section 3.2.1) are choices of
    `architecture` and `shared_stacks`.

    Attributes:
      vocab_size: rows of the embedding; at least the vocabulary's ids (T5 pads 32,100 to 32,128).
      emb_dim: model width d.
      num_heads, head_dim: h and k; their product need not be d.
      mlp_dim: feed-forward width f.
      num_encoder_layers, num_decoder_layers: depth of either stack; a language model has no encoder layers.
      architecture: "encoder_decoder"; or one stack that reads inputs and targets as one sequence, "causal_lm" with
        every position seeing the ones before it, "prefix_lm" with the inputs seeing each other in full as well.
      shared_stacks: encoder and decoder are one stack of parameters, to which the decoder adds its cross-attention.
      relpos_per_layer: every layer has a relative position bias of its own (umT5), not one for the stack.
      mlp_activations: one name, or two for a gated feed-forward block (activation, "linear").
      logits_via_embedding: the embedding is the output head too, its input scaled by d^-1/2.
      dropout_rate: used at every site when training.
      dtype: of activations and matrix products. Norms and softmax are computed in float32 at least.
      param_dtype: of the parameters as stored and updated.
      scan_layers: layers stacked on a leading axis and scanned, so that compile time does not grow with depth.
      scan_unroll: layers in one turn of the scan. On CPUs XLA runs a loop's body on fewer threads than straight code:
        small models train faster there with all layers in one.
      remat: what the backward pass recomputes: "none", "minimal" (all but the matrix products), "offload" (as minimal,
        the products waiting in the host's memory) or "full".
      attention: how training attends: "arrays" [b, h, q, m] of scores; "tiles" of them by kernels for GPUs, with less
        memory and time (flash_attention.py; elsewhere interpreted, and slow); or "auto", tiles where a GPU computes in
        16 bits. Both compute the same.
      relpos_buckets, relpos_max_distance: of the relative position bias.
      adapters, lora, ia3, prompt, bitfit: what parameter-efficient finetuning adds, or None (finetuning_config.py).

    Raises:
      UserError: a size below one, or an unknown name.
    """

    vocab_size: int
    emb_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_encoder_layers: int
    num_decoder_layers: int
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    logits_via_embedding: bool = False
    dropout_rate: float = 0.0
    dtype: str = "float32"
    param_dtype: str = "float32"
    scan_layers: bool = True
    scan_unroll: int = 1
    remat: str = "none"
    attention: str = "auto"
    relpos_buckets: int = 32
    relpos_max_distance: int = 128
    architecture: str = "encoder_decoder"
    shared_stacks: bool = False
    relpos_per_layer: bool = False
    adapters: finetuning_config.Adapters | None = None
    lora: finetuning_config.LoRA | None = None
    ia3: finetuning_config.IA3 | None = None
    prompt: finetuning_config.PromptTuning | None = None
    bitfit: finetuning_config.BitFit | None = None

    def __post_init__(self):
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "num_encoder_layers" and self.is_language_model else 1
            if field.type in (int, "int") and (not isinstance(value, int) or value < least):
                raise UserError(f"T5Config.{field.name} must be a whole number of at least {least}, not {value!r}")
        if not 0.0 <= self.dropout_rate < 1.0:
            raise UserError(f"T5Config.dropout_rate must be in [0, 1), not {self.dropout_rate!r}")
        for name in self.mlp_activations:
            _one_of("mlp_activations", name, ACTIVATIONS)
        if len(self.mlp_activations) not in (1, 2):
            raise UserError("T5Config.mlp_activations takes one name, or two for a gated block")
        _one_of("remat", self.remat, REMAT_POLICIES)
        _one_of("attention", self.attention, ATTENTIONS)
        if self.attention == "tiles" and not self.attention_fits_tiles:
            raise UserError(
                'T5Config.attention = "tiles" needs a head_dim of 16, 32, 64 or 128, not '
                f'{self.head_dim}; set T5Config.attention = "arrays"'
            )
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("param_dtype", self.param_dtype, DTYPES)
        _one_of("architecture", self.architecture, ARCHITECTURES)
        if self.is_language_model and (self.num_encoder_layers or self.shared_stacks):
            raise UserError(
                f"T5Config.architecture = {self.architecture!r} has no encoder: set "
                "T5Config.num_encoder_layers = 0 and T5Config.shared_stacks = False"
            )
        if self.shared_stacks and self.num_encoder_layers != self.num_decoder_layers:
            raise UserError(
                "T5Config.shared_stacks needs as many encoder as decoder layers, not "
                f"{self.num_encoder_layers} and {self.num_decoder_layers}"
            )
        if self.is_language_model and self.prompt is not None:
            raise UserError("T5Config.prompt stands before an encoder's input: a language model has none")
        finetuning_config.check(vars(self))

    @property
    def attention_fits_tiles(self) -> bool:
        return self.head_dim in (16, 32, 64, 128)

    @property
    def is_language_model(self) -> bool:
        """One stack over inputs and targets, no encoder."""
        return self.architecture != "encoder_decoder"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` reads it back."""
        plain = {n: v for n, v in dataclasses.asdict(self).items() if n not in finetuning_config.METHODS}
        return {**plain, "mlp_activations": list(self.mlp_activations), **finetuning_config.to_dict(vars(self))}

    def plain(self) -> "T5Config":
        """The same model without what finetuning adds."""
        return dataclasses.replace(self, **dict.fromkeys(finetuning_config.METHODS))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "T5Config":
        # object.__new__ would skip the checks; gin's bindings must not leak into a checkpoint's configuration, so
        # every field is passed explicitly.
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UserError(f"the checkpoint's model configuration has unknown fields: {', '.join(unknown)}")
        defaults = {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
        return cls(**{**defaults, **values, **finetuning_config.from_dict(values)})


def _one_of(field: str, value: str, names: tuple[str, ...]) -> None:
    if value not in names:
        raise UserError(f"T5Config.{field} must be one of {', '.join(names)}, not {value!r}")
