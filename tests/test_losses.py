"""The loss against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.errors import UserError
from t5x_lite.losses import Loss


@pytest.mark.parametrize("z_loss, smoothing", [(0.0, 0.0), (1e-2, 0.0), (0.0, 0.1), (1e-2, 0.3)])
def test_the_sums_are_those_of_the_definition(z_loss, smoothing):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 5, 11)) * 3
    targets = np.where(rng.random((3, 5)) < 0.5, logits.argmax(-1), rng.integers(0, 11, (3, 5)))
    weights = rng.integers(0, 2, (3, 5))
    with jax.enable_x64(True):
        sums = Loss(z_loss, smoothing).sums(jnp.asarray(logits), jnp.asarray(targets), jnp.asarray(weights))
    log_z = np.log(np.exp(logits).sum(-1))
    log_p = logits - log_z[..., None]
    soft = np.full(logits.shape, smoothing / 10)
    np.put_along_axis(soft, targets[..., None], 1 - smoothing, axis=-1)
    entropy = np.where(soft > 0, soft * np.log(np.maximum(soft, 1e-300)), 0).sum(-1)
    # Cross-entropy with the smoothed targets, less what even a perfect prediction would cost.
    loss = -(soft * log_p).sum(-1) + entropy + z_loss * log_z**2
    plain = -np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(float(sums["loss"]), (loss * weights).sum(), rtol=1e-12)
    np.testing.assert_allclose(float(sums["cross_entropy"]), (plain * weights).sum(), rtol=1e-12)
    assert float(sums["correct"]) == ((logits.argmax(-1) == targets) * weights).sum()
    assert float(sums["weights"]) == weights.sum()


def test_smoothing_out_of_range_is_refused():
    with pytest.raises(UserError, match="label_smoothing"):
        Loss(label_smoothing=1.0)
