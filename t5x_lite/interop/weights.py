"""What every format is read into and written from: this project's names, one layer at a time, nothing read yet.

A reader gives `Weights` whose arrays are `Tensor`s: shape and dtype at once, values when asked. A writer asks for one
after the other and forgets each, so that a conversion needs the memory of its largest tensors and not of the model.
Layers stand apart here (`encoder/layers_0/…`), because every system has the single layer; stacking is a writer's
choice (`stacked`).
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.models import Model, T5Config
from t5x_lite.partitioning import leaves_by_path

Rules = Iterable[tuple[str, str | None]]  # (regular expression, replacement or None)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An array that is somewhere else until `read` is called.

    Attributes:
      shape: of what `read` returns.
      dtype: numpy's, with bfloat16 among them.
      read: loads the values; keeps nothing.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @classmethod
    def of(cls, array) -> "Tensor":
        return cls(tuple(np.shape(array)), np.dtype(array.dtype), lambda: np.asarray(array))

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def map(self, function: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> "Tensor":
        """The tensor that `function` makes of this one, of the same dtype."""
        return Tensor(tuple(shape), self.dtype, lambda: function(self.read()))

    def transposed(self, axes: tuple[int, ...] | None = None) -> "Tensor":
        axes = tuple(reversed(range(len(self.shape)))) if axes is None else axes
        return self.map(lambda a: a.transpose(axes), tuple(self.shape[i] for i in axes))

    def reshaped(self, shape: tuple[int, ...]) -> "Tensor":
        return self.map(lambda a: a.reshape(shape), shape)

    def cast(self, dtype) -> "Tensor":
        dtype = jnp.dtype(dtype)
        return self if dtype == self.dtype else Tensor(self.shape, dtype, lambda: self.read().astype(dtype))


@dataclasses.dataclass(frozen=True)
class Weights:
    """A checkpoint of any system.

    Attributes:
      config: the model; its `param_dtype` is the tensors' own.
      params: this project's paths, layers apart, in `Model.abstract_params`'s shapes of an unscanned model.
      step: updates done.
      vocabulary: `Vocabulary.to_dict()`, or None where the source has none.
      opt_state: the optimizer's state by the flat names of a checkpoint, layers apart; None where it was not asked for
        or the source has none.
      meta: what else a checkpoint of this project says of itself.
      data: where its data stood, by name; None for other systems.
    """

    config: T5Config
    params: dict[str, Tensor]
    step: int = 0
    vocabulary: dict[str, Any] | None = None
    opt_state: dict[str, Tensor] | None = None
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    data: dict[str, Tensor] | None = None

    def cast(self, dtype: str) -> "Weights":
        """Parameters in `dtype`; the optimizer's state keeps its own, as it does in training."""
        config = dataclasses.replace(self.config, param_dtype=dtype)
        return dataclasses.replace(self, config=config, params={p: t.cast(dtype) for p, t in self.params.items()})

    def watched(self, tell: Callable[[], None]) -> "Weights":
        """The same, each tensor calling `tell` when it has been read."""

        def one(tensor: Tensor) -> Tensor:
            def read() -> np.ndarray:
                array = tensor.read()
                tell()
                return array

            return dataclasses.replace(tensor, read=read)

        def all_of(tensors: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
            return tensors and {name: one(tensor) for name, tensor in tensors.items()}

        return dataclasses.replace(self, params=all_of(self.params), opt_state=all_of(self.opt_state))

    def check(self, what: str) -> None:
        """Raises UserError that names every parameter that is missing, unknown or of another shape."""
        expected = {path: leaf.shape for path, leaf in expected_params(self.config).items()}
        check_shapes(what, {path: t.shape for path, t in self.params.items()}, expected)


def expected_params(config: T5Config) -> dict[str, jax.ShapeDtypeStruct]:
    """Path -> shape and dtype of every parameter of `Model(config)`, layers apart."""
    tree = Model(dataclasses.replace(config, scan_layers=False)).abstract_params()
    return leaves_by_path(tree)


def check_shapes(
    what: str,
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    remedy: str = "Use the configuration of this model, or convert.assignment_map",
) -> None:
    """Raises UserError naming what is missing, unknown, or of another shape, each by its name."""
    wrong = [f"{n} is {found[n]}, not {expected[n]}" for n in expected if n in found and found[n] != expected[n]]
    faults = (
        ("missing", [name for name in expected if name not in found]),
        ("unknown", [name for name in found if name not in expected]),
        ("of another shape", wrong),
    )
    parts = [f"{fault}: {_some(names)}" for fault, names in faults if names]
    if parts:
        raise UserError(f"{what} and T5Config disagree; {'; '.join(parts)}. {remedy}")


def _some(names: Iterable[str], limit: int = 40) -> str:
    names = sorted(names)
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def apply_rules(tensors: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """Renames or drops tensors by their names in the source.

    The first rule whose regular expression matches a whole name decides: its replacement (with `\\1` for groups) is the
    new name, None drops the tensor. Names that no rule matches stay.

    Raises:
      UserError: something that is no rule, a rule that matches nothing, or two tensors of one name.
    """
    compiled = []
    for rule in rules:
        try:
            pattern, replacement = rule
            compiled.append((re.compile(pattern), replacement))
            if not (replacement is None or isinstance(replacement, str)):
                raise TypeError(f"{replacement!r} is neither a name nor None")
        except (TypeError, ValueError, re.error) as e:
            raise UserError(
                f"convert.assignment_map: {rule!r} is no (regular expression, replacement or None): {e}"
            ) from e
    out: dict[str, Tensor] = {}
    unused = dict.fromkeys(range(len(compiled)))
    for name, tensor in tensors.items():
        new = name
        for i, (pattern, replacement) in enumerate(compiled):
            if match := pattern.fullmatch(name):
                unused.pop(i, None)
                try:
                    new = None if replacement is None else match.expand(replacement)
                except (re.error, IndexError) as e:
                    raise UserError(f"convert.assignment_map: {replacement!r} cannot replace {name}: {e}") from e
                break
        if new in out:
            raise UserError(f"convert.assignment_map gives two tensors the name {new}")
        if new is not None:
            out[new] = tensor
    if unused:
        pattern = compiled[next(iter(unused))][0].pattern
        first = next(iter(tensors), None)
        raise UserError(f"convert.assignment_map: {pattern!r} matches no tensor; the first is {first}")
    return out


def common_dtype(tensors: Iterable[Tensor]) -> str:
    """The widest dtype among the tensors, which all others can be cast to without loss."""
    return str(jnp.dtype(functools.reduce(jnp.promote_types, {t.dtype for t in tensors})))


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": x} -> {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


# ----------------------------------------------------------------------------------------------------------------------
# Layers: one by one, or stacked on a leading axis
# ----------------------------------------------------------------------------------------------------------------------

# A layer's number, or the stack of them, as one part of a path; `/` separates parameters' paths, `.` the optimizer's.
_STACKED = re.compile(r"(?P<head>(?:.*[/.])?)layers(?P<tail>[/.].*)")
_APART = re.compile(r"(?P<head>(?:.*[/.])?)layers_(?P<i>\d+)(?P<tail>[/.].*)")


def split(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stacked parameters [l, …] -> one for each layer; the others as they are."""
    out = {}
    for name, tensor in tensors.items():
        match = _STACKED.fullmatch(name)
        if match is None:
            out[name] = tensor
            continue
        stack = _Last(tensor.read)
        for i in range(tensor.shape[0]):
            out[f"{match['head']}layers_{i}{match['tail']}"] = Tensor(
                tensor.shape[1:], tensor.dtype, functools.partial(stack.layer, i, tensor.shape[0] - 1)
            )
    return out


def stacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `split`: `layers_0`, `layers_1`, … -> `layers` with a leading axis."""
    groups: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _APART.fullmatch(name):
            groups.setdefault(f"{match['head']}layers{match['tail']}", {})[int(match["i"])] = tensor
        else:
            groups[name] = {-1: tensor}
    return {name: layers[-1] if -1 in layers else _stack(name, layers) for name, layers in groups.items()}


def _stack(name: str, layers: dict[int, Tensor]) -> Tensor:
    ordered = [layers[i] for i in sorted(layers)]
    if sorted(layers) != list(range(len(layers))) or len({(t.shape, t.dtype) for t in ordered}) > 1:
        raise UserError(
            f"{name}: layers that are not 0 to {len(layers) - 1} of one shape and dtype cannot be stacked; "
            "set convert.scan_layers = False"
        )
    first = ordered[0]

    def read():
        out = np.empty((len(ordered), *first.shape), first.dtype)
        for i, tensor in enumerate(ordered):
            out[i] = tensor.read()
        return out

    return Tensor((len(ordered), *first.shape), first.dtype, read)


class _Last:
    """A stack that is read once for its layers, which are asked for in order, and let go with the last of them.

    Only one stack is kept at a time, whichever it is: a writer that asks for all parts of one layer before the next
    reads stacks again and again, but needs no more memory.
    """

    kept: "_Last | None" = None

    def __init__(self, read: Callable[[], np.ndarray]):
        self._read = read
        self._array: np.ndarray | None = None

    def layer(self, i: int, last: int) -> np.ndarray:
        if self._array is None:
            if _Last.kept is not None:
                _Last.kept._array = None
            _Last.kept = self
            self._array = self._read()
        layer = self._array[i].copy()  # not a view, which would keep the whole stack
        if i == last:
            self._array = _Last.kept = None
        return layer


# The optimizer's state, by the names that `t5x_lite.optimizers.per_layer` gives: `inner_states.single.…` for parameters
# that stand alone, `inner_states.stack_of_L.…` for stacks of L layers, with counters for each layer.
_LABEL = re.compile(r"(?P<head>(?:.*\.)?inner_states\.)(?:single|stack_of_\d+)(?P<tail>\..*)")
_COUNTER_OF_STACK = re.compile(r"(?:.*\.)?inner_states\.stack_of_(\d+)\..*")


def split_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An optimizer's state of a scanned model -> the same of an unscanned one (`t5x_lite.checkpoints` names)."""
    out: dict[str, Tensor] = {}
    for name, tensor in split(state).items():
        if _APART.fullmatch(name):
            name = _relabelled(name, "single")
        elif _COUNTER_OF_STACK.fullmatch(name):
            # All layers count alike, and alike with the parameters outside of the stacks.
            name = _relabelled(name, "single")
            if name in state:
                continue
            tensor = tensor.map(lambda a: a[0], tensor.shape[1:])
        out[name] = tensor
    return out


def stacked_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `split_state`."""
    out: dict[str, Tensor] = {}
    depths: set[int] = set()
    for name, tensor in stacked(state).items():
        if _STACKED.fullmatch(name) and _LABEL.fullmatch(name):
            depths.add(tensor.shape[0])
            name = _relabelled(name, f"stack_of_{tensor.shape[0]}")
        out[name] = tensor
    for name, tensor in state.items():
        # What belongs to no parameter: each stack has its own, one for each layer.
        if ".single." in name and name.rsplit(".", 1)[-1] == "count":
            for depth in depths:
                out[_relabelled(name, f"stack_of_{depth}")] = tensor.map(
                    functools.partial(_repeated, depth), (depth, *tensor.shape)
                )
    return out


def _relabelled(name: str, label: str) -> str:
    match = _LABEL.fullmatch(name)
    return f"{match['head']}{label}{match['tail']}" if match else name


def _repeated(times: int, array: np.ndarray) -> np.ndarray:
    return np.repeat(array[None], times, axis=0)
