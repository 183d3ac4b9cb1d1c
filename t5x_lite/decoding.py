"""Text out of a model: one cached loop, with the choice of the next token as its only variable part; and scoring.

Wherever a function takes `params`, it takes several parameter trees of one model too, and averages their logits. Beam
search has a loop of its own in `beam_search`.

Shapes: b batch, s source length, t target length, n sequences of a row, c choices, v vocabulary.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gin
from t5x_lite import incremental
from t5x_lite.beam_search import RULES, beam_search
from t5x_lite.errors import UserError

# (logits float32 [b, v], row_ids int32 [b], numbers int32 [b], position int32 scalar) -> tokens int32 [b], where
# `numbers` counts the sequences of a row.
Choice = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]

NEVER = -jnp.inf


def greedy(logits: jax.Array, row_ids: jax.Array, numbers: jax.Array, position: jax.Array) -> jax.Array:
    """The most probable token of each row; the lowest id among equals."""
    del row_ids, numbers, position
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def sample(
    logits: jax.Array,
    row_ids: jax.Array,
    numbers: jax.Array,
    position: jax.Array,
    *,
    seed: int | jax.Array = 0,
    temperature: float | jax.Array = 1.0,
    top_k: int = 0,
    top_p: float | jax.Array = 1.0,
) -> jax.Array:
    """A token drawn from softmax(logits / temperature), cut to the `top_k` and then the `top_p` most probable.

    `seed`, `temperature` and `top_p` may be arrays [b], of each row its own.

    The noise is a function of (seed, row id, number of the sequence, position) alone, so a row draws the same tokens
    in any batch and on any mesh. Drawing is the argmax of logits plus Gumbel noise (Gumbel-max); `top_p` is nucleus
    sampling (arXiv:1904.09751).
    """
    logits = logits / _column(temperature)
    if top_k:
        logits = _keep_top_k(logits, top_k)
    if isinstance(top_p, jax.Array) or top_p < 1.0:
        logits = _keep_top_p(logits, _column(top_p))
    return jnp.argmax(logits + noise(seed, row_ids, numbers, position, logits.shape[-1]), axis=-1).astype(jnp.int32)


def noise(seed: int | jax.Array, row_ids: jax.Array, numbers: jax.Array, position: jax.Array, v: int) -> jax.Array:
    """Gumbel noise float32 [b, v] of one position; each row's is a function of (seed, row id, number, position).

    `seed` may be an array [b], of each row its own.
    """

    def one(seed, *site):
        # Named, because only threefry gives the same numbers under vmap and any sharding.
        key = jax.random.key(seed, impl="threefry2x32")
        return jax.random.gumbel(functools.reduce(jax.random.fold_in, (*site, position), key), (v,))

    return jax.vmap(one)(jnp.broadcast_to(_seed(seed), row_ids.shape), row_ids, numbers)


def decode(
    model,
    params,
    encoder_input_tokens: jax.Array,
    max_length: int,
    eos_id: int = 1,
    *,
    choose: Choice = greedy,
    row_ids: jax.Array | None = None,
    decoder_prefix: jax.Array | None = None,
    num_return_sequences: int = 1,
    limits: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Decodes each row until EOS or `max_length` tokens; stops as soon as every row has ended.

    A row of nothing but padding is a filler: it takes no step of its own and gives zeros.

    Args:
      model: static under jit, like `max_length`, `eos_id`, `choose` and `num_return_sequences`.
      params: a parameter tree, or several of one model, whose logits are averaged.
      encoder_input_tokens: int32 [b, s], 0 where padded.
      choose: picks the next tokens.
      row_ids: int32 [b], what a row is called in the choice's noise; its place in the batch unless given.
      decoder_prefix: int32 [b, p], tokens that each row begins with, 0-padded at the end.
      num_return_sequences: n, sequences of each row, which the choice tells apart by their number.
      limits: int32 [b], a maximal length of each row's own, at most `max_length`.

    Returns:
      ids int32 [b, max_length], the prefix and EOS included and 0 after it; and the sum float32 [b] of the natural-log
      probabilities that the model, whatever the choice's temperature, gives to the tokens after the prefix, up to and
      including EOS. Of n > 1 sequences ids [b, n, max_length] and scores [b, n], the best score first.

    Raises:
      UserError: the prefix is longer than `max_length`.
    """
    b, n = encoder_input_tokens.shape[0], num_return_sequences
    model, params = incremental.prepared(model, params)
    if row_ids is None:
        row_ids = jnp.arange(b, dtype=jnp.int32)
    row_ids, numbers = jnp.repeat(row_ids, n), jnp.tile(jnp.arange(n, dtype=jnp.int32), b)
    start = incremental.start(model, params, encoder_input_tokens, max_length, n, decoder_prefix)
    forced = jnp.repeat(start.forced, n, axis=0)
    limits = None if limits is None else jnp.repeat(limits, n)

    def running(state):
        position, *_, done, _ = state
        return (position < max_length) & ~jnp.all(done)

    def step(state):
        position, last, ids, scores, done, cache = state
        logits, cache = model.decode_step(params, cache, last, position)
        logits = logits.astype(jnp.float32)
        given = jax.lax.dynamic_index_in_dim(forced, position, axis=1, keepdims=False)
        is_given = given > 0
        tokens = jnp.where(is_given, given, choose(logits, row_ids, numbers, position))
        tokens = jnp.where(done, 0, tokens)
        scores = scores + jnp.where(done | is_given, 0.0, _log_probability(logits, tokens))
        ids = jax.lax.dynamic_update_slice_in_dim(ids, tokens[:, None], position, axis=1)
        done = done | ((tokens == eos_id) & ~is_given)
        if limits is not None:
            done = done | (position + 1 >= limits)
        return position + 1, tokens, ids, scores, done, cache

    state = (
        start.position,
        jnp.repeat(start.last, n),
        jnp.repeat(start.ids, n, axis=0),
        jnp.zeros(b * n, jnp.float32),
        jnp.repeat(start.fillers, n),
        start.cache,
    )
    _, _, ids, scores, _, _ = jax.lax.while_loop(running, step, state)
    if n == 1:
        return ids, scores
    ids, scores = ids.reshape(b, n, max_length), scores.reshape(b, n)
    order = jnp.argsort(-scores, axis=1, stable=True)
    return jnp.take_along_axis(ids, order[:, :, None], axis=1), jnp.take_along_axis(scores, order, axis=1)


