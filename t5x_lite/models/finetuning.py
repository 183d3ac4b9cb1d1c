"""Modules that parameter-efficient finetuning adds to a layer, and how they get there.

`extend` is given a finished layer and exchanges its products for ones that carry more parameters, which draw their
random numbers last: the plain parameters of a model are the same with and without them, in name and in value.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_lite.errors import UserError
from t5x_lite.models.attention import Attention
from t5x_lite.models.config import T5Config
from t5x_lite.models.layers import MLP, Dense, RMSNorm, dropout, fold, parameter
from t5x_lite.partitioning import constrain

SPECIAL_TOKENS = 3  # padding, end, unknown: no start for a prompt
# Dropout sites of a layer after its own (encoder_decoder.py); adapters have two sites each below theirs.
ADAPTER_SITES = {"attention": 8, "self_attention": 8, "encoder_decoder_attention": 9, "mlp": 10}
HIDDEN, OUT = range(2)


class ExtendedDense(Dense):
    """A product with any of: LoRA's low-rank change, BitFit's bias, and IA3's scaling of its input or output."""

    lora_a: nnx.Param | None = None
    lora_b: nnx.Param | None = None
    bias: nnx.Param | None = None
    ia3_input: nnx.Param | None = None
    ia3_output: nnx.Param | None = None

    def __init__(self, dense: Dense, config: T5Config, *, lora: bool, bias: bool, ia3: str | None, rngs: nnx.Rngs):
        """Takes over the kernel of `dense`.

        Args:
          ia3: "input", "output" or None.
        """
        self.dtype, self.kernel = dense.dtype, dense.kernel
        (inputs, outputs), (input_axis, output_axis) = dense.kernel[...].shape, dense.kernel.axes
        make = functools.partial(parameter, rngs, dtype=config.param_dtype)
        if lora:
            rank, self.lora_scale = config.lora.rank, config.lora.scale
            initializer = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
            self.lora_a = make(initializer, (inputs, rank), (input_axis, "lora_rank"))
            self.lora_b = make(nnx.initializers.zeros, (rank, outputs), ("lora_rank", output_axis))
        if bias:
            self.bias = make(nnx.initializers.zeros, (outputs,), (output_axis,))
        if ia3 == "input":
            self.ia3_input = make(nnx.initializers.ones, (inputs,), (input_axis,))
        if ia3 == "output":
            self.ia3_output = make(nnx.initializers.ones, (outputs,), (output_axis,))

    def __call__(self, x: jax.Array, out_dtype=None) -> jax.Array:
        x = x.astype(self.dtype)
        if self.ia3_input is not None:
            x = x * self.ia3_input[...].astype(self.dtype)
        y = super().__call__(x, out_dtype)
        if self.lora_a is not None:
            low = jnp.matmul(x, self.lora_a[...].astype(self.dtype))
            y = y + self.lora_scale * jnp.matmul(low, self.lora_b[...].astype(self.dtype)).astype(y.dtype)
        if self.bias is not None:
            y = y + self.bias[...].astype(y.dtype)
        if self.ia3_output is not None:
            y = y * self.ia3_output[...].astype(y.dtype)
        return y


