"""What a step would take, reckoned from shapes alone: puts hundreds of ways to run it in order, and compiles none.

It is a model of the program and not the program: jobs/plan.py compiles what comes out first.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from t5x_lite import flops
from t5x_lite.models import T5Config
from t5x_lite.plan.hardware import Hardware
from t5x_lite.trainer import Trainer

# Of the peak, in matrix products as large as a model's; what is not a product and hides behind none is in it.
REACHED = 0.5
# What a layer that is kept as its input computes again, as a share of the forward and backward pass.
RECOMPUTED = {"none": 0.0, "minimal": 0.05, "full": 1 / 3}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one device.

    Attributes:
      memory: bytes in use at the most.
      seconds: of a step, {"compute", "memory", "links", "network"}; none of them hides behind another.
    """

    memory: float
    seconds: dict[str, float]

    @property
    def step(self) -> float:
        """Seconds. Arithmetic and memory traffic overlap; what devices send waits for both."""
        return max(self.seconds["compute"], self.seconds["memory"]) + self.seconds["links"] + self.seconds["network"]


@dataclasses.dataclass(frozen=True)
class State:
    """Of a model on a mesh: bytes of a device's share of its parameters and of the optimizer's state, and how many
    parameters there are in all."""

    params: int
    opt_state: int
    parameters: int

    @classmethod
    def of(cls, trainer: Trainer) -> "State":
        abstract, shardings = trainer.abstract_state, trainer.shardings
        return cls(
            _share(abstract.params, shardings.params),
            _share(abstract.opt_state, shardings.opt_state),
            sum(math.prod(x.shape) for x in jax.tree.leaves(abstract.params)),
        )


def _share(abstract, shardings) -> int:
    sizes = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, abstract, shardings)
    return sum(jax.tree.leaves(sizes))


def estimate(
    config: T5Config,
    state: State,
    hardware: Hardware,
    mesh: dict[str, int],
    parts: int,
    batch_size: int,
    lengths: dict[str, int],
    peak: float,
) -> Estimate:
    """Of a step of `batch_size` rows in `parts` microbatches.

    Args:
      mesh: size of each axis.
      lengths: {"inputs": s, "targets": t}.
      peak: FLOP/s of a device.
    """
    s, t = lengths.get("inputs", 0), lengths["targets"]
    rows = batch_size / (mesh["data"] * mesh["fsdp"]) / parts
    # Parameters as a device computes with them: gathered over fsdp, still split over tensor.
    gathered = state.parameters / mesh["tensor"] * jnp.dtype(config.dtype).itemsize
    layer = gathered / (config.num_encoder_layers + config.num_decoder_layers)
    gradients = state.params * (2 if parts > 1 else 1)  # the sum, and those of one part
    memory = state.params + state.opt_state + gradients + 2 * layer + activations(config, rows, s, t, mesh["tensor"])

    useful = flops.train_flops_per_example(config, s, t) * batch_size / hardware.number
    # State is read and written once; parameters are read for each part's forward, backward and weight products.
    traffic = 2 * (state.params + state.opt_state) + 3 * parts * gathered
    near = far = 0.0
    for axis, sent in _sent(config, mesh, gathered, rows, s, t, parts).items():
        if hardware.spans_network((axis,), mesh):
            far += sent
        else:
            near += sent
    return Estimate(
        memory,
        {
            "compute": useful * (1 + RECOMPUTED[config.remat]) / peak / REACHED,
            "memory": traffic / hardware.chip.bandwidth,
            "links": near / hardware.chip.links,
            "network": far / hardware.chip.network,
        },
    )


def _sent(config: T5Config, mesh, gathered, rows, s, t, parts) -> dict[str, float]:
    """{mesh axis: bytes that a device sends in a step}, by the ring algorithm."""
    again = config.remat == "full"
    others = {axis: (size - 1) / size for axis, size in mesh.items()}
    # Gathered forward and backward, and gradients scattered; or gradients reduced where nothing is sharded.
    fsdp = 3 * parts * gathered * others["fsdp"]
    data = 2 * gathered / mesh["fsdp"] * others["data"]
    # Each of a layer's blocks ends in a sum over `tensor`, forward and backward.
    encoder = 2 * config.num_encoder_layers * s
    decoder = (2 if config.is_language_model else 3) * config.num_decoder_layers * (t + s * config.is_language_model)
    sums = (encoder + decoder) * rows * parts * config.emb_dim * jnp.dtype(config.dtype).itemsize
    return {"fsdp": fsdp, "data": data, "tensor": (3 if again else 2) * sums * 2 * others["tensor"]}


def activations(config: T5Config, rows: float, s: int, t: int, tensor: int) -> float:
    """Bytes that the backward pass finds kept, with what one layer and the head need while they are computed."""
    item = jnp.dtype(config.dtype).itemsize
    encoder = _layer(config, rows, s, s, tensor, item)
    n = s + t if config.is_language_model else t
    decoder = _layer(config, rows, n, n, tensor, item)
    if not config.is_language_model:
        cross = _attention(config, rows, t, s, tensor, item)
        decoder = {name: decoder[name] + cross[name] for name in decoder} | {"full": decoder["full"]}
    kept = config.num_encoder_layers * encoder[config.remat] + config.num_decoder_layers * decoder[config.remat]
    # Where layers are computed again, one of them is there for a while, though not all of it at once.
    working = max(encoder["none"], decoder["none"]) / 2 if config.remat != "none" else 0
    head = 2 * rows * n * config.vocab_size / tensor * 4  # logits and their gradient, float32
    return kept + working + head


def _layer(config, rows, n, m, tensor, item) -> dict[str, float]:
    """{remat: bytes kept of self-attention and feed-forward block}."""
    attention = _attention(config, rows, n, m, tensor, item)
    branches = len(config.mlp_activations)
    wide, narrow = rows * n * config.mlp_dim / tensor * item, rows * n * config.emb_dim * item
    mlp = {"none": (2 * branches + 1) * wide + 3 * narrow, "minimal": branches * wide + narrow, "full": 0.0}
    return {name: attention[name] + mlp[name] for name in mlp}


def _attention(config, rows, n, m, tensor, item) -> dict[str, float]:
    """Of one attention block of n positions over m."""
    joined, narrow = config.num_heads * config.head_dim / tensor * item, config.emb_dim * item
    projections = rows * (2 * n + 2 * m) * joined
    # Scores in float32 as the softmax leaves them, and as they weigh the values.
    scores = rows * config.num_heads / tensor * n * m * (4 + item)
    return {
        "none": projections + scores + 3 * rows * n * narrow,
        "minimal": projections + rows * n * narrow,
        "full": rows * n * narrow,
    }
