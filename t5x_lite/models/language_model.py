"""The study's language models: one stack that reads inputs and targets as one sequence (Raffel et al. 2020, 3.2.1).

A causal language model lets every position see those before it. A prefix language model lets the inputs, and the
position at which their last token is read, see each other in full. n is the length of the whole sequence.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_lite.errors import UserError
from t5x_lite.models.config import T5Config
from t5x_lite.models.encoder_decoder import Decoder, Transformer
from t5x_lite.models.layers import Embedding
from t5x_lite.models.masks import Mask, causal, of_segments


class LanguageModel(Transformer):
    """A batch holds `decoder_input_tokens`, `decoder_target_tokens`, `decoder_loss_weights` [b, n], and maybe
    `decoder_causal_attention` [b, n] (1 within the inputs) and `decoder_segment_ids` [b, n], as seqio's converters
    for language models name them."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.config = config
        self.token_embedder = Embedding(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def __call__(self, batch, keys=None):
        tokens = batch["decoder_input_tokens"]
        n, segments = tokens.shape[1], batch.get("decoder_segment_ids")
        mask = Mask(segments=of_segments(segments, segments), causal=True)
        inside = batch.get("decoder_causal_attention")
        if self.config.architecture == "prefix_lm" and inside is not None:
            prefix = (inside[:, None, :, None] > 0) & (inside[:, None, None, :] > 0)
            mask = Mask(segments=mask.segments).array(n, n) & (causal(n, n) | prefix)
        return self.logits(self.decoder(self.embed(tokens), mask, keys))

    def init_cache(self, tokens, max_length: int):
        """Reads inputs int32 [b, s]; their keys and values take the cache's first slots, the targets' follow.

        Rows differ in length, so a slot is not a position: the target at slot s + 1 + i has position length + i. The
        last token of the inputs is read twice, here (the others may look at it) and as the first step's token.
        """
        s = tokens.shape[1]
        lengths = jnp.sum(tokens > 0, axis=1)
        shifted = jnp.pad(tokens, ((0, 0), (1, 0)))
        inside = jnp.arange(s + 1) <= lengths[:, None]
        mask = inside[:, None, None, :]
        if self.config.architecture == "causal_lm":
            mask = mask & causal(s + 1, s + 1)
        room = self.empty_cache(tokens.shape[0], max_length, jnp.dtype(self.config.dtype))
        prefix = self.decoder.prefill(self.embed(shifted), mask)
        return {
            "self": tuple(jnp.concatenate([p.astype(r.dtype), r], axis=3) for p, r in zip(prefix, room, strict=True)),
            "lengths": lengths,
            "prefix_mask": jnp.arange(s + 1) < lengths[:, None],
        }

    def advance(self, cache, tokens, index):
        lengths, before = cache["lengths"][:, None], cache["prefix_mask"]
        first = before.shape[1]  # slot of the first target
        total = cache["self"][0].shape[3]
        slots, targets = jnp.arange(total), index + jnp.arange(tokens.shape[1])
        written = (slots >= first) & (slots <= first + targets[:, None])
        mask = jnp.pad(before, ((0, 0), (0, total - first)))[:, None, :] | written
        positions = jnp.where(slots < first, slots, slots - first + lengths)
        hidden, self_cache = self.decoder.step(
            self.embed(tokens),
            cache["self"],
            first + index,
            mask[:, None],
            lambda table: table.between(lengths + targets, positions, total, self.decoder.bidirectional),
        )
        return hidden, {**cache, "self": self_cache}


def concatenated(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Unpacked rows of an encoder-decoder as rows of a language model: inputs [b, s], targets [b, t] -> [b, s + t].

    Targets follow their inputs without padding between; the loss counts the targets alone.

    Raises:
      UserError: packed rows, of which only inputs or targets could be kept together.
    """
    if "encoder_segment_ids" in batch:
        raise UserError(
            "rows packed for an encoder-decoder cannot be read by a language model: give unpacked rows, or "
            "rows packed for a language model"
        )
    inputs, targets = batch["encoder_input_tokens"], batch["decoder_target_tokens"]
    weights = batch.get("decoder_loss_weights")
    weights = (targets > 0).astype(jnp.int32) if weights is None else weights
    s, n = inputs.shape[1], inputs.shape[1] + targets.shape[1]
    lengths = jnp.sum(inputs > 0, axis=1, keepdims=True)
    place = jnp.arange(n)
    # Place p reads the inputs up to their length, then the targets; beyond these there is padding to read, or nothing.
    source = jnp.where(place < lengths, place, jnp.minimum(s + place - lengths, n))

    def gather(left, right):
        return jnp.take_along_axis(jnp.pad(jnp.concatenate([left, right], axis=1), ((0, 0), (0, 1))), source, axis=1)

    tokens = gather(inputs, targets)
    return {
        "decoder_input_tokens": jnp.pad(tokens[:, :-1], ((0, 0), (1, 0))),
        "decoder_target_tokens": tokens,
        "decoder_loss_weights": gather(jnp.zeros_like(inputs, weights.dtype), weights),
        "decoder_causal_attention": (place <= lengths).astype(jnp.int32),
    }


def last_tokens(tokens: jax.Array) -> jax.Array:
    """Each row's last token before the padding: int32 [b, s] -> [b], 0 for an empty row."""
    last = jnp.maximum(jnp.sum(tokens > 0, axis=1, keepdims=True) - 1, 0)
    return jnp.take_along_axis(tokens, last, axis=1)[:, 0]