def score(model, params, batch: dict[str, jax.Array]) -> jax.Array:
    """Log-likelihood of given targets: float32 [b], natural log, summed over a row's tokens.

    Tokens are weighted by `decoder_loss_weights` where the batch has it, otherwise every token but padding counts.
    The examples of a packed row are added up.

    Args:
      params: a parameter tree, or several of one model, whose logits are averaged.
      batch: what `Model.apply` takes, and `decoder_target_tokens` int32 [b, t].
    """
    batch = model.arranged(batch)
    targets = batch["decoder_target_tokens"]
    weights = batch.get("decoder_loss_weights")
    weights = targets > 0 if weights is None else weights
    logits = incremental.of(model, params).apply(params, batch).astype(jnp.float32)
    return jnp.sum(_log_probability(logits, targets) * weights, axis=-1)


def rank(model, params, encoder_input_tokens: jax.Array, choices: jax.Array) -> jax.Array:
    """Log-likelihood of each choice, natural log, summed over its tokens: float32 [b, c].

    The encoder and the cross-attention's keys and values are computed once for each input, and one position of all
    choices after the other: logits of [b * c, t, v] at a time would be more than everything else together.

    Args:
      model: static under jit.
      params: a parameter tree, or several of one model, whose logits are averaged.
      encoder_input_tokens: int32 [b, s], 0 where padded.
      choices: int32 [c, t], the same for all rows, or [b, c, t]; 0-padded at the end. Of nothing but padding: no
        choice, which gets -inf.
    """
    b = encoder_input_tokens.shape[0]
    choices = jnp.broadcast_to(choices, (b, *choices.shape[-2:]))
    _, c, t = choices.shape
    model, params = incremental.prepared(model, params)
    start = incremental.start(model, params, encoder_input_tokens, t, c)
    targets = choices.reshape(b * c, t)

    def step(carry, xs):
        cache, scores = carry
        position, last, target = xs
        logits, cache = model.decode_step(params, cache, last, position)
        return (cache, scores + jnp.where(target > 0, _log_probability(logits.astype(jnp.float32), target), 0.0)), None

    given = jnp.concatenate([jnp.repeat(start.last, c)[:, None], targets[:, :-1]], axis=1)
    carry = (start.cache, jnp.zeros(b * c, jnp.float32))
    (_, scores), _ = jax.lax.scan(step, carry, (jnp.arange(t), given.T, targets.T))
    return jnp.where(jnp.any(choices > 0, axis=-1), scores.reshape(b, c), NEVER)


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class Decoder:
    """How to decode, as gin binds it; called, it decodes.

    Attributes:
      max_length: tokens at most, EOS and the decoder's prefix included.
      method: "greedy", "sample" or "beam".
      temperature: for sampling, like the next three; logits are divided by it.
      top_k: only the k most probable tokens; 0 for all.
      top_p: only the most probable tokens that together reach this probability; 1 for all.
      seed: of the noise.
      num_beams: for beam search, like the next two; how many beginnings are followed together.
      length_penalty: the exponent alpha, 0 for none; the larger, the longer the answers. The paper has 0.6.
      beam_rule: "t5x" or "huggingface": how beams are scored and when they end (see `beam_search`).
      num_return_sequences: answers for each row, the best first; with "beam" at most `num_beams`, with "greedy" one.

    Raises:
      UserError: a value that makes no sense.
    """

    max_length: int = 128
    method: str = "greedy"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    num_beams: int = 4
    length_penalty: float = 0.6
    beam_rule: str = "t5x"
    num_return_sequences: int = 1

    def __post_init__(self):
        most = {"beam": self.num_beams, "greedy": 1}.get(self.method, self.num_return_sequences)
        for ok, remedy in (
            (self.max_length >= 1, "max_length must be at least 1"),
            (self.method in ("greedy", "sample", "beam"), 'method must be "greedy", "sample" or "beam"'),
            (self.temperature > 0, 'temperature must be above 0 (method = "greedy" is the limit at 0)'),
            (self.top_k >= 0, "top_k must be at least 1, or 0 for all tokens"),
            (0 < self.top_p <= 1, "top_p must be above 0 and at most 1"),
            (self.num_beams >= 1, "num_beams must be at least 1"),
            (math.isfinite(self.length_penalty), "length_penalty must be a finite number"),
            (self.beam_rule in RULES, f"beam_rule must be one of {', '.join(RULES)}"),
            (
                1 <= self.num_return_sequences <= most,
                f"num_return_sequences must be at least 1, and with method = {self.method!r} at most {most}",
            ),
        ):
            if not ok:
                raise UserError(f"Decoder.{remedy}, not {getattr(self, remedy.split()[0])!r}")

    def program(self) -> "Decoder":
        """The decoder to compile; it, given this one's `settings`, answers as this one does.

        It is the same for all decoders that differ only in what can be told to a compiled program, and for all maximal
        lengths up to some: who tries temperatures, seeds and lengths does not wait for a compiler each time.
        """
        beam, sample = self.method == "beam", self.method == "sample"
        return dataclasses.replace(
            self,
            max_length=_capacity(self.max_length),
            temperature=1.0,
            top_k=self.top_k if sample else 0,
            top_p=0.5 if sample and self.top_p < 1 else 1.0,
            seed=0,
            num_beams=self.num_beams if beam else 1,
            length_penalty=0.0,
            beam_rule=self.beam_rule if beam else next(iter(RULES)),
        )

    def settings(self) -> "Settings":
        """What is told to the compiled `program`."""
        settings: dict[str, Any] = {"max_length": np.int32(self.max_length)}
        if self.method == "beam":
            settings["length_penalty"] = np.float32(self.length_penalty)
        elif self.method == "sample":
            settings |= {"seed": _seed(self.seed), "temperature": np.float32(self.temperature)}
            if self.top_p < 1:
                settings["top_p"] = np.float32(self.top_p)
        return settings

    def __call__(
        self,
        model,
        params,
        encoder_input_tokens,
        eos_id: int = 1,
        row_ids=None,
        decoder_prefix=None,
        settings: "Settings | None" = None,
    ):
        """`decode`, or with method "beam" `beam_search`, with these settings.

        Args:
          settings: instead of this decoder's own, those of decoders that have it as their `program`: of each row, [b];
            with method "beam" scalars, for all rows.

        Returns:
          ids int32 [b, max_length] and scores float32 [b]; with num_return_sequences = n > 1 ids [b, n, max_length]
          and scores [b, n], the best first.
        """
        n, given = self.num_return_sequences, settings or {}
        if self.method == "beam":
            ids, scores = beam_search(
                model,
                params,
                encoder_input_tokens,
                self.max_length,
                eos_id,
                num_beams=self.num_beams,
                length_penalty=given.get("length_penalty", self.length_penalty),
                rule=self.beam_rule,
                decoder_prefix=decoder_prefix,
                limit=given.get("max_length"),
            )
            return (ids[:, 0], scores[:, 0]) if n == 1 else (ids[:, :n], scores[:, :n])
        choose = greedy
        if self.method == "sample":
            own: dict[str, Any] = {"seed": self.seed, "temperature": self.temperature, "top_p": self.top_p}
            own |= {name: jnp.repeat(given[name], n) for name in own if name in given}
            choose = functools.partial(sample, top_k=self.top_k, **own)
        return decode(
            model,
            params,
            encoder_input_tokens,
            self.max_length,
            eos_id,
            choose=choose,
            row_ids=row_ids,
            decoder_prefix=decoder_prefix,
            num_return_sequences=n,
            limits=given.get("max_length"),
        )


