"""How a step changes state: pure functions, and one jitted step over the mesh.

    batch [b, …] ── loss summed over real target tokens ── gradients / number of tokens ── optimizer ── new state

Every random choice is a function of (seed, step, row of the global batch, site in the model), so neither the number of
devices nor the number of microbatches changes a run beyond rounding.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from t5x_lite import finetuning, partitioning
from t5x_lite.errors import UserError
from t5x_lite.finetuning import Trainable
from t5x_lite.losses import Loss
from t5x_lite.models import Model
from t5x_lite.optimizers import Optimizer
from t5x_lite.partitioning import Partitioner, leaves_by_path

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]

ALL = Trainable()


class TrainState(NamedTuple):
    """What a step reads and writes anew; or the same of shapes, or of shardings."""

    step: Any  # int32 scalar: updates done
    params: Any  # nested dictionary of arrays of param_dtype
    opt_state: Any  # optax state, of the trained parameters


def init_state(model: Model, optimizer: Optimizer, seed: int, trainable: Trainable = ALL) -> TrainState:
    """Step 0 of a run: parameters drawn from `seed`, and the optimizer's state for those that are trained."""
    params = model.init(jax.random.key(seed))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trainable.split(params)[0]))


def dropout_keys(seed: int, step: jax.Array, rows: jax.Array) -> jax.Array:
    """One PRNG key for each row of the global batch: [b], from (seed, step, row)."""
    # Apart from the initial parameters' key, which is the seed itself.
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)


def loss_and_grads(
    model: Model, loss: Loss, params, batch: Batch, step, seed: int, num_microbatches: int = 1, frozen=None
):
    """Gradient of the mean loss over the real target tokens of the whole batch, and the sums behind the metrics.

    Microbatches add up *sums*, divided once by the whole batch's token count: equal to the unsplit step, whatever the
    tokens in each.

    Args:
      params: those whose gradient is taken; `frozen` has the model's others.
    """
    frozen = frozen or {}
    rows = jnp.arange(batch["decoder_target_tokens"].shape[0])
    use_dropout = model.config.dropout_rate > 0.0

    def summed(params, part, rows):
        part = model.arranged(part)
        keys = dropout_keys(seed, step, rows) if use_dropout else None
        logits = model.apply(finetuning.join(params, frozen), part, keys)
        sums = loss.sums(logits, part["decoder_target_tokens"], part["decoder_loss_weights"])
        return sums["loss"], sums

    grad = jax.grad(summed, has_aux=True)
    if num_microbatches == 1:
        grads, sums = grad(params, batch, rows)
    else:
        # Every microbatch takes rows from all over the batch, so that each device keeps to its own rows.
        parts, part_rows = jax.tree.map(functools.partial(_split, num_microbatches), (batch, rows))

        def add(total, part_and_rows):
            return jax.tree.map(jnp.add, total, grad(params, *part_and_rows)), None

        first = jax.tree.map(lambda x: x[0], (parts, part_rows))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(grad, params, *first))
        (grads, sums), _ = jax.lax.scan(add, zeros, (parts, part_rows))
    tokens = jnp.maximum(sums["weights"], 1.0)
    return jax.tree.map(lambda g: (g / tokens).astype(g.dtype), grads), sums


def _split(num_microbatches: int, x: jax.Array) -> jax.Array:
    """[b, …] -> [microbatches, b / microbatches, …], row r going to microbatch r mod n."""
    x = x.reshape(x.shape[0] // num_microbatches, num_microbatches, *x.shape[1:])
    x = partitioning.constrain(x, "batch", *(None,) * (x.ndim - 1))
    return x.swapaxes(0, 1)


def train_step(
    model: Model,
    optimizer: Optimizer,
    loss: Loss,
    seed: int,
    num_microbatches: int,
    state: TrainState,
    batch: Batch,
    trainable: Trainable = ALL,
) -> tuple[TrainState, Metrics]:
    """One update. Metrics are float scalars; `tokens` counts the real input and target tokens of the global batch, and
    norms are those of the trained parameters.

    Where the loss or a gradient is not finite, parameters and optimizer state stay as they are, bit by bit, and the
    metric `skipped` is 1; the step counts all the same.
    """
    trained, frozen = trainable.split(state.params)
    grads, sums = loss_and_grads(model, loss, trained, batch, state.step, seed, num_microbatches, frozen)
    mask = trainable.mask(trained, state.params, state.step)
    updated, opt_state, norms = optimizer.update(grads, state.opt_state, trained, state.step, mask)
    means = _means(sums)
    # The optimizer's own norm leaves out what a mask keeps still, whose moments go on.
    grad_norm = norms["grad_norm"] if mask is None else optax.tree.norm(grads)
    finite = jnp.isfinite(means["loss"]) & jnp.isfinite(grad_norm)
    trained, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), (updated, opt_state), (trained, state.opt_state)
    )
    names = ("encoder_input_tokens", "decoder_target_tokens")
    tokens = sum(jnp.sum(batch[name] > 0) for name in names if name in batch)
    metrics = {**means, **norms, "tokens": tokens, "skipped": 1.0 - finite.astype(jnp.float32)}
    return TrainState(state.step + 1, finetuning.join(trained, frozen), opt_state), metrics


