"""T5's encoder-decoder as one NNX module: embed, encode, decode, and decode one position with a cache."""

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_lite.models import attention as att
from t5x_lite.models.config import T5Config
from t5x_lite.models.finetuning import Prompt, adapted, extend
from t5x_lite.models.layers import MLP, Dense, Embedding, RMSNorm, at_least_float32, dropout, fold
from t5x_lite.models.stack import Stack
from t5x_lite.partitioning import constrain

# Dropout sites. A mask depends on (row key, stack, layer, site), so the numbers are part of a run's identity.
ENCODER, DECODER = 0, 1
SELF_WEIGHTS, SELF_OUT, CROSS_WEIGHTS, CROSS_OUT, MLP_HIDDEN, MLP_OUT, STACK_IN, STACK_OUT = range(8)


class EncoderLayer(nnx.Module):
    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.rate = config.dropout_rate
        self.pre_attention_layer_norm = RMSNorm(config, rngs=rngs)
        self.attention = att.Attention(config, rngs=rngs)
        self.pre_mlp_layer_norm = RMSNorm(config, rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(self, x, mask, bias, keys):
        y = self.pre_attention_layer_norm(x)
        y = self.attention(y, y, mask, bias, fold(keys, SELF_WEIGHTS))
        x = adapted(self, "attention", x + dropout(y, self.rate, fold(keys, SELF_OUT)), keys)
        y = self.mlp(self.pre_mlp_layer_norm(x), fold(keys, MLP_HIDDEN))
        return adapted(self, "mlp", x + dropout(y, self.rate, fold(keys, MLP_OUT)), keys)


class DecoderLayer(nnx.Module):
    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.rate = config.dropout_rate
        self.pre_self_attention_layer_norm = RMSNorm(config, rngs=rngs)
        self.self_attention = att.Attention(config, rngs=rngs)
        self.pre_cross_attention_layer_norm = RMSNorm(config, rngs=rngs)
        self.encoder_decoder_attention = att.Attention(config, rngs=rngs)
        self.pre_mlp_layer_norm = RMSNorm(config, rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)

    def __call__(self, x, encoded, self_mask, cross_mask, bias, keys):
        y = self.pre_self_attention_layer_norm(x)
        y = self.self_attention(y, y, self_mask, bias, fold(keys, SELF_WEIGHTS))
        x = adapted(self, "self_attention", x + dropout(y, self.rate, fold(keys, SELF_OUT)), keys)
        y = self.pre_cross_attention_layer_norm(x)
        y = self.encoder_decoder_attention(y, encoded, cross_mask, None, fold(keys, CROSS_WEIGHTS))
        x = adapted(self, "encoder_decoder_attention", x + dropout(y, self.rate, fold(keys, CROSS_OUT)), keys)
        y = self.mlp(self.pre_mlp_layer_norm(x), fold(keys, MLP_HIDDEN))
        return adapted(self, "mlp", x + dropout(y, self.rate, fold(keys, MLP_OUT)), keys)

    def step(self, x, cross_keys, cross_values, cross_mask, self_cache, layer, index, self_mask, bias):
        """One position x [b, 1, d]; writes its key and value into the stacked self_cache in place."""
        y = self.pre_self_attention_layer_norm(x)
        new = self.self_attention.keys_and_values(y)
        self_cache = tuple(
            jax.lax.dynamic_update_slice(cache, part[None], (layer, 0, 0, index, 0))
            for cache, part in zip(self_cache, new, strict=True)
        )
        keys, values = (jax.lax.dynamic_index_in_dim(cache, layer, keepdims=False) for cache in self_cache)
        x = x + self.self_attention.attend(self.self_attention.queries(y), keys, values, self_mask, bias)
        x = adapted(self, "self_attention", x, None)
        y = self.pre_cross_attention_layer_norm(x)
        cross = self.encoder_decoder_attention
        x = x + cross.attend(cross.queries(y), cross_keys, cross_values, cross_mask, None)
        x = adapted(self, "encoder_decoder_attention", x, None)
        return adapted(self, "mlp", x + self.mlp(self.pre_mlp_layer_norm(x), None), None), self_cache


class Encoder(Stack):
    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        super().__init__(
            lambda r: extend(EncoderLayer(config, rngs=r), config, "encoder/layers", rngs=r),
            config.num_encoder_layers, config, rngs=rngs,
        )
        self.rate = config.dropout_rate
        self.relpos_bias = att.RelativePositionBias(config, bidirectional=True, rngs=rngs)
        self.encoder_norm = RMSNorm(config, rngs=rngs)

    def __call__(self, x, mask, keys):
        """x [b, s, d], mask broadcastable to [b, h, s, s] -> [b, s, d]."""
        keys = fold(keys, ENCODER)
        bias = self.relpos_bias(x.shape[1], x.shape[1])
        x = dropout(x, self.rate, fold(keys, STACK_IN))

        def call(layer, x, i, _):
            return constrain(layer(x, mask, bias, _layer_keys(keys, i)), "batch", "length", "activation"), None

        x, _ = self.run(call, x)
        return dropout(self.encoder_norm(x), self.rate, fold(keys, STACK_OUT))


class Decoder(Stack):
    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        super().__init__(
            lambda r: extend(DecoderLayer(config, rngs=r), config, "decoder/layers", rngs=r),
            config.num_decoder_layers, config, rngs=rngs,
        )
        self.rate = config.dropout_rate
        self.relpos_bias = att.RelativePositionBias(config, bidirectional=False, rngs=rngs)
        self.decoder_norm = RMSNorm(config, rngs=rngs)
        if not config.logits_via_embedding:
            initializer = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
            shape = (config.emb_dim, config.vocab_size)
            self.logits_dense = Dense(shape, ("embed", "vocab"), initializer, config, rngs=rngs)

    def __call__(self, x, encoded, self_mask, cross_mask, keys):
        """x [b, t, d], encoded [b, s, d] -> [b, t, d], normalised, before the output head."""
        keys = fold(keys, DECODER)
        bias = self.relpos_bias(x.shape[1], x.shape[1])
        x = dropout(x, self.rate, fold(keys, STACK_IN))

        def call(layer, x, i, _):
            y = layer(x, encoded, self_mask, cross_mask, bias, _layer_keys(keys, i))
            return constrain(y, "batch", "length", "activation"), None

        x, _ = self.run(call, x)
        return dropout(self.decoder_norm(x), self.rate, fold(keys, STACK_OUT))

    def cross_keys_and_values(self, encoded):
        """Keys and values of every layer's cross-attention, each [l, b, h, s, k]."""

        def call(layer, carry, i, _):
            return carry, layer.encoder_decoder_attention.keys_and_values(encoded)

        return self.run(call, 0)[1]

    def step(self, x, cross, cross_mask, self_cache, index):
        """x [b, 1, d] at position `index` -> ([b, 1, d], self_cache)."""
        length = self_cache[0].shape[3]
        bias = self.relpos_bias.step(index, length)
        self_mask = (jnp.arange(length) <= index)[None, None, None, :]

        def call(layer, carry, i, cross):
            x, cache = carry
            return layer.step(x, *cross, cross_mask, cache, i, index, self_mask, bias), None

        (x, self_cache), _ = self.run(call, (x, self_cache), cross)
        return self.decoder_norm(x), self_cache


class EncoderDecoder(nnx.Module):
    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.config = config
        self.token_embedder = Embedding(config, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        if config.prompt is not None:
            self.prompt = Prompt(config, self.token_embedder.embedding[...], rngs=rngs)

    def embed(self, tokens):
        return constrain(self.token_embedder(tokens), "batch", "length", "activation")

    def encode(self, tokens, segments=None, keys=None):
        """tokens int32 [b, s] -> [b, s, d], or [b, p + s, d] with a prompt. Nobody looks at padding, nor across packed
        examples."""
        x, mask = self.embed(tokens), att.padding_mask(tokens)
        if self.config.prompt is not None:
            x, mask = self.prompt.prepend(x, mask, segments)
        return self.encoder(x, att.both(mask, att.segment_mask(segments, segments)), keys)

    def memory_mask(self, tokens):
        """tokens int32 [b, s] -> bool [b, 1, 1, m], True where the decoder may look in what `encode` made of them."""
        mask = att.padding_mask(tokens)
        return mask if self.config.prompt is None else self.prompt.extend_mask(mask)

    def decode(self, encoded, batch, keys=None):
        """Hidden states [b, t, d] before the output head."""
        tokens = batch["decoder_input_tokens"]
        segments = batch.get("decoder_segment_ids")
        encoder_segments = batch.get("encoder_segment_ids")
        # Padding in the targets comes last, so the causal mask alone keeps it from every real position.
        self_mask = att.both(att.causal_mask(tokens.shape[1]), att.segment_mask(segments, segments))
        cross_mask = self.memory_mask(batch["encoder_input_tokens"])
        cross_mask = att.both(cross_mask, att.segment_mask(segments, encoder_segments))
        return self.decoder(self.embed(tokens), encoded, self_mask, cross_mask, keys)

    def logits(self, hidden):
        """hidden [b, t, d] -> [b, t, v], float32 at least."""
        wide = at_least_float32(hidden.dtype)
        if self.config.logits_via_embedding:
            # The embedding has unit variance: without the scale the logits' variance would grow with d.
            logits = self.token_embedder.attend(hidden * self.config.emb_dim**-0.5, wide)
        else:
            logits = self.decoder.logits_dense(hidden, wide)
        return constrain(logits, "batch", "length", "vocab")

    def __call__(self, batch, keys=None):
        encoded = self.encode(batch["encoder_input_tokens"], batch.get("encoder_segment_ids"), keys)
        return self.logits(self.decode(encoded, batch, keys))


def _layer_keys(keys, i):
    # Offset past the sites that belong to the stack itself.
    return fold(keys, i + STACK_OUT + 1)
