"""A stack of equal layers: scanned over stacked parameters, or unrolled one by one.

The scan is `jax.lax.scan` of a pure function over the layers' split state. Each layer's initial parameters come from
the layer's own key, so a scanned and an unrolled model of one seed start from the same numbers.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from t5x_lite.models.config import T5Config


class Stack(nnx.Module):
    """`depth` layers made by `make_layer(rngs)`, as attribute `layers` (stacked) or `layers_0`, `layers_1`, …"""

    def __init__(self, make_layer: Callable[[nnx.Rngs], nnx.Module], depth: int, config: T5Config, *, rngs: nnx.Rngs):
        self.config = config
        self.depth = depth
        self.scanned = config.scan_layers
        self.unroll = min(config.scan_unroll, depth)
        self.remat = config.remat
        base = rngs.params()
        keys = jax.vmap(lambda i: jax.random.fold_in(base, i))(jnp.arange(depth))
        if not self.scanned:
            for i in range(depth):
                setattr(self, f"layers_{i}", make_layer(nnx.Rngs(params=keys[i])))
            return
        state = jax.vmap(lambda key: nnx.state(make_layer(nnx.Rngs(params=key))))(keys)
        state = jax.tree.map(_stacked, state, is_leaf=_is_variable)
        graphdef = nnx.graphdef(nnx.eval_shape(lambda: make_layer(nnx.Rngs(params=0))))
        self.layers = nnx.merge(graphdef, state)

    def run(self, call: Callable, x, per_layer=None):
        """Carry x through the layers: `x, out = call(layer, x, i, inputs_i)` for layer i = 0 … depth - 1.

        Args:
          per_layer: a tree whose arrays have a leading axis of `depth`, given to `call` a slice at a time; or None.

        Returns:
          The last x and the stacked outs.
        """

        def body(graphdef, x, xs):
            i, layer_state, inputs = xs
            return call(nnx.merge(graphdef, layer_state), x, i, inputs)

        if self.scanned:
            graphdef, state = nnx.split(self.layers)

            layers = (jnp.arange(self.depth), state, per_layer)
            return jax.lax.scan(self._rematerialised(functools.partial(body, graphdef)), x, layers, unroll=self.unroll)
        outs = []
        for i in range(self.depth):
            graphdef, state = nnx.split(getattr(self, f"layers_{i}"))

            inputs = jax.tree.map(lambda a, i=i: a[i], per_layer)
            x, out = self._rematerialised(functools.partial(body, graphdef))(x, (i, state, inputs))
            outs.append(out)
        return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)

    def _rematerialised(self, body: Callable) -> Callable:
        if self.remat == "none":
            return body
        policies = jax.checkpoint_policies
        policy = {
            "minimal": policies.dots_with_no_batch_dims_saveable,
            "offload": policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
            "full": None,
        }[self.remat]
        return jax.checkpoint(body, policy=policy, prevent_cse=not self.scanned)


def _is_variable(x) -> bool:
    return isinstance(x, nnx.Variable)


def _stacked(variable: nnx.Variable) -> nnx.Variable:
    return nnx.Param(variable.get_value(), axes=("layers", *variable.axes))
