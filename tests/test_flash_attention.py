"""Attention by tiles equals attention by arrays: loss and every gradient, packed, padded, causal, dropped, sharded.

The kernels are interpreted here; a GPU runs the same ones (tests/benchmarks/attention.py compares them there).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from flax import nnx

from t5x_lite.losses import Loss
from t5x_lite.models import Model, T5Config, attention, flash_attention
from t5x_lite.models.layers import dropout
from t5x_lite.models.masks import Mask
from t5x_lite.partitioning import leaves_by_path
from t5x_lite.trainer import loss_and_grads

CONFIG = T5Config(
    vocab_size=64,
    emb_dim=32,
    num_heads=2,
    head_dim=16,
    mlp_dim=48,
    num_encoder_layers=2,
    num_decoder_layers=2,
    attention="arrays",
)


@pytest.fixture(autouse=True)
def several_tiles(monkeypatch):
    """Rows and columns of tiles that lengths here neither fit nor fill."""
    for name in ("FORWARD", "BACKWARD_KEYS", "BACKWARD_QUERIES", "BACKWARD_BIAS"):
        monkeypatch.setattr(flash_attention, name, (16, 32, 4, 2) if name == "FORWARD" else (32, 16, 4, 2))


def packed_batch(s=40, t=21):
    batch = tiny_models.make_batch(8, s, t, v=64)
    batch["encoder_segment_ids"] = np.where(batch["encoder_input_tokens"] > 0, 1 + (np.arange(s) > s // 3), 0)
    batch["decoder_segment_ids"] = np.where(batch["decoder_target_tokens"] > 0, 1 + (np.arange(t) > t // 3), 0)
    return {name: array.astype(np.int32) for name, array in batch.items()}


def results(config, batch, partitioner=None):
    """Loss and gradients by name, with one set of parameters for all ways to attend."""
    params = tiny_models.random_params(config)
    model = Model(config)
    step = jax.jit(lambda params, batch: loss_and_grads(model, Loss(), params, batch, jnp.int32(0), 0))
    if partitioner is None:
        grads, sums = step(params, batch)
    else:
        with partitioner.activate():
            params = jax.device_put(params, partitioner.tree(params, model.logical_axes()))
            grads, sums = step(params, jax.device_put(batch, partitioner.batch))
    return float(sums["loss"]), jax.tree.map(np.asarray, leaves_by_path(grads))


def assert_same(config, batch, partitioner=None):
    loss, grads = results(config, batch)
    tiled_loss, tiled = results(dataclasses.replace(config, attention="tiles"), batch, partitioner)
    assert tiled_loss == pytest.approx(loss, rel=1e-6)
    assert tiled.keys() == grads.keys()
    for name, expected in grads.items():
        off = np.linalg.norm(tiled[name] - expected) / np.linalg.norm(expected)
        assert off < 1e-5, f"{name}: {off}"


def test_padded_rows():
    assert_same(CONFIG, tiny_models.make_batch(8, 40, 21, v=64))


def test_packed_rows_in_an_unrolled_model():
    assert_same(dataclasses.replace(CONFIG, scan_layers=False), packed_batch())


def test_packed_rows_on_a_mesh():
    assert_same(CONFIG, packed_batch(), tiny_models.mesh((2, 2, 2)))


def test_dropout_drops_the_same_weights():
    batch = packed_batch()
    assert_same(dataclasses.replace(CONFIG, dropout_rate=0.3), batch)
    assert results(dataclasses.replace(CONFIG, dropout_rate=0.3), batch)[0] != results(CONFIG, batch)[0]


def test_dropped_values_are_dropped_weights():
    """What T5 drops is a weight, the same key's for all queries of a head."""
    config = dataclasses.replace(CONFIG, dropout_rate=0.5)
    layer = attention.Attention(config, rngs=nnx.Rngs(params=0))
    rng = np.random.default_rng(0)
    queries, keys, values = (jnp.asarray(rng.standard_normal((4, 2, n, 16)), jnp.float32) for n in (5, 7, 7))
    rows = jax.vmap(jax.random.key)(jnp.arange(4))
    weights = dropout(jax.nn.softmax(jnp.einsum("bhqk,bhmk->bhqm", queries, keys)), 0.5, rows)
    assert 0.3 < (weights == 0).mean() < 0.7
    expected = layer.out(jnp.einsum("bhqm,bhmk->bqhk", weights, values).reshape(4, 5, 32))
    dropped = layer.attend(queries, keys, values, jnp.ones((1, 1, 1, 1), bool), None, rows)
    np.testing.assert_allclose(dropped, expected, atol=1e-5)


@pytest.mark.parametrize("architecture", ["causal_lm", "prefix_lm"])
def test_language_models(architecture):
    config = dataclasses.replace(CONFIG, num_encoder_layers=0, architecture=architecture, relpos_per_layer=True)
    assert_same(config, tiny_models.make_batch(8, 30, 21, v=64))


def test_rematerialised():
    assert_same(dataclasses.replace(CONFIG, remat="full"), packed_batch())


@pytest.mark.parametrize("q, m", [(5, 70), (33, 1), (64, 64)])
def test_rows_that_see_nothing_are_the_same_numbers(q, m):
    """Nobody reads them, but they must be finite; keys that only fill a tile take no part in them."""
    rng = np.random.default_rng(q)
    queries, keys, values = (jnp.asarray(rng.standard_normal((2, 3, n, 16)), jnp.float32) for n in (q, m, m))
    bias = jnp.asarray(rng.standard_normal((3, q, m)), jnp.float32)
    mask = Mask(jnp.asarray(rng.integers(0, 2, (2, m)) * [[1], [0]], bool))
    tiled = flash_attention.attend(queries, keys, values, bias, mask)
    scores = jnp.einsum("bhqk,bhmk->bhqm", queries, keys) + bias
    weights = jax.nn.softmax(jnp.where(mask.array(q, m), scores, attention.MASKED))
    np.testing.assert_allclose(tiled, jnp.einsum("bhqm,bhmk->bqhk", weights, values), atol=2e-6)


def test_half_precision_rounds_as_the_arrays_do():
    """bfloat16 has 8 bits: both ways are as far from float32, and near each other."""
    batch = packed_batch()
    exact = results(CONFIG, batch)[1]
    half = dataclasses.replace(CONFIG, dtype="bfloat16")
    arrays, tiles = (results(dataclasses.replace(half, attention=way), batch)[1] for way in ("arrays", "tiles"))
    for name, expected in exact.items():
        off = [np.linalg.norm(x[name] - expected) / np.linalg.norm(expected) for x in (arrays, tiles)]
        assert off[1] < 1.5 * off[0] + 2e-3, f"{name}: arrays {off[0]}, tiles {off[1]}"


def test_auto_means_arrays_on_a_cpu_and_tiles_on_a_gpu_in_half_precision(monkeypatch):
    auto = dataclasses.replace(CONFIG, attention="auto")
    half = dataclasses.replace(auto, dtype="bfloat16")
    assert not attention.in_tiles(half)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert attention.in_tiles(half)
    assert not attention.in_tiles(auto)
    assert not attention.in_tiles(dataclasses.replace(half, head_dim=24))
