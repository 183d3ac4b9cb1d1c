"""Names of axes become shardings; what does not fit is said."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P
from tiny_models import mesh

import gin
from t5x_lite import configuration
from t5x_lite.errors import UserError
from t5x_lite.partitioning import DEFAULT_RULES, MeshConfig, constrain


def test_activations_are_pinned_by_name_while_a_mesh_is_in_force():
    partitioner, x = mesh((2, 2, 2)), jnp.ones((8, 3, 4))
    with partitioner.activate():
        pinned = jax.jit(lambda x: constrain(x, "batch", "length", "mlp") + 1.0)(x)
    assert pinned.sharding.shard_shape(x.shape) == (2, 3, 2)
    assert constrain(x, "batch", "length", "mlp") is x


def test_an_axis_without_a_rule_is_named():
    with pytest.raises(UserError, match=r"no rule for the logical axes \['experts'\]; add \(name, None\)"):
        mesh().sharding("batch", "experts")


@pytest.mark.parametrize(
    "shape, found",
    [({"data": 2, "fsdp": -1}, (2, 4, 1)), ({"tensor": 8}, (1, 1, 8)), ({"data": -1, "tensor": 4}, (2, 1, 4))],
)
def test_one_axis_takes_what_is_left(shape, found):
    assert tuple(MeshConfig(shape).build().mesh.shape.values()) == found


@pytest.mark.parametrize(
    "shape, message",
    [
        ({"data": 3}, "does not fit the 8"),
        ({"dta": 8}, "unknown axes"),
        ({"data": -1, "fsdp": -1}, "one of them may be"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(shape, message):
    with pytest.raises(UserError, match=message):
        MeshConfig(shape=shape).build()


def test_a_mesh_axis_goes_to_the_axis_that_stands_first_in_the_table():
    rules = tuple((name, "tensor" if name == "length" else axes) for name, axes in DEFAULT_RULES)
    partitioner = MeshConfig({"data": 2, "fsdp": 1, "tensor": 4}, rules).build()
    assert partitioner.spec(("batch", "length", "activation")) == P(("data", "fsdp"), "tensor", None)
    assert partitioner.spec(("batch", "length", "heads", "kv")) == P(("data", "fsdp"), None, "tensor", None)
    with partitioner.activate():
        pinned = jax.jit(lambda x: constrain(x, "batch", "length", "activation"))
        # Seven positions stay whole.
        for length, part in ((8, 2), (7, 7)):
            x = jnp.zeros((4, length, 3))
            assert pinned(x).sharding.shard_shape(x.shape) == (2, part, 3)


def test_the_shipped_table_of_sequence_parallelism_is_the_default_one_but_for_positions():
    configuration.parse(["mesh/sequence_parallel.gin"])
    try:
        assert gin.query_parameter("Mesh.rules") == tuple(
            (name, "tensor" if name == "length" else axes) for name, axes in DEFAULT_RULES
        )
    finally:
        configuration.clear()