class Adapter(nnx.Module):
    """x + dropout(wo(dropout(relu(wi(norm(x)))))), x [b, n, d]."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.rate = config.dropout_rate
        d, inner = config.emb_dim, config.adapters.inner_dim
        inward = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        self.layer_norm = RMSNorm(config, rngs=rngs)
        self.wi = Dense((d, inner), ("embed", "adapter"), inward, config, rngs=rngs)
        self.wo = Dense((inner, d), ("adapter", "embed"), nnx.initializers.zeros, config, rngs=rngs)

    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        hidden = dropout(jax.nn.relu(self.wi(self.layer_norm(x))), self.rate, fold(keys, HIDDEN))
        return x + dropout(self.wo(hidden), self.rate, fold(keys, OUT))


class Prompt(nnx.Module):
    """Vectors [p, d] in front of every input, seen by everyone; T5's relative positions count them as tokens."""

    def __init__(self, config: T5Config, table: jax.Array, *, rngs: nnx.Rngs):
        """table [v, d]: the token embedding that the vectors may start from."""
        if config.prompt.start == "vocabulary":
            initializer = functools.partial(_sampled, config, table)
        else:
            initializer = _uniform
        shape = (config.prompt.length, config.emb_dim)
        self.embedding = parameter(rngs, initializer, shape, ("prompt", "embed"), config.param_dtype)

    def prepend(self, x: jax.Array, segments: jax.Array | None) -> jax.Array:
        """x [b, s, d] -> [b, p + s, d].

        Raises:
          UserError: packed rows, whose examples would have to share one prompt.
        """
        if segments is not None:
            raise UserError(
                "T5Config.prompt does not go with packed rows; set SeqioSource.packing = False, or leave "
                "out encoder_segment_ids"
            )
        p, d = self.embedding[...].shape
        prompt = jnp.broadcast_to(self.embedding[...].astype(x.dtype), (x.shape[0], p, d))
        return constrain(jnp.concatenate([prompt, x], axis=1), "batch", "length", "activation")

    def extend(self, real: jax.Array) -> jax.Array:
        """bool [b, s] -> [b, p + s], True at the prompt."""
        return jnp.pad(real, ((0, 0), (self.embedding[...].shape[0], 0)), constant_values=True)


def extend(layer: nnx.Module, config: T5Config, path: str, *, rngs: nnx.Rngs) -> nnx.Module:
    """The layer, with what the configuration's finetuning methods add to it.

    Args:
      path: of the layer, as in a model with scanned layers: `encoder/layers`.
    """
    blocks = [(name, block) for name, block in vars(layer).items() if isinstance(block, (Attention, MLP))]
    for block_name, block in blocks:
        attention = isinstance(block, Attention)
        for name, dense in [(n, d) for n, d in vars(block).items() if isinstance(d, Dense)]:
            lora = config.lora is not None and config.lora.changes(f"{path}/{block_name}/{name}/kernel")
            bias = config.bitfit is not None
            scaled = {"key": "output", "value": "output"} if attention else {"wo": "input"}
            ia3 = scaled.get(name) if config.ia3 is not None else None
            if lora or bias or ia3:
                setattr(block, name, ExtendedDense(dense, config, lora=lora, bias=bias, ia3=ia3, rngs=rngs))
        if config.adapters is not None and ("attention" if attention else "mlp") in config.adapters.after:
            setattr(layer, f"{block_name}_adapter", Adapter(config, rngs=rngs))
    return layer


def adapted(layer: nnx.Module, block: str, x: jax.Array, keys: jax.Array | None) -> jax.Array:
    """x [b, n, d] after the adapter that follows the layer's block, or x itself where there is none."""
    adapter = getattr(layer, f"{block}_adapter", None)
    return x if adapter is None else adapter(x, fold(keys, ADAPTER_SITES[block]))


def prompt_from(config: T5Config, table: jax.Array, key: jax.Array) -> jax.Array:
    """[p, d]: the start of a prompt, sampled from the rows of an embedding table [v, d]."""
    return _sampled(config, table, key, (config.prompt.length, config.emb_dim), jnp.dtype(config.param_dtype))


def _sampled(config: T5Config, table: jax.Array, key: jax.Array, shape: tuple[int, int], dtype) -> jax.Array:
    candidates = max(1, min(config.prompt.sampled_from, config.vocab_size) - SPECIAL_TOKENS)
    ids = SPECIAL_TOKENS + jax.random.choice(key, candidates, shape[:1], replace=shape[0] > candidates)
    return jnp.take(table, ids, axis=0).astype(dtype)


def _uniform(key: jax.Array, shape: tuple[int, int], dtype) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -0.5, 0.5)
