"""Who may look at whom: told by what is real, by segments and by order, and made an array only where one is needed."""

import dataclasses

import jax
import jax.numpy as jnp

# The id of keys that nobody sees; no segment has it.
NOBODY = -1


@dataclasses.dataclass(frozen=True)
class Mask:
    """Of q queries and m keys.

    Attributes:
      real: bool [b, m], False at keys that nobody may see (padding); None for no such keys.
      segments: int32 [b, q] and [b, m]: within a packed example only; None where rows are not packed.
      causal: no query sees a key after its own place.
    """

    real: jax.Array | None = None
    segments: tuple[jax.Array, jax.Array] | None = None
    causal: bool = False

    def array(self, q: int, m: int) -> jax.Array:
        """bool, broadcastable to [b, h, q, m]: True where a query may look."""
        mask = jnp.ones((1, 1, 1, 1), bool) if self.real is None else self.real[:, None, None, :]
        if self.segments is not None:
            queries, keys = self.segments
            mask = mask & (queries[:, None, :, None] == keys[:, None, None, :])
        return mask & causal(q, m) if self.causal else mask

    def ids(self, b: int, q: int, m: int) -> tuple[jax.Array, jax.Array]:
        """The same but for `causal`: int32 [b, q] and [b, m], a query seeing the keys that have its own id."""
        queries, keys = self.segments or (jnp.zeros((b, q), jnp.int32), jnp.zeros((b, m), jnp.int32))
        return queries, keys if self.real is None else jnp.where(self.real, keys, NOBODY)


def of_segments(queries: jax.Array | None, keys: jax.Array | None) -> tuple[jax.Array, jax.Array] | None:
    """For `Mask.segments`, from what a batch may have."""
    return None if queries is None or keys is None else (queries, keys)


def causal(q: int, m: int) -> jax.Array:
    """bool [1, 1, q, m]."""
    return jnp.tril(jnp.ones((q, m), bool))[None, None]
