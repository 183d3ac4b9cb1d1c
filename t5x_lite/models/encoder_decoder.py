"""T5's encoder-decoder as one NNX module: embed, encode, decode, and decode one position with a cache."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_lite.models import attention as att
from t5x_lite.models.config import T5Config
from t5x_lite.models.finetuning import Prompt, adapted, extend
from t5x_lite.models.layers import MLP, Dense, Embedding, RMSNorm, at_least_float32, dropout, fold
from t5x_lite.models.masks import Mask, of_segments
from t5x_lite.models.stack import Stack
from t5x_lite.partitioning import constrain

# Dropout sites. A mask depends on (row key, stack, layer, site), so the numbers are part of a run's identity.
ENCODER, DECODER = 0, 1
SELF_WEIGHTS, SELF_OUT, CROSS_WEIGHTS, CROSS_OUT, MLP_HIDDEN, MLP_OUT, STACK_IN, STACK_OUT = range(8)


class EncoderLayer(nnx.Module):
    """Self-attention and feed-forward, each normalized before, dropped out after, and added: [b, s, d] to [b, s, d]."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.rate = config.dropout_rate
        self.pre_attention_layer_norm = RMSNorm(config, rngs=rngs)
        self.attention = att.Attention(config, rngs=rngs)
        self.pre_mlp_layer_norm = RMSNorm(config, rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)
        self.relpos_bias = att.RelativePositionBias(config, rngs=rngs) if config.relpos_per_layer else None

    def __call__(self, x, mask, bias, keys):
        y = self.pre_attention_layer_norm(x)
        y = self.attention(y, y, mask, bias, fold(keys, SELF_WEIGHTS))
        x = adapted(self, "attention", x + dropout(y, self.rate, fold(keys, SELF_OUT)), keys)
        y = self.mlp(self.pre_mlp_layer_norm(x), fold(keys, MLP_HIDDEN))
        return adapted(self, "mlp", x + dropout(y, self.rate, fold(keys, MLP_OUT)), keys)


class DecoderLayer(nnx.Module):
    """A language model's has no cross-attention; where both stacks are one, the encoder runs it without."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.rate = config.dropout_rate
        self.pre_self_attention_layer_norm = RMSNorm(config, rngs=rngs)
        self.self_attention = att.Attention(config, rngs=rngs)
        if not config.is_language_model:
            self.pre_cross_attention_layer_norm = RMSNorm(config, rngs=rngs)
            self.encoder_decoder_attention = att.Attention(config, rngs=rngs)
        self.pre_mlp_layer_norm = RMSNorm(config, rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)
        self.relpos_bias = att.RelativePositionBias(config, rngs=rngs) if config.relpos_per_layer else None

    def __call__(self, x, self_mask, bias, keys, encoded=None, cross_mask=None):
        y = self.pre_self_attention_layer_norm(x)
        y = self.self_attention(y, y, self_mask, bias, fold(keys, SELF_WEIGHTS))
        x = adapted(self, "self_attention", x + dropout(y, self.rate, fold(keys, SELF_OUT)), keys)
        if encoded is not None:
            y = self.pre_cross_attention_layer_norm(x)
            y = self.encoder_decoder_attention(y, encoded, cross_mask, None, fold(keys, CROSS_WEIGHTS))
            x = adapted(self, "encoder_decoder_attention", x + dropout(y, self.rate, fold(keys, CROSS_OUT)), keys)
        y = self.mlp(self.pre_mlp_layer_norm(x), fold(keys, MLP_HIDDEN))
        return adapted(self, "mlp", x + dropout(y, self.rate, fold(keys, MLP_OUT)), keys)

    def prefill(self, x, mask, bias):
        """A language model's layer over x [b, n, d] -> the same, and its keys and values, each [b, h, n, k]."""
        y = self.pre_self_attention_layer_norm(x)
        keys, values = self.self_attention.keys_and_values(y)
        x = x + self.self_attention.attend(self.self_attention.queries(y), keys, values, mask, bias)
        x = adapted(self, "self_attention", x, None)
        return adapted(self, "mlp", x + self.mlp(self.pre_mlp_layer_norm(x), None), None), (keys, values)

    def step(self, x, cross, cross_mask, self_cache, layer, slot, self_mask, bias):
        """The next q positions x [n * b, q, d]; writes their keys and values into the stacked self_cache in place.

        Args:
          cross: keys and values of the encoder's outputs, each [b, h, s, k], which n neighbouring rows share; or None.
          layer, slot: int32 scalars, the first place in self_cache [l, n * b, h, m, k].
        """
        y = self.pre_self_attention_layer_norm(x)
        new = self.self_attention.keys_and_values(y)
        self_cache = tuple(
            jax.lax.dynamic_update_slice(cache, part[None], (layer, 0, 0, slot, 0))
            for cache, part in zip(self_cache, new, strict=True)
        )
        keys, values = (jax.lax.dynamic_index_in_dim(cache, layer, keepdims=False) for cache in self_cache)
        x = x + self.self_attention.attend(self.self_attention.queries(y), keys, values, self_mask, bias)
        x = adapted(self, "self_attention", x, None)
        if cross is not None:
            # Rows of one input are queries of one row: its keys and values are not repeated.
            y = self.pre_cross_attention_layer_norm(x).reshape(cross[0].shape[0], -1, x.shape[-1])
            attention = self.encoder_decoder_attention
            keys, values = cross
            x = x + attention.attend(attention.queries(y), keys, values, cross_mask, None).reshape(x.shape)
            x = adapted(self, "encoder_decoder_attention", x, None)
        return adapted(self, "mlp", x + self.mlp(self.pre_mlp_layer_norm(x), None), None), self_cache


