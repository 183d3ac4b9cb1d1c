"""Which parameters are trained: all, those whose paths match, or more and more of the layers from the top.

A tree of parameters is split in two by path. Gradients are taken of the trained half alone and the optimizer knows no
other, so that what is frozen costs neither a gradient nor state.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import gin
from t5x_lite.errors import UserError
from t5x_lite.models import T5Config
from t5x_lite.models.finetuning_config import as_scanned
from t5x_lite.partitioning import leaves_by_path, path_name

Tree = Any  # nested dictionaries of arrays


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class GradualUnfreezing:
    """Layers join the training from the top down, encoder and decoder in parallel (Raffel et al. 2020, section 3.5.1).

    The run is cut into equal episodes; in episode n of N the top ⌈n·l/N⌉ layers of each stack of l layers are trained.
    What belongs to a stack but to no layer (its relative position bias) is trained once all of its layers are.

    The gradient and the optimizer's state of every layer are computed all along, and only the changes of frozen layers
    are left out: scanned layers are one array, and a layer that thaws finds moments that fit it.

    Attributes:
      total_steps: the step at which the run ends.
      episodes: N.
      offset: the step at which it begins, for a run whose steps go on from a checkpoint's.
      always: regular expressions, as in `Trainable`, of what is trained from the first step.

    Raises:
      UserError: a number below one, or an end that is not after the beginning.
    """

    total_steps: int
    episodes: int = 12
    always: tuple[str, ...] = ("token_embedder/.*", ".*logits_dense/.*", "[^/]*/(encoder|decoder)_norm/.*")
    offset: int = 0

    def __post_init__(self):
        object.__setattr__(self, "always", tuple(self.always))
        for name in ("total_steps", "episodes"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise UserError(
                    f"GradualUnfreezing.{name} must be a whole number of at least 1, not {getattr(self, name)!r}"
                )
        if self.offset >= self.total_steps:
            raise UserError(f"GradualUnfreezing.offset = {self.offset} must be below total_steps = {self.total_steps}")
        _check_patterns("GradualUnfreezing.always", self.always)

    def mask(self, trained: Tree, depths: Mapping[str, int], step: jax.Array) -> Tree:
        """True where `trained` changes at `step`: a bool array for each leaf, of a shape that broadcasts to the leaf's.

        Args:
          depths: layers of each stack, by its path (see `stack_depths`).
        """
        # As a float: the product of two whole numbers could leave int32.
        done = jnp.maximum(step - self.offset, 0).astype(float) / (self.total_steps - self.offset)
        episode = jnp.minimum(jnp.floor(done * self.episodes) + 1, self.episodes)

        def one(path, leaf):
            name = path_name(path)
            stack, layer = _stack_and_layer(name)
            if stack is None:
                stack = next((s for s in depths if name.startswith(f"{s}/")), None)
            if stack is None or _matches(self.always, name):
                return jnp.asarray(True)
            depth = depths[stack]
            # 1e-4: the quotient of two equal whole numbers may be a little above one.
            open_layers = jnp.ceil(episode * depth / self.episodes - 1e-4)
            if layer is None:
                return open_layers >= depth
            if layer >= 0:
                return depth - layer <= open_layers
            above = depth - jnp.arange(depth)  # 1 for the top layer
            return (above <= open_layers).reshape(depth, *(1,) * (leaf.ndim - 1))

        return jax.tree_util.tree_map_with_path(one, trained)


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class Trainable:
    """The parameters that a run changes.

    Attributes:
      patterns: regular expressions; a parameter whose whole path matches one is trained. The path of an unrolled layer
        (`encoder/layers_3/mlp/wo/kernel`) may match as it is, or as a scanned one (`encoder/layers/mlp/wo/kernel`), so
        that one pattern serves both.
      unfreezing: when the layers among them are trained; None for all the time.

    Raises:
      UserError: what is no regular expression.
    """

    patterns: tuple[str, ...] = (".*",)
    unfreezing: GradualUnfreezing | None = None

    def __post_init__(self):
        patterns = (self.patterns,) if isinstance(self.patterns, str) else tuple(self.patterns)
        object.__setattr__(self, "patterns", patterns)
        _check_patterns("Trainable.patterns", patterns)

    def check(self, params: Tree) -> None:
        """Raises UserError for a pattern that matches no parameter: it would freeze in silence what it was to train."""
        paths = list(leaves_by_path(params))
        for where, patterns in (
            ("Trainable.patterns", self.patterns),
            ("GradualUnfreezing.always", self.unfreezing.always if self.unfreezing else ()),
        ):
            for pattern in patterns:
                if not any(_matches((pattern,), path) for path in paths):
                    # T5 1.0 has no head of its own: the default names it all the same.
                    if where == "GradualUnfreezing.always" and pattern in GradualUnfreezing.always:
                        continue
                    raise UserError(
                        f"{where}: {pattern!r} matches no parameter; paths are such as {paths[0]} and "
                        f"{paths[-1]} (--dry_run shows all)"
                    )

    def trains(self, path: str) -> bool:
        return _matches(self.patterns, path)

    def split(self, params: Tree) -> tuple[Tree, Tree]:
        """(trained, frozen), which `join` puts together again."""
        return select(params, self.trains), select(params, lambda path: not self.trains(path))

    def mask(self, trained: Tree, params: Tree, step: jax.Array) -> Tree | None:
        """What of the trained half changes at this step (see `GradualUnfreezing.mask`); None for all of it."""
        return None if self.unfreezing is None else self.unfreezing.mask(trained, stack_depths(params), step)


def select(tree: Tree, keep: Callable[[str], bool], prefix: str = "") -> Tree:
    """The part of a tree of dictionaries whose leaves' paths are kept; no empty dictionaries."""
    out = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            if part := select(value, keep, f"{prefix}{name}/"):
                out[name] = part
        elif keep(prefix + name):
            out[name] = value
    return out


