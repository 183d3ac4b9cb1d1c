"""What the rest of the library sees of a model: pure functions of a nested dictionary of arrays.

NNX ends here. Paths in the dictionary follow T5X (`encoder/layers/attention/query/kernel`), so that its public
checkpoints map by name.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_lite.models import finetuning, finetuning_config, language_model
from t5x_lite.models.config import T5Config
from t5x_lite.models.encoder_decoder import EncoderDecoder
from t5x_lite.models.language_model import LanguageModel
from t5x_lite.partitioning import leaves_by_path


class Model:
    """A model of the given shape; holds no arrays.

    A batch is a dictionary of int32 arrays named as seqio's converters name them. For an encoder-decoder:
    `encoder_input_tokens` [b, s], `decoder_input_tokens`, `decoder_target_tokens`, `decoder_loss_weights` [b, t], and
    where examples are packed `encoder_segment_ids` [b, s], `decoder_segment_ids` [b, t]. For a language model, see
    `LanguageModel`; it takes the unpacked batches of an encoder-decoder, too, and joins inputs and targets.
    """

    def __init__(self, config: T5Config):
        self.config = config

    def __hash__(self):
        return hash(self.config)

    def __eq__(self, other):
        return isinstance(other, Model) and self.config == other.config

    def _make(self, key) -> EncoderDecoder | LanguageModel:
        kind = LanguageModel if self.config.is_language_model else EncoderDecoder
        return kind(self.config, rngs=nnx.Rngs(params=key))

    @functools.cached_property
    def _abstract(self):
        graphdef, state = nnx.split(nnx.eval_shape(lambda: self._make(0)))
        finetuning_config.check_kernels(self.config.lora, ["/".join(map(str, p)) for p, _ in nnx.to_flat_state(state)])
        return graphdef, state

    def _module(self, params) -> Any:
        """What `_make` makes, with these parameters."""
        graphdef, state = self._abstract
        state = nnx.clone(state)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graphdef, state)

    def init(self, key: jax.Array):
        """Initial parameters; a nested dictionary of arrays of `param_dtype`."""
        return nnx.to_pure_dict(nnx.state(self._make(key)))

    def abstract_params(self):
        """The same tree with `jax.ShapeDtypeStruct` leaves; allocates nothing."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def logical_axes(self):
        """The same tree with a tuple of logical axis names for each parameter."""
        _, state = self._abstract
        axes = {path: variable.axes for path, variable in nnx.to_flat_state(state)}
        return nnx.traversals.unflatten_mapping(axes)

    def arranged(self, batch):
        """A batch as this architecture takes it: an encoder-decoder's, given to a language model, is joined."""
        if self.config.is_language_model and "encoder_input_tokens" in batch:
            return language_model.concatenated(batch)
        return batch

    @functools.cached_property
    def added_paths(self) -> frozenset[str]:
        """Paths of the parameters that the configuration's finetuning methods add to the plain model."""
        plain = leaves_by_path(Model(self.config.plain()).abstract_params())
        return frozenset(leaves_by_path(self.abstract_params()).keys() - plain.keys())

    def with_fresh_prompt(self, params, key: jax.Array):
        """`params`, with a prompt that starts from the vocabulary sampled anew from their own token embedding.

        For parameters that come from a plain model's checkpoint; without such a prompt, `params` as they are.
        """
        if self.config.prompt is None or self.config.prompt.start != "vocabulary":
            return params
        table = params["token_embedder"]["embedding"]
        return {**params, "prompt": {"embedding": finetuning.prompt_from(self.config, table, key)}}

    def apply(self, params, batch, dropout_keys=None) -> jax.Array:
        """Logits float32 [b, t, v]; [b, n, v] for an `arranged` batch of a language model.

        Args:
          dropout_keys: PRNG keys [b], one for each row, or None for no dropout.
        """
        return self._module(params)(self.arranged(batch), dropout_keys)

    def encode(self, params, encoder_input_tokens: jax.Array) -> jax.Array | None:
        """int32 [b, s] -> [b, s, d], or [b, p + s, d] with a prompt of p vectors.

        None for a language model, which has no encoder.
        """
        return None if self.config.is_language_model else self._module(params).encode(encoder_input_tokens)

    def init_cache(self, params, encoded: jax.Array | None, encoder_input_tokens: jax.Array, max_length: int):
        """A cache for `decode_step`, with room for `max_length` positions.

        An encoder-decoder's has cross-attention keys and values [l, b, h, s, k], computed once, and room for
        self-attention [l, b, h, max_length, k]; a language model's has the inputs' keys and values, too.
        """
        if self.config.is_language_model:
            return self._module(params).init_cache(encoder_input_tokens, max_length)
        return self._module(params).init_cache(encoded, encoder_input_tokens, max_length)

    def first_tokens(self, encoder_input_tokens: jax.Array) -> jax.Array:
        """What the first `decode_step` is given: the start token, or the last one that a language model reads; [b]."""
        if self.config.is_language_model:
            return language_model.last_tokens(encoder_input_tokens)
        return jnp.zeros(encoder_input_tokens.shape[0], jnp.int32)

    def prefill(self, params, cache, tokens: jax.Array):
        """The cache after the first q tokens of every row, int32 [b, q], as `decode_step` would be given them."""
        return self._module(params).advance(cache, tokens, jnp.int32(0))[1]

    def decode_step(self, params, cache, tokens: jax.Array, index: jax.Array):
        """Logits after one more token of every row. n neighbouring rows may share an input: see `incremental.start`.

        Args:
          tokens: int32 [b], `first_tokens` at index 0, then the tokens chosen.
          index: int32 scalar, the targets written so far; the same for all rows.

        Returns:
          logits float32 [b, v] for the target `index`, and the cache with the position written.
        """
        return self._module(params).step(cache, tokens, index)