def layer_bias(stack: "Encoder | Decoder", make: Callable) -> Callable:
    """From a layer to make(its bias table): made once, outside of the scan, where the layers share the stack's."""
    if stack.relpos_bias is None:
        return lambda layer: make(layer.relpos_bias)
    once = make(stack.relpos_bias)
    return lambda layer: once


class Encoder(Stack):
    """Layers that look both ways: embedded inputs [b, s, d] to what the decoder attends to, [b, s, d]."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        super().__init__(
            lambda r: extend(EncoderLayer(config, rngs=r), config, "encoder/layers", rngs=r),
            config.num_encoder_layers,
            config,
            rngs=rngs,
        )
        self.rate = config.dropout_rate
        self.relpos_bias = None if config.relpos_per_layer else att.RelativePositionBias(config, rngs=rngs)
        self.encoder_norm = RMSNorm(config, rngs=rngs)

    def __call__(self, x, mask, keys):
        """x [b, s, d], mask of s queries and s keys -> [b, s, d]."""
        keys, s = fold(keys, ENCODER), x.shape[1]
        mask = att.seen(self.config, mask, s, s)
        bias = layer_bias(self, lambda table: table(s, s, bidirectional=True))
        x = dropout(x, self.rate, fold(keys, STACK_IN))

        def call(layer, x, i, _):
            return constrain(layer(x, mask, bias(layer), _layer_keys(keys, i)), "batch", "length", "activation"), None

        x, _ = self.run(call, x)
        return dropout(self.encoder_norm(x), self.rate, fold(keys, STACK_OUT))


class Decoder(Stack):
    """The decoder, or the one stack of a language model."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        super().__init__(
            lambda r: extend(DecoderLayer(config, rngs=r), config, "decoder/layers", rngs=r),
            config.num_decoder_layers,
            config,
            rngs=rngs,
        )
        self.rate = config.dropout_rate
        # As in Mesh TensorFlow, whose prefix language model is not "fully autoregressive" and so tells sides apart.
        self.bidirectional = config.architecture == "prefix_lm"
        self.relpos_bias = None if config.relpos_per_layer else att.RelativePositionBias(config, rngs=rngs)
        self.decoder_norm = RMSNorm(config, rngs=rngs)
        if not config.logits_via_embedding:
            initializer = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
            shape = (config.emb_dim, config.vocab_size)
            self.logits_dense = Dense(shape, ("embed", "vocab"), initializer, config, rngs=rngs)

    def __call__(self, x, self_mask, keys, encoded=None, cross_mask=None, as_encoder: bool = False):
        """x [b, t, d] -> [b, t, d], normalised, before the output head.

        Args:
          self_mask, cross_mask: a `Mask`, or bool, broadcastable to [b, h, t, t] or [b, h, t, s].
          encoded: [b, s, d] for the cross-attention; None leaves it out.
          as_encoder: the encoder's pass where both stacks are one.
        """
        keys = fold(keys, ENCODER if as_encoder else DECODER)
        n, bidirectional = x.shape[1], as_encoder or self.bidirectional
        self_mask = att.seen(self.config, self_mask, n, n)
        if encoded is not None:
            cross_mask = att.seen(self.config, cross_mask, n, encoded.shape[1])
        bias = layer_bias(self, lambda table: table(n, n, bidirectional))
        x = dropout(x, self.rate, fold(keys, STACK_IN))

        def call(layer, x, i, _):
            y = layer(x, self_mask, bias(layer), _layer_keys(keys, i), encoded, cross_mask)
            return constrain(y, "batch", "length", "activation"), None

        x, _ = self.run(call, x)
        return dropout(self.decoder_norm(x), self.rate, fold(keys, STACK_OUT))

    def prefill(self, x, mask):
        """A language model's keys and values of x [b, n, d], each [l, b, h, n, k]."""
        n = x.shape[1]
        bias = layer_bias(self, lambda table: table(n, n, self.bidirectional))
        return self.run(lambda layer, x, i, _: layer.prefill(x, mask, bias(layer)), x)[1]

    def cross_keys_and_values(self, encoded):
        """Keys and values of every layer's cross-attention, each [l, b, h, s, k]."""

        def call(layer, carry, i, _):
            return carry, layer.encoder_decoder_attention.keys_and_values(encoded)

        return self.run(call, 0)[1]

    def step(self, x, self_cache, slot, self_mask, make_bias: Callable, cross=None, cross_mask=None):
        """The next q positions x [b, q, d], whose keys and values go to `slot` on -> ([b, q, d], self_cache)."""
        bias = layer_bias(self, make_bias)

        def call(layer, carry, i, cross):
            x, cache = carry
            return layer.step(x, cross, cross_mask, cache, i, slot, self_mask, bias(layer)), None

        (x, self_cache), _ = self.run(call, (x, self_cache), cross)
        return self.decoder_norm(x), self_cache


