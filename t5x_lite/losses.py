"""Cross-entropy over the vocabulary with z-loss and label smoothing, and the sums that metrics are made of."""

import dataclasses
import math

import jax
import jax.numpy as jnp

import gin
from t5x_lite.errors import UserError


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class Loss:
    """What training minimises: the mean over real target tokens of cross-entropy + z_loss * log(Z)^2.

    Attributes:
      z_loss: keeps the softmax's normaliser Z near 1 (T5: 1e-4; Mesh TensorFlow and T5X).
      label_smoothing: share of the probability spread over the wrong tokens; the loss of a perfect prediction stays 0.
    """

    z_loss: float = 1e-4
    label_smoothing: float = 0.0

    def __post_init__(self):
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UserError(f"Loss.label_smoothing must be in [0, 1), not {self.label_smoothing!r}")

    def sums(self, logits: jax.Array, targets: jax.Array, weights: jax.Array) -> dict[str, jax.Array]:
        """Sums over tokens; dividing them by `weights` gives means.

        Args:
          logits: float [b, t, v], float32 at least.
          targets: int32 [b, t].
          weights: [b, t], 1 for real targets and 0 for padding.

        Returns:
          Scalars: `loss` (what is minimised), `cross_entropy` (plain, in nats), `correct`, `weights`.
        """
        weights = weights.astype(logits.dtype)
        vocabulary = logits.shape[-1]
        log_z = jax.nn.logsumexp(logits, axis=-1)
        # A masked sum, not a gather: it stays local where the vocabulary is sharded, and fuses without a one-hot.
        is_target = jax.lax.broadcasted_iota(targets.dtype, logits.shape, 2) == targets[..., None]
        target_logit = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
        cross_entropy = log_z - target_logit
        loss = cross_entropy
        if self.label_smoothing:
            confidence = 1.0 - self.label_smoothing
            low = self.label_smoothing / (vocabulary - 1)
            others = jnp.sum(logits, axis=-1) - target_logit
            # The weights of target and others sum to one, so log Z is subtracted once.
            loss = log_z - confidence * target_logit - low * others
            loss += confidence * math.log(confidence) + self.label_smoothing * math.log(low)
        loss += self.z_loss * log_z**2
        correct = jnp.argmax(logits, axis=-1) == targets
        return {
            "loss": jnp.sum(loss * weights),
            "cross_entropy": jnp.sum(cross_entropy * weights),
            "correct": jnp.sum(correct * weights),
            "weights": jnp.sum(weights),
        }