# Name of one of a decoder's attributes -> its value, or those of several rows.
Settings = Mapping[str, Any]


def _capacity(max_length: int) -> int:
    """The positions to compile for, where `max_length` are to be decoded: few numbers, and not many too many."""
    return max(16, 1 << (max_length - 1).bit_length()) if max_length <= 64 else -(-max_length // 64) * 64


def _seed(seed: int | np.ndarray | jax.Array):
    """Of a whole number the 32 bits of it that JAX takes."""
    return np.uint32(seed & 0xFFFFFFFF) if isinstance(seed, int) else seed


def _column(x: float | jax.Array) -> jax.Array:
    """A value of all rows or of each, to go with [b, v]."""
    return jnp.asarray(x)[..., None]


def _log_probability(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """logits [..., v], tokens [...] -> log softmax(logits)[tokens], without an array of log-probabilities."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def _keep_top_k(logits: jax.Array, k: int) -> jax.Array:
    kth = incremental.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits < kth, NEVER, logits)


def _keep_top_p(logits: jax.Array, p: float | jax.Array) -> jax.Array:
    """Keeps the shortest run of most probable tokens that holds p: always the first, and all that equal the last."""
    descending = -jnp.sort(-logits, axis=-1)
    before = jnp.cumsum(jax.nn.softmax(descending, axis=-1), axis=-1) - jax.nn.softmax(descending, axis=-1)
    last = jnp.min(jnp.where(before < p, descending, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < last, NEVER, logits)