class Transformer(nnx.Module):
    """What the architectures share; each makes its own parts."""

    config: T5Config
    token_embedder: Embedding
    decoder: "Decoder"

    def advance(self, cache, tokens, index):
        """Reads the q tokens before the targets from `index` on, int32 [b, q] -> hidden [b, q, d], the longer cache."""
        raise NotImplementedError

    def embed(self, tokens):
        return constrain(self.token_embedder(tokens), "batch", "length", "activation")

    def logits(self, hidden):
        """hidden [b, t, d] -> [b, t, v], float32 at least."""
        wide = at_least_float32(hidden.dtype)
        if self.config.logits_via_embedding:
            # The embedding has unit variance: without the scale the logits' variance would grow with d.
            logits = self.token_embedder.attend(hidden * self.config.emb_dim**-0.5, wide)
        else:
            logits = self.decoder.logits_dense(hidden, wide)
        return constrain(logits, "batch", "length", "vocab")

    def step(self, cache, tokens, index):
        """`advance` by one token a row, int32 [b] -> logits [b, v], cache."""
        hidden, cache = self.advance(cache, tokens[:, None], index)
        return self.logits(hidden)[:, 0], cache

    def empty_cache(self, b: int, length: int, dtype):
        """Room for keys and values of `length` positions, each [l, b, h, length, k]."""
        c = self.config
        shape = (c.num_decoder_layers, b, c.num_heads, length, c.head_dim)
        return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)


class EncoderDecoder(Transformer):
    """T5: an encoder of the inputs and a decoder of the targets, or one stack that is both (`shared_stacks`)."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.config = config
        self.token_embedder = Embedding(config, rngs=rngs)
        self.encoder = None if config.shared_stacks else Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        self.prompt = None if config.prompt is None else Prompt(config, self.token_embedder.embedding[...], rngs=rngs)

    def encode(self, tokens, segments=None, keys=None):
        """tokens int32 [b, s] -> [b, s, d], or [b, p + s, d] with a prompt.

        Nobody looks at padding, nor across packed examples.
        """
        x = self.embed(tokens)
        if self.prompt is not None:
            x = self.prompt.prepend(x, segments)
        mask = Mask(self.real(tokens), of_segments(segments, segments))
        if self.encoder is None:
            return self.decoder(x, mask, keys, as_encoder=True)
        return self.encoder(x, mask, keys)

    def real(self, tokens):
        """tokens int32 [b, s] -> bool [b, m], True where one may look in what `encode` makes of them."""
        return tokens > 0 if self.prompt is None else self.prompt.extend(tokens > 0)

    def decode(self, encoded, batch, keys=None):
        """Hidden states [b, t, d] before the output head."""
        tokens = batch["decoder_input_tokens"]
        segments = batch.get("decoder_segment_ids")
        encoder_segments = batch.get("encoder_segment_ids")
        # Padding in the targets comes last, so the causal mask alone keeps it from every real position.
        self_mask = Mask(segments=of_segments(segments, segments), causal=True)
        cross_mask = Mask(self.real(batch["encoder_input_tokens"]), of_segments(segments, encoder_segments))
        return self.decoder(self.embed(tokens), self_mask, keys, encoded, cross_mask)

    def __call__(self, batch, keys=None):
        encoded = self.encode(batch["encoder_input_tokens"], batch.get("encoder_segment_ids"), keys)
        return self.logits(self.decode(encoded, batch, keys))

    def init_cache(self, encoded, tokens, max_length: int):
        return {
            "cross": self.decoder.cross_keys_and_values(encoded),
            "cross_mask": Mask(self.real(tokens)).array(1, encoded.shape[1]),
            "self": self.empty_cache(tokens.shape[0], max_length, encoded.dtype),
        }

    def advance(self, cache, tokens, index):
        q, length = tokens.shape[1], cache["self"][0].shape[3]
        mask = jnp.arange(length) <= index + jnp.arange(q)[:, None]
        hidden, self_cache = self.decoder.step(
            self.embed(tokens),
            cache["self"],
            index,
            mask[None, None],
            lambda table: table.rows(index, q, length, bidirectional=False),
            cache["cross"],
            cache["cross_mask"],
        )
        return hidden, {**cache, "self": self_cache}


def _layer_keys(keys, i):
    # Offset past the sites that belong to the stack itself.
    return fold(keys, i + STACK_OUT + 1)
