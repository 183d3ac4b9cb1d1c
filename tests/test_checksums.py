"""Checksums tell any change of bits or places, and are the same on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from t5x_lite import checksums
from t5x_lite.partitioning import MeshConfig

RNG = np.random.default_rng(0)
ARRAYS = {
    "float32": RNG.standard_normal((4, 6, 8)).astype(np.float32),
    "bfloat16": jnp.asarray(RNG.standard_normal((4, 8)), jnp.bfloat16),
    "int32": RNG.integers(-9, 9, (8,)).astype(np.int32),
    "bool": RNG.integers(0, 2, (4, 4)).astype(bool),
    "scalar": np.float32(3.5),
}


def sums(**arrays):
    return checksums.finish(checksums.start(arrays), {name: jnp.asarray(a) for name, a in arrays.items()})


@pytest.mark.parametrize("name", ["float32", "bfloat16", "int32"])
def test_every_bit_counts(name):
    array = np.asarray(ARRAYS[name])
    stored = sums(x=array)
    for _ in range(20):
        raw = bytearray(array.tobytes())
        raw[RNG.integers(len(raw))] ^= 1 << int(RNG.integers(8))
        flipped = np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)
        assert checksums.differing({"x": jnp.asarray(flipped)}, stored) == ["x"]
    assert checksums.differing({"x": jnp.asarray(array)}, stored) == []


def test_places_count():
    """Also those that a symmetric weighting would confuse: a square matrix and its transpose, neighbours, rows."""
    square = RNG.standard_normal((6, 6)).astype(np.float32)
    for moved in (square.T, square[::-1], square[:, ::-1], np.roll(square, 1)):
        assert sums(x=moved)["x"] != sums(x=square)["x"]


def test_a_mesh_changes_nothing():
    mesh = MeshConfig(shape={"data": 2, "fsdp": 4}).build().mesh
    array = ARRAYS["float32"].reshape(8, 24)
    for spec in (PartitionSpec("data", "fsdp"), PartitionSpec(("data", "fsdp")), PartitionSpec(None, "fsdp")):
        assert sums(x=jax.device_put(array, NamedSharding(mesh, spec))) == sums(x=array)


def test_eight_bytes_count_in_full():
    with jax.enable_x64(True):
        big = np.arange(6, dtype=np.int64)
        assert sums(x=big)["x"] != sums(x=big + (1 << 40))["x"]


def test_what_is_read_in_another_dtype_is_not_compared():
    stored = sums(x=ARRAYS["float32"])
    assert checksums.differing({"x": jnp.asarray(ARRAYS["float32"], jnp.bfloat16)}, stored) == []
    assert checksums.shapes(stored) == {"x": (4, 6, 8)} and checksums.shapes(sums(x=ARRAYS["scalar"])) == {"x": ()}


def test_a_description_is_sealed():
    meta = {"step": 3, "best": float("inf"), "nested": {"a": [1, 2.5, None]}}
    sealed = checksums.seal(meta, {"params": sums(**ARRAYS)})
    assert checksums.opened(sealed) == (meta, {"params": sums(**ARRAYS)})
    assert checksums.opened(meta) == (meta, None)
    with pytest.raises(ValueError, match="not as it was written"):
        checksums.opened({**sealed, "step": 4})