def join(one: Tree, other: Tree) -> Tree:
    """The union of two trees that have no leaf in common."""
    out = dict(one)
    for name, value in other.items():
        out[name] = join(out[name], value) if name in out else value
    return out


def stack_depths(params: Tree) -> dict[str, int]:
    """Path of each stack of layers -> its number of layers."""
    depths: dict[str, int] = {}
    for path, leaf in leaves_by_path(params).items():
        stack, layer = _stack_and_layer(path)
        if stack is not None:
            depths[stack] = max(depths.get(stack, 0), leaf.shape[0] if layer < 0 else layer + 1)
    return depths


def merge(config: T5Config, params: Tree) -> tuple[T5Config, Tree]:
    """The model without LoRA and IA3, their changes folded into its kernels: it computes the same, at no extra cost.

    Adapters, prompts and biases cannot be folded; they stay as they are.

    Returns:
      The configuration without the two, and the parameters that belong to it.
    """

    def fold(tree):
        tree = {name: fold(value) if isinstance(value, Mapping) else value for name, value in tree.items()}
        a, b = tree.pop("lora_a", None), tree.pop("lora_b", None)
        incoming, outgoing = tree.pop("ia3_input", None), tree.pop("ia3_output", None)
        # Stacked layers keep their leading axis in every product.
        if a is not None:
            change = jnp.matmul(a, b, precision="highest")
            tree["kernel"] = (tree["kernel"] + config.lora.scale * change).astype(tree["kernel"].dtype)
        if incoming is not None:
            tree["kernel"] = tree["kernel"] * incoming[..., :, None]
        if outgoing is not None:
            tree["kernel"] = tree["kernel"] * outgoing[..., None, :]
            if "bias" in tree:
                tree["bias"] = tree["bias"] * outgoing
        return tree

    return dataclasses.replace(config, lora=None, ia3=None), fold(params)


def _stack_and_layer(path: str) -> tuple[str | None, int | None]:
    """`encoder/layers_3/…` -> ("encoder", 3); `encoder/layers/…` -> ("encoder", -1); otherwise (None, None)."""
    found = re.fullmatch(r"(.*?)/layers(?:_(\d+))?/.*", path)
    if not found:
        return None, None
    return found[1], -1 if found[2] is None else int(found[2])


def _matches(patterns: Sequence[str], path: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns for name in {path, as_scanned(path)})


def _check_patterns(where: str, patterns: Sequence[str]) -> None:
    if not patterns:
        raise UserError(f"{where} is empty; '.*' is every parameter")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as e:
            raise UserError(f"{where}: {pattern!r} is no regular expression ({e})") from e
