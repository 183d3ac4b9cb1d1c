"""What the rest of the library sees of a model: pure functions of a nested dictionary of arrays.

NNX ends here. Paths in the dictionary follow T5X (`encoder/layers/attention/query/kernel`), so that its public
checkpoints map by name.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_lite.models import finetuning, finetuning_config
from t5x_lite.models.config import T5Config
from t5x_lite.models.encoder_decoder import EncoderDecoder
from t5x_lite.partitioning import path_name


class Model:
    """An encoder-decoder of the given shape; holds no arrays.

    A batch is a dictionary of int32 arrays named as seqio's EncDecFeatureConverter names them:
    `encoder_input_tokens` [b, s], `decoder_input_tokens`, `decoder_target_tokens`, `decoder_loss_weights` [b, t], and
    where examples are packed `encoder_segment_ids` [b, s], `decoder_segment_ids` [b, t].
    """

    def __init__(self, config: T5Config):
        self.config = config

    def __hash__(self):
        return hash(self.config)

    def __eq__(self, other):
        return isinstance(other, Model) and self.config == other.config

    @functools.cached_property
    def _abstract(self):
        graphdef, state = nnx.split(nnx.eval_shape(lambda: EncoderDecoder(self.config, rngs=nnx.Rngs(params=0))))
        finetuning_config.check_kernels(self.config.lora, ["/".join(map(str, p)) for p, _ in nnx.to_flat_state(state)])
        return graphdef, state

    def _module(self, params) -> EncoderDecoder:
        graphdef, state = self._abstract
        state = nnx.clone(state)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graphdef, state)

    def init(self, key: jax.Array):
        """Initial parameters; a nested dictionary of arrays of `param_dtype`."""
        return nnx.to_pure_dict(nnx.state(EncoderDecoder(self.config, rngs=nnx.Rngs(params=key))))

    def abstract_params(self):
        """The same tree with `jax.ShapeDtypeStruct` leaves; allocates nothing."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def logical_axes(self):
        """The same tree with a tuple of logical axis names for each parameter."""
        _, state = self._abstract
        axes = {path: variable.axes for path, variable in nnx.to_flat_state(state)}
        return nnx.traversals.unflatten_mapping(axes)

    @functools.cached_property
    def added_paths(self) -> frozenset[str]:
        """Paths of the parameters that the configuration's finetuning methods add to the plain model."""
        return _paths(self.abstract_params()) - _paths(Model(self.config.plain()).abstract_params())

    def with_fresh_prompt(self, params, key: jax.Array):
        """`params`, with a prompt that starts from the vocabulary sampled anew from their own token embedding.

        For parameters that come from a plain model's checkpoint; without such a prompt, `params` as they are.
        """
        if self.config.prompt is None or self.config.prompt.start != "vocabulary":
            return params
        table = params["token_embedder"]["embedding"]
        return {**params, "prompt": {"embedding": finetuning.prompt_from(self.config, table, key)}}

    def apply(self, params, batch, dropout_keys=None) -> jax.Array:
        """Logits float32 [b, t, v].

        Args:
          dropout_keys: PRNG keys [b], one for each row, or None for no dropout.
        """
        return self._module(params)(batch, dropout_keys)

    def encode(self, params, encoder_input_tokens: jax.Array) -> jax.Array:
        """int32 [b, s] -> [b, s, d]; [b, p + s, d] with a prompt of p vectors."""
        return self._module(params).encode(encoder_input_tokens)

    def init_cache(self, params, encoded: jax.Array, encoder_input_tokens: jax.Array, max_length: int):
        """A cache for `decode_step`: cross-attention keys and values [l, b, h, s, k], computed once, and room for
        `max_length` positions of self-attention [l, b, h, max_length, k]."""
        c = self.config
        module = self._module(params)
        cross = module.decoder.cross_keys_and_values(encoded)
        shape = (c.num_decoder_layers, encoded.shape[0], c.num_heads, max_length, c.head_dim)
        empty = jnp.zeros(shape, encoded.dtype)
        return {"cross": cross, "cross_mask": module.memory_mask(encoder_input_tokens), "self": (empty, empty)}

    def decode_step(self, params, cache, tokens: jax.Array, index: jax.Array):
        """Logits after one more token of every row.

        Args:
          tokens: int32 [b], the tokens at position `index` (0 is the start token, which is the padding id).
          index: int32 scalar, the same for all rows.

        Returns:
          logits float32 [b, v] for position `index`'s target, and the cache with the position written.
        """
        module = self._module(params)
        x = module.embed(tokens[:, None])
        hidden, self_cache = module.decoder.step(x, cache["cross"], cache["cross_mask"], cache["self"], index)
        return module.logits(hidden)[:, 0], {**cache, "self": self_cache}


def _paths(tree) -> frozenset[str]:
    return frozenset(path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0])
