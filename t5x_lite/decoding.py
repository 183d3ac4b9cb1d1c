"""Text out of a model: one cached loop, with the choice of the next token as its only variable part; and scoring.

Shapes: b batch, s source length, t target length, v vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable

import gin
import jax
import jax.numpy as jnp

from t5x_lite.errors import UserError

# (logits float32 [b, v], row_ids int32 [b], position int32 scalar) -> tokens int32 [b]
Choice = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

NEVER = -jnp.inf


def greedy(logits: jax.Array, row_ids: jax.Array, position: jax.Array) -> jax.Array:
    """The most probable token of each row; the lowest id among equals."""
    del row_ids, position
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def sample(logits: jax.Array, row_ids: jax.Array, position: jax.Array, *, seed: int = 0, temperature: float = 1.0,
           top_k: int = 0, top_p: float = 1.0) -> jax.Array:
    """A token drawn from softmax(logits / temperature), cut to the `top_k` and then the `top_p` most probable.

    The noise is a function of (seed, row id, position) alone, so a row draws the same tokens in any batch and on any
    mesh. Drawing is the argmax of logits plus Gumbel noise (Gumbel-max); `top_p` is nucleus sampling
    (arXiv:1904.09751).
    """
    logits = logits / temperature
    if top_k:
        logits = _keep_top_k(logits, top_k)
    if top_p < 1.0:
        logits = _keep_top_p(logits, top_p)
    # Named, because only threefry gives the same numbers under vmap and any sharding.
    key = jax.random.key(seed, impl="threefry2x32")

    def noise(row_id):
        return jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(key, row_id), position), logits.shape[1:])

    return jnp.argmax(logits + jax.vmap(noise)(row_ids), axis=-1).astype(jnp.int32)


def decode(model, params, encoder_input_tokens: jax.Array, max_length: int, eos_id: int = 1, *,
           choose: Choice = greedy, row_ids: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Decodes each row until EOS or `max_length` tokens; stops as soon as every row has ended.

    A row of nothing but padding is a filler: it takes no step of its own and gives zeros.

    Args:
      model: static under jit, like `max_length`, `eos_id` and `choose`.
      encoder_input_tokens: int32 [b, s], 0 where padded.
      choose: picks the next tokens.
      row_ids: int32 [b], what a row is called in the choice's noise; its place in the batch unless given.

    Returns:
      ids int32 [b, max_length], EOS included and 0 after it; and the sum float32 [b] of the natural-log
      probabilities that the model, whatever the choice's temperature, gives to the tokens up to and including EOS.
    """
    b = encoder_input_tokens.shape[0]
    if row_ids is None:
        row_ids = jnp.arange(b, dtype=jnp.int32)
    encoded = model.encode(params, encoder_input_tokens)
    cache = model.init_cache(params, encoded, encoder_input_tokens, max_length)  # cross-attention is projected here

    def running(state):
        position, *_, done, _ = state
        return (position < max_length) & ~jnp.all(done)

    def step(state):
        position, last, ids, scores, done, cache = state
        logits, cache = model.decode_step(params, cache, last, position)
        logits = logits.astype(jnp.float32)
        tokens = jnp.where(done, 0, choose(logits, row_ids, position))
        scores = scores + jnp.where(done, 0.0, _log_probability(logits, tokens))
        ids = jax.lax.dynamic_update_slice_in_dim(ids, tokens[:, None], position, axis=1)
        return position + 1, tokens, ids, scores, done | (tokens == eos_id), cache

    start = (
        jnp.int32(0),
        model.first_tokens(encoder_input_tokens),
        jnp.zeros((b, max_length), jnp.int32),
        jnp.zeros(b, jnp.float32),
        jnp.all(encoder_input_tokens == 0, axis=-1),
        cache,
    )
    _, _, ids, scores, _, _ = jax.lax.while_loop(running, step, start)
    return ids, scores


def score(model, params, batch: dict[str, jax.Array]) -> jax.Array:
    """Log-likelihood of given targets: float32 [b], natural log, summed over a row's tokens.

    Tokens are weighted by `decoder_loss_weights` where the batch has it, otherwise every token but padding counts.
    The examples of a packed row are added up.

    Args:
      batch: what `Model.apply` takes, and `decoder_target_tokens` int32 [b, t].
    """
    batch = model.arranged(batch)
    targets = batch["decoder_target_tokens"]
    weights = batch.get("decoder_loss_weights")
    weights = targets > 0 if weights is None else weights
    logits = model.apply(params, batch).astype(jnp.float32)
    return jnp.sum(_log_probability(logits, targets) * weights, axis=-1)


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class Decoder:
    """How to decode, as gin binds it; called, it decodes.

    Attributes:
      max_length: tokens at most, EOS included.
      method: "greedy" or "sample". The rest is for sampling.
      temperature: logits are divided by it.
      top_k: only the k most probable tokens; 0 for all.
      top_p: only the most probable tokens that together reach this probability; 1 for all.
      seed: of the noise.

    Raises:
      UserError: a value that makes no sense.
    """

    max_length: int = 128
    method: str = "greedy"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for ok, remedy in (
            (self.max_length >= 1, "max_length must be at least 1"),
            (self.method in ("greedy", "sample"), 'method must be "greedy" or "sample"'),
            (self.temperature > 0, 'temperature must be above 0 (method = "greedy" is the limit at 0)'),
            (self.top_k >= 0, "top_k must be at least 1, or 0 for all tokens"),
            (0 < self.top_p <= 1, "top_p must be above 0 and at most 1"),
        ):
            if not ok:
                raise UserError(f"Decoder.{remedy}, not {getattr(self, remedy.split()[0])!r}")

    @property
    def choice(self) -> Choice:
        if self.method == "greedy":
            return greedy
        return functools.partial(sample, seed=self.seed, temperature=self.temperature, top_k=self.top_k,
                                 top_p=self.top_p)

    def __call__(self, model, params, encoder_input_tokens, eos_id: int = 1, row_ids=None):
        """`decode` with these settings."""
        return decode(model, params, encoder_input_tokens, self.max_length, eos_id, choose=self.choice,
                      row_ids=row_ids)


def _log_probability(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """logits [..., v], tokens [...] -> log softmax(logits)[tokens], without an array of log-probabilities."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def _keep_top_k(logits: jax.Array, k: int) -> jax.Array:
    kth = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits < kth, NEVER, logits)


def _keep_top_p(logits: jax.Array, p: float) -> jax.Array:
    """Keeps the shortest run of most probable tokens that holds p: always the first, and all that equal the last."""
    descending = -jnp.sort(-logits, axis=-1)
    before = jnp.cumsum(jax.nn.softmax(descending, axis=-1), axis=-1) - jax.nn.softmax(descending, axis=-1)
    last = jnp.min(jnp.where(before < p, descending, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < last, NEVER, logits)
