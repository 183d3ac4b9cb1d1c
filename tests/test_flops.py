"""FLOPs of a step against published sizes and against XLA's own count; peaks of devices."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import flops
from t5x_lite.models import Model, T5Config


def v1_1(emb_dim, num_heads, mlp_dim, layers):
    return T5Config(
        vocab_size=32128,
        emb_dim=emb_dim,
        num_heads=num_heads,
        head_dim=64,
        mlp_dim=mlp_dim,
        num_encoder_layers=layers,
        num_decoder_layers=layers,
    )


@pytest.mark.parametrize(
    "config, gigaflops, digits",
    [
        (v1_1(512, 6, 1024, 8), 106.3, 1),
        (v1_1(768, 12, 2048, 12), 425.9, 1),
        (v1_1(1024, 16, 2816, 24), 1467.8, 1),
        (v1_1(2048, 32, 5120, 24), 5346, 0),
    ],
    ids=["small", "base", "large", "xl"],
)
def test_t5_1_1_sizes_at_512_and_114(config, gigaflops, digits):
    assert round(flops.train_flops_per_example(config, 512, 114) / 1e9, digits) == gigaflops


@pytest.mark.parametrize("activations", [("relu",), ("gelu", "linear")])
def test_counts_the_forward_products_that_xla_counts(activations):
    # Unequal everything, so that no two letters of the formula can be exchanged unseen. No scan: XLA would count the
    # body of a loop once.
    config = T5Config(
        vocab_size=384,
        emb_dim=96,
        num_heads=3,
        head_dim=40,
        mlp_dim=160,
        num_encoder_layers=2,
        num_decoder_layers=3,
        mlp_activations=activations,
        scan_layers=False,
    )
    model, b, s, t = Model(config), 2, 64, 48
    batch = {
        "encoder_input_tokens": jnp.ones((b, s), jnp.int32),
        "decoder_input_tokens": jnp.ones((b, t), jnp.int32),
        "decoder_target_tokens": jnp.ones((b, t), jnp.int32),
        "decoder_loss_weights": jnp.ones((b, t), jnp.int32),
    }
    params = model.abstract_params()
    products = _dot_flops(jax.make_jaxpr(lambda p: model.apply(p, batch))(params).jaxpr)
    assert products == pytest.approx(b * flops.train_flops_per_example(config, s, t) / 3, rel=1e-3)


def test_counts_the_forward_products_of_a_language_model():
    config = T5Config(
        vocab_size=384,
        emb_dim=96,
        num_heads=3,
        head_dim=40,
        mlp_dim=160,
        num_encoder_layers=0,
        num_decoder_layers=3,
        architecture="prefix_lm",
        scan_layers=False,
    )
    model, b, n = Model(config), 2, 48
    names = ("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights")
    batch = dict.fromkeys(names, jnp.ones((b, n), jnp.int32))
    products = _dot_flops(jax.make_jaxpr(lambda p: model.apply(p, batch))(model.abstract_params()).jaxpr)
    assert products == pytest.approx(b * flops.train_flops_per_example(config, 0, n) / 3, rel=1e-3)
    assert flops.train_flops_per_example(config, 30, 18) == flops.train_flops_per_example(config, 0, 48)


def _dot_flops(jaxpr) -> int:
    """2·(output elements)·(contracted elements) over every matrix product of a jaxpr."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += 2 * int(np.prod(eqn.outvars[0].aval.shape)) * int(np.prod([shape[i] for i in contracted]))
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += _dot_flops(inner)
    return total


@pytest.mark.parametrize(
    "kind, teraflops",
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("TPU v2", 22.5),  # one device is one core, half a chip
        ("TPU v3", 61.5),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU7x", 1153.5),
    ],
)
def test_published_peaks(kind, teraflops):
    assert flops.published_peak(kind) == teraflops * 1e12


def test_a_split_chip_has_half_the_peak():
    assert flops.published_peak("TPU v4", num_cores=1) == 137.5e12
    assert flops.published_peak("TPU v5e", num_cores=1) == 197e12


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090", "TPU v99"])
def test_an_unknown_kind_has_no_published_peak(kind):
    assert flops.published_peak(kind) is None


def test_a_known_device_is_not_measured():
    # `peak` reads only these of a device; there is no such card here.
    assert flops.peak(types.SimpleNamespace(device_kind="NVIDIA H200", platform="gpu")) == (989.5e12, "published")


def test_the_cpu_is_measured_once_and_shared_among_its_devices():
    cpu = jax.devices("cpu")[0]
    rate = flops.measured_matmul_rate("float32", cpu)
    assert 1e8 < rate < 1e15  # a single slow core up to more than any CPU can
    assert flops.measured_matmul_rate(jnp.float32, cpu) == rate  # the very same number: it was not timed again
    assert flops.peak(cpu) == (rate / jax.local_device_count("cpu"), "measured")
    assert "no peak is published" in flops.describe_peak(cpu)
