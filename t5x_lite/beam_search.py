"""Beam search: the k most promising beginnings of each row are followed together, in one cached loop.

Two rules are known by name. They agree on how beams grow: of the continuations of a row's k live beams the 2k most
probable are candidates, those of them that end move to the finished beams, and the k best others live on. They differ
in how a finished beam is scored, which candidates finish, and when a row is done. A row that has no finished beam at
the maximal length gives its live ones, with plain log P as scores.

Shapes: b batch, s source length, t target length, k beams, v vocabulary.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from t5x_lite import incremental

# The score of a place among the finished beams that nothing has taken; finite and of this size as in T5X.
EMPTY = -1e7


@dataclasses.dataclass(frozen=True)
class T5XRule:
    """The paper's and T5X's: score log P / ((5 + length) / 6)^alpha (Wu et al. 2016, arXiv:1609.08144, section 7),
    where a prefix counts as length; every candidate that ends is finished; done when no live beam could reach the
    worst finished one even at the largest penalty.

    T5X's decoding.py, https://github.com/google-research/t5x, is the source of what the paper leaves open.
    """

    alpha: float | jax.Array
    max_length: int | jax.Array

    def score(self, log_probs, length, given):
        """log_probs float32 [b, n]; length, of all tokens, int32 scalar; given, forced tokens, int32 [b, 1]."""
        del given
        return log_probs / self._penalty(length)

    def may_finish(self, ends, position):
        """ends bool [b, 2k], of candidates, best first -> those that finish."""
        del position
        return ends

    def cannot_improve(self, live, finished, length, given):
        """live float32 [b, k], plain, and finished [b, k], scores; both best first -> bool [b]."""
        del length, given
        # T5X counts the start token too where it looks ahead.
        return finished[:, -1] > live[:, 0] / self._penalty(self.max_length + 1)

    def _penalty(self, length):
        return ((5.0 + length) / 6.0) ** self.alpha


@dataclasses.dataclass(frozen=True)
class HuggingFaceRule:
    """That of transformers' `generate(early_stopping=False)`: score log P / length^alpha, without start token and
    prefix; only the best k candidates may finish, and at the maximal length all of them do; done when the best live
    beam, were it to end at once, would not be better than the worst finished one.

    https://github.com/huggingface/transformers, generation/utils.py, version 5.23.
    """

    alpha: float | jax.Array
    max_length: int | jax.Array

    def score(self, log_probs, length, given):
        return log_probs / jnp.maximum(length - given, 1).astype(jnp.float32) ** self.alpha

    def may_finish(self, ends, position):
        best = jnp.arange(ends.shape[1]) < ends.shape[1] // 2
        return (ends | (position == self.max_length - 1)) & best

    def cannot_improve(self, live, finished, length, given):
        return finished[:, -1] >= self.score(live[:, :1], length, given)[:, 0]


RULES: dict[str, type[Any]] = {"t5x": T5XRule, "huggingface": HuggingFaceRule}


def beam_search(
    model,
    params,
    encoder_input_tokens: jax.Array,
    max_length: int,
    eos_id: int = 1,
    *,
    num_beams: int = 4,
    length_penalty: float | jax.Array = 0.6,
    rule: str = "t5x",
    decoder_prefix: jax.Array | None = None,
    limit: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The k best continuations that beam search finds for each row, best first.

    T5X returns the same beams worst first. A row of nothing but padding is a filler: zeros.

    Args:
      model: static under jit, like `max_length`, `eos_id`, `num_beams` and `rule`.
      params: a parameter tree, or several of one model, whose logits are averaged.
      encoder_input_tokens: int32 [b, s], 0 where padded.
      num_beams: k.
      length_penalty: alpha of the rule; 0 for none.
      rule: one of `RULES`.
      decoder_prefix: int32 [b, p], tokens that each row begins with, 0-padded at the end.
      limit: int32 scalar, the maximal length where `max_length` is only what there is room for.

    Returns:
      ids int32 [b, k, max_length], the prefix and EOS included and 0 after it; and scores float32 [b, k] as the rule
      has them, of the tokens after the prefix. Where fewer than k beams were found, the last have the score `EMPTY`
      and no ids.

    Raises:
      UserError: the prefix is longer than `max_length`.
    """
    b, k = encoder_input_tokens.shape[0], num_beams
    limit = max_length if limit is None else limit
    rule = RULES[rule](length_penalty, limit)
    model, params = incremental.prepared(model, params)
    start = incremental.start(model, params, encoder_input_tokens, max_length, k, decoder_prefix)
    forced, fillers = start.forced, start.fillers
    given = jnp.sum(forced > 0, axis=1, keepdims=True)

    def running(state):
        position, *_, done, _ = state
        return (position < limit) & ~jnp.all(done)

    def step(state):
        position, live, live_ids, finished, finished_ids, done, cache = state
        last = jax.lax.dynamic_index_in_dim(live_ids, position - 1, axis=2, keepdims=False)
        last = jnp.where(position > start.position, last, start.last[:, None])
        logits, cache = model.decode_step(params, cache, last.reshape(b * k), position)
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(b, k, -1) + live[:, :, None]
        v = log_probs.shape[-1]
        candidates, places = incremental.top_k(log_probs.reshape(b, k * v), 2 * k)
        sources, tokens = places // v, places % v

        # Of 2k candidates at least k do not end: each beam has one EOS.
        ends = tokens == eos_id
        alive, chosen = incremental.top_k(jnp.where(ends, -jnp.inf, candidates), k)
        parents, heirs = _pick(sources, chosen), _pick(tokens, chosen)
        # In a row whose token is given every beam takes it, for no cost: they stay copies of each other, of which
        # the first alone has a probability.
        token = jax.lax.dynamic_slice_in_dim(forced, position, 1, axis=1)
        is_given = token > 0
        new_live = jnp.where(is_given, live, alive)
        parents = jnp.where(is_given, jnp.arange(k), parents)
        new_ids = _append(_pick(live_ids, parents), jnp.where(is_given, token, heirs), position)

        # Rows that are done take nothing more, so a row's result does not depend on how long others go on.
        finishes = rule.may_finish(ends, position) & ~is_given & ~done[:, None] & (candidates > EMPTY)
        scores = jnp.where(finishes, rule.score(candidates, position + 1, given), -jnp.inf)
        candidate_ids = _append(_pick(live_ids, sources), tokens, position)
        finished, kept = incremental.top_k(jnp.concatenate([finished, scores], axis=1), k)
        finished_ids = _pick(jnp.concatenate([finished_ids, candidate_ids], axis=1), kept)

        done = done | (rule.cannot_improve(new_live, finished, position + 1, given) & ~is_given[:, 0])
        return position + 1, new_live, new_ids, finished, finished_ids, done, incremental.reorder(cache, parents)

    # All beams are the same at first: only one may have successors.
    live = jnp.full((b, k), -jnp.inf, jnp.float32).at[:, 0].set(0.0)
    ids = jnp.broadcast_to(start.ids[:, None], (b, k, max_length))
    finished = jnp.full((b, k), EMPTY, jnp.float32)
    state = (start.position, live, ids, finished, jnp.zeros_like(ids), fillers, start.cache)
    _, live, live_ids, finished, finished_ids, _, _ = jax.lax.while_loop(running, step, state)
    none = finished[:, :1] <= EMPTY
    scores, ids = jnp.where(none, live, finished), jnp.where(none[:, :, None], live_ids, finished_ids)
    ids = jnp.where(scores[:, :, None] > EMPTY, ids, 0)
    return jnp.where(fillers[:, None, None], 0, ids), jnp.where(fillers[:, None], 0.0, jnp.maximum(scores, EMPTY))


def _pick(x: jax.Array, places: jax.Array) -> jax.Array:
    """x [b, n, …], places int32 [b, m] -> [b, m, …]."""
    return jax.vmap(lambda row, place: row[place])(x, places)


def _append(ids: jax.Array, tokens: jax.Array, position: jax.Array) -> jax.Array:
    """ids [b, n, t] with tokens [b, n] at `position`."""
    return jax.lax.dynamic_update_slice_in_dim(ids, tokens[:, :, None], position, axis=2)
