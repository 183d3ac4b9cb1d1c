"""Training on pairs of texts that are in memory: the same steps, streams and batches as those of a run."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite import monitor
from t5x_lite.data import Batches, ColumnBlocks
from t5x_lite.errors import UserError
from t5x_lite.health import Health, Watch
from t5x_lite.inference import Row, padded
from t5x_lite.trainer import Trainer, TrainState
from t5x_lite.vocabularies import Vocabulary

# (step, its metrics) -> None; see `trainer.train_step` for the names.
OnStep = Callable[[int, dict[str, float]], None]


def blocks(
    rows: Sequence[Row], vocabulary: Vocabulary, max_input_length: int, max_target_length: int, seed: int
) -> ColumnBlocks:
    """The pairs as a source of one stream: a block is one epoch, in an order of its own.

    All rows are as long as the longest, rounded up, so that one step is compiled.

    Args:
      rows: of one target each.
    """
    inputs = padded([row.inputs for row in rows], max_input_length)
    targets = padded([row.targets[0] for row in rows], max_target_length)
    columns = {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
        "decoder_target_tokens": targets,
        "decoder_loss_weights": (targets > 0).astype(np.int32),
    }
    return ColumnBlocks(columns, seed, vocabulary=vocabulary)


def train(
    trainer: Trainer, params: Any, source: ColumnBlocks, steps: int, batch_size: int, on_step: OnStep | None = None
) -> tuple[Any, list[float]]:
    """The parameters after so many steps, in the model's `param_dtype`, and the loss of each step.

    `params` stay as they are.

    Args:
      batch_size: a multiple of the devices that share a batch.

    Raises:
      UserError: steps in a row whose loss or gradient is not finite.
    """
    # A copy: the steps reuse the buffers that they are given.
    dtype = jnp.dtype(trainer.model.config.param_dtype)
    copy = jax.jit(
        lambda tree: jax.tree.map(lambda x: jnp.array(x, dtype, copy=True), tree),
        out_shardings=trainer.shardings.params,
    )
    params = copy(params)
    with trainer.partitioner.activate():
        opt_state = jax.jit(
            lambda tree: trainer.optimizer.init(trainer.trainable.split(tree)[0]),
            out_shardings=trainer.shardings.opt_state,
        )(params)
    step = jax.device_put(np.int32(0), trainer.shardings.step)
    state = TrainState(step, params, opt_state)
    del params
    watch, lagged, losses = Watch(Health()), monitor.Lagged(), []

    def see(done) -> None:
        for number, metrics in done:
            losses.append(metrics["loss"])
            watch.see(number, metrics["loss"], skipped=metrics["skipped"] > 0)
            if on_step is not None:
                on_step(number, metrics)
        if watch.ill:
            raise UserError(
                f"the loss or a gradient is not finite in {watch.in_a_row} steps in a row, up to step "
                f"{watch.last_bad}: lower learning_rate; the model is as it was"
            )

    with Batches(source, 1, batch_size, trainer.partitioner.batch) as batches:
        for number in range(1, steps + 1):
            state, metrics = trainer.step(state, next(batches)[0])
            see(lagged.push(number, metrics))  # those of the step before: the devices never wait for the host
    see(lagged.drain())
    return state.params, losses