def eval_step(model: Model, params, batch: Batch) -> Metrics:
    """Sums over a batch, without dropout, z-loss or smoothing: add them up, then divide by `weights`."""
    plain = Loss(z_loss=0.0, label_smoothing=0.0)
    batch = model.arranged(batch)
    return plain.sums(model.apply(params, batch), batch["decoder_target_tokens"], batch["decoder_loss_weights"])


def _means(sums: Metrics) -> Metrics:
    tokens = jnp.maximum(sums["weights"], 1.0)
    return {
        "loss": sums["loss"] / tokens,
        "cross_entropy": sums["cross_entropy"] / tokens,
        "accuracy": sums["correct"] / tokens,
    }


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The pure functions above, compiled for one mesh."""

    model: Model
    optimizer: Optimizer
    loss: Loss
    partitioner: Partitioner
    seed: int = 0
    num_microbatches: int = 1
    trainable: Trainable = ALL

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Raises UserError when `trainable` names what the model does not have."""
        self.trainable.check(self.model.abstract_params())
        return jax.eval_shape(self._init)

    def _init(self) -> TrainState:
        return init_state(self.model, self.optimizer, self.seed, self.trainable)

    @functools.cached_property
    def trained_paths(self) -> frozenset[str]:
        return frozenset(filter(self.trainable.trains, leaves_by_path(self.abstract_state.params)))

    @functools.cached_property
    def shardings(self) -> TrainState:
        abstract, axes = self.abstract_state, self.model.logical_axes()
        trained, _ = self.trainable.split(abstract.params)
        slots = partitioning.optimizer_state_axes(abstract.opt_state, trained, axes)
        return TrainState(
            self.partitioner.replicated,
            self.partitioner.tree(abstract.params, axes),
            self.partitioner.tree(abstract.opt_state, slots),
        )

    def check_batch_size(self, batch_size: int) -> None:
        """Raises UserError unless the devices and microbatches divide the batch."""
        parts = self.partitioner.batch_shards * self.num_microbatches
        if batch_size < 1 or batch_size % parts:
            nearest = max(parts, batch_size // parts * parts)
            raise UserError(
                f"BATCH_SIZE = {batch_size} is not divisible by {parts} ({self.partitioner.batch_shards} devices that "
                f"share a batch × {self.num_microbatches} microbatches); try {nearest}"
            )

    def init(self) -> TrainState:
        """Initial state, made in place on the mesh: no device holds more than its share."""
        with self.partitioner.activate():
            return jax.jit(self._init, out_shardings=self.shardings)()

    @functools.cached_property
    def _step(self):
        step = functools.partial(
            train_step,
            self.model,
            self.optimizer,
            self.loss,
            self.seed,
            self.num_microbatches,
            trainable=self.trainable,
        )
        return jax.jit(
            step,
            in_shardings=(self.shardings, self.partitioner.batch),
            out_shardings=(self.shardings, self.partitioner.replicated),
            donate_argnums=0,
        )

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One compiled update; the given state's buffers are reused and must not be read again."""
        with self.partitioner.activate():
            return self._step(state, batch)

    @functools.cached_property
    def _evaluate(self):
        return jax.jit(
            functools.partial(eval_step, self.model),
            in_shardings=(self.shardings.params, self.partitioner.batch),
            out_shardings=self.partitioner.replicated,
        )

    def evaluate(self, params, batch: Batch) -> Metrics:
        with self.partitioner.activate():
            return self._evaluate(params, batch)
