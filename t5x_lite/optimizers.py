"""optax optimizers and schedules under their gin names.

An `Optimizer` is given the step and computes the learning rate from it once: what is logged is what was used.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import gin
from t5x_lite.partitioning import path_name

Schedule = Callable[[jax.Array], jax.Array]


@gin.configurable(module="t5x_lite")
def inverse_square_root(warmup_steps: int = 10_000, scale: float = 1.0, offset: int = 0) -> Schedule:
    """scale / sqrt(max(n, warmup_steps)) for n = step - offset (Raffel et al. 2020, section 3.1.2).

    Args:
      offset: the step that counts as 0, for a run whose steps go on from a checkpoint's.
    """
    return lambda step: scale * jax.lax.rsqrt(jnp.maximum(jnp.asarray(step - offset, float), float(warmup_steps)))


@gin.configurable(module="t5x_lite")
def constant_rate(value: float = 1e-3, warmup_steps: int = 0, offset: int = 0) -> Schedule:
    """`value`, reached linearly over the first `warmup_steps` steps (T5 finetunes at 1e-3 without warm-up)."""
    if not warmup_steps:
        return lambda step: jnp.asarray(value, float)
    return lambda step: value * jnp.clip((jnp.asarray(step - offset, float) + 1) / warmup_steps, 0.0, 1.0)


@gin.configurable(module="t5x_lite")
def linear_rate(steps: int = gin.REQUIRED, value: float = 1e-2, end_value: float = 0.0, offset: int = 0) -> Schedule:
    """From `value` to `end_value` in a straight line over `steps` steps: short runs end better on a falling rate."""
    line = optax.linear_schedule(value, end_value, steps)
    return lambda step: jnp.asarray(line(step - offset), float)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optax chain whose learning rate is a function of the trainer's step.

    Attributes:
      schedule: step -> learning rate.
      make: (learning rate as an optax schedule, params) -> optax.GradientTransformation.
      max_grad_norm: gradients are scaled down to this global norm; None for no clipping.
    """

    schedule: Schedule
    make: Callable[[Schedule, Any], optax.GradientTransformation]
    max_grad_norm: float | None = None

    def init(self, params):
        return self.make(self.schedule, params).init(params)

    def update(self, grads, state, params, step: jax.Array, mask=None):
        """Returns (new params, new state, {"learning_rate", "grad_norm", "update_norm", "param_norm"}).

        Args:
          mask: None, or a tree of bool arrays that broadcast to the parameters: where False a parameter keeps its
            value, bit by bit, and does not count in the norms of gradients and updates; its state goes on.
        """

        def masked(tree):
            return tree if mask is None else jax.tree.map(lambda x, m: jnp.where(m, x, jnp.zeros_like(x)), tree, mask)

        learning_rate = self.schedule(step)
        grad_norm = optax.tree.norm(masked(grads))
        if self.max_grad_norm is not None:
            scale = jnp.minimum(1.0, self.max_grad_norm / jnp.maximum(grad_norm, jnp.finfo(grad_norm.dtype).tiny))
            grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
        updates, state = self.make(lambda count: learning_rate, params).update(grads, state, params)
        before, params = params, optax.apply_updates(params, updates)
        if mask is not None:
            params = jax.tree.map(jnp.where, mask, params, before)
        return (
            params,
            state,
            {
                "learning_rate": learning_rate,
                "grad_norm": grad_norm,
                "update_norm": optax.tree.norm(masked(updates)),
                "param_norm": optax.tree.norm(params),
            },
        )


@gin.configurable(module="t5x_lite")
def adafactor(
    learning_rate: Schedule = gin.REQUIRED,
    decay_rate: float = 0.8,
    decay_offset: int = 0,
    min_dim_size_to_factor: int = 128,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: float | None = 1.0,
    momentum: float | None = None,
    weight_decay_rate: float | None = None,
    max_grad_norm: float | None = None,
) -> Optimizer:
    """Adafactor with T5's settings (Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235).

    Each layer of a scanned stack is an array of its own to the optimizer: clipping, parameter scale and factoring are
    taken layer by layer, so scanned and unrolled models get the same updates.

    Args:
      learning_rate: a schedule, `@inverse_square_root()` or `@constant_rate()`.
      decay_offset: step at which the second moment's decay starts anew, when steps go on from a checkpoint's.
    """

    def make(schedule, params):
        return per_layer(
            optax.adafactor(
                learning_rate=schedule,
                min_dim_size_to_factor=min_dim_size_to_factor,
                decay_rate=decay_rate,
                decay_offset=decay_offset,
                multiply_by_parameter_scale=multiply_by_parameter_scale,
                clipping_threshold=clipping_threshold,
                momentum=momentum,
                weight_decay_rate=weight_decay_rate,
            ),
            params,
        )

    return Optimizer(learning_rate, make, max_grad_norm)


@gin.configurable(module="t5x_lite")
def adamw(
    learning_rate: Schedule = gin.REQUIRED,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    max_grad_norm: float | None = 1.0,
) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019). Works element by element, so stacked layers need no special care."""

    def make(schedule, params):
        del params
        return optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)

    return Optimizer(learning_rate, make, max_grad_norm)


def per_layer(tx: optax.GradientTransformation, params) -> optax.GradientTransformation:
    """`tx` applied to each layer of the stacked parameters (those below a `layers` node) on its own.

    Adafactor works on whole arrays; on a stack of layers it would clip and scale over the stack, which changes the
    updates by up to a quarter. Mapping it over the leading axis gives what unrolled layers get.
    """

    def label(path, leaf):
        return f"stack_of_{leaf.shape[0]}" if "layers" in path_name(path).split("/") else "single"

    labels = jax.tree_util.tree_map_with_path(label, params)
    stacked = optax.GradientTransformation(
        jax.vmap(tx.init), lambda updates, state, params=None: jax.vmap(tx.update)(updates, state, params)
    )
    names = sorted(set(jax.tree.leaves(labels)))
    return optax.multi_transform({name: tx if name == "single" else stacked for name in names}, labels)


def set_counts(state, step: int):
    """The optimizer's own step counters set to `step`, for runs that go on counting from a checkpoint."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full_like(leaf, step) if path_name(path).split("/")[-1] == "count" else leaf, state
    )
