"""What a compiled program sends between devices: read from its text, by kind and by the mesh axes it crosses.

Only numbers of known meaning are taken from the text: shapes, groups, and how often a loop's body runs.
"""

import collections
import dataclasses
import itertools
import math
import re

import numpy as np

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
BETWEEN_SLICES = "send between slices"
_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "f64": 8,
    "s64": 8,
    "u64": 8,
}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_SHAPE = re.compile(r"\b(" + "|".join(_BYTES) + r")\[([\d,]*)\]")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|called_computations|branch_computations)="
    r"(\{[^}]*\}|%?[\w.-]+)"
)
_MESH_GROUPS = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)
_CHANNEL = re.compile(r"channel_id=(\d+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Collective:
    """Of one kind over some axes of the mesh, all of a step together.

    Attributes:
      axes: of the mesh; empty where the groups are none of the mesh's.
      sent: bytes that one device sends.
      times: how often.
    """

    kind: str
    axes: tuple[str, ...]
    sent: float
    times: int


def collectives(text: str, shape: dict[str, int], slices: int = 1) -> list[Collective]:
    """Of an optimized program's text (`Compiled.as_text()`).

    Args:
      shape: of the mesh, {axis: size}, in the order in which the devices were given to the compiler.
      slices: TPU slices, which share the first axis. Their program is that of one slice, and sends the rest through its
        hosts.
    """
    first = next(iter(shape))
    shape = {**shape, first: shape[first] // slices}
    found: dict[tuple, np.ndarray] = collections.defaultdict(lambda: np.zeros(2))
    groups_of_axes = _groups_of_axes(shape)
    computations, entry = _computations(text)
    channels: set[tuple[str, str]] = set()

    def trips(rest: str) -> int:
        """How often a loop's body runs: as told, or as its condition counts; TPU programs do not tell."""
        if match := _TRIPS.search(rest):
            return int(match[1])
        condition = re.search(r"condition=%?([\w.-]+)", rest)
        return max([1, *constants(condition[1])]) if condition else 1

    def constants(name: str) -> list[int]:
        found = []
        for result, operation, rest in computations.get(name, ()):
            if operation == "constant" and result.startswith("s32[]"):
                found.append(int(rest.partition(")")[0]))
            for called in _CALLED.findall(rest):
                found += constants(called.strip("%"))
        return found

    def walk(name: str, times: int) -> None:
        for result, operation, rest in computations.get(name, ()):
            kind = operation.removesuffix("-start")
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"  # a TPU's, of which each device takes its slice afterwards
            # An asynchronous one of a TPU stands in several fusions, of which each does a part, under one channel.
            channel = _CHANNEL.search(rest)
            again = bool(channel) and (kind, channel[1]) in channels
            if channel:
                channels.add((kind, channel[1]))
            if kind in KINDS and not again:
                axes, size = _axes(rest, groups_of_axes, shape)
                sent = _sent(kind, result, operation, size)
                found[kind, axes] += np.array([sent, 1]) * times
            if operation == "send" and "xla_megascale_runtime" in rest:
                found[BETWEEN_SLICES, (first,)] += np.array([_bytes(result)[0], 1]) * times
            repeats = times * trips(rest) if operation == "while" else times
            if operation in ("while", "call", "conditional", "fusion", "async-start"):
                for called in _CALLED.findall(rest):
                    for callee in re.findall(r"[\w.-]+", called):
                        walk(callee, repeats)

    walk(entry, 1)
    made = [Collective(kind, axes, float(sent), int(times)) for (kind, axes), (sent, times) in found.items()]
    return sorted(made, key=lambda c: -c.sent)


def _computations(text: str) -> tuple[dict[str, list[tuple[str, str, str]]], str]:
    """{name: [(result's type, operation, the rest of the line)]}, and the entry's name."""
    computations: dict[str, list] = {}
    current, entry = None, ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = computations.setdefault(match[1], [])
            entry = match[1] if line.startswith("ENTRY") else entry
        elif current is not None and (match := _OPERATION.match(line)):
            current.append(match.groups())
    return computations, entry


def _bytes(types: str) -> list[int]:
    return [_BYTES[name] * math.prod(int(n) for n in dims.split(",") if n) for name, dims in _SHAPE.findall(types)]


def _sent(kind: str, result: str, operation: str, size: int) -> float:
    """Bytes a device sends, by the usual ring algorithms; `size` is the number of devices in a group."""
    sizes = _bytes(result)
    if operation.endswith("-start") and len(sizes) > 1 and kind != "all-reduce":
        # What an asynchronous start gives back is a pair of its operand and its result.
        sizes = sizes[len(sizes) // 2 :] if kind != "collective-permute" else sizes[:1]
    whole, share = sum(sizes), (size - 1) / size if size else 0.0
    if kind == "all-reduce":
        return 2 * share * whole
    if kind == "reduce-scatter":
        return share * whole * (1 if operation.startswith("all-reduce") else size)
    if kind == "collective-permute":
        return float(whole)
    return share * whole


def _groups_of_axes(shape: dict[str, int]) -> dict[frozenset, tuple[str, ...]]:
    """Which devices talk to each other for each choice of axes: {set of groups: axes}."""
    names = [name for name, size in shape.items() if size > 1]
    ids = np.arange(math.prod(shape.values())).reshape(tuple(shape.values()))
    result = {}
    for n in range(1, len(names) + 1):
        for axes in itertools.combinations(names, n):
            places = [list(shape).index(axis) for axis in axes]
            rows = np.moveaxis(ids, places, range(-n, 0)).reshape(-1, math.prod(shape[a] for a in axes))
            result[frozenset(frozenset(row.tolist()) for row in rows)] = axes
    return result


def _axes(rest: str, groups_of_axes, shape) -> tuple[tuple[str, ...], int]:
    """The axes that an operation's groups run along, and the number of devices in a group."""
    if match := re.search(r"source_target_pairs=\{(\{.*?\})\}", rest):
        pairs = [tuple(map(int, pair.split(","))) for pair in re.findall(r"\{([\d,]+)\}", match[1])]
        return _axes_of_pairs(pairs, shape), 2
    groups = _groups(rest, math.prod(shape.values()))
    size = len(groups[0]) if groups else 1
    return groups_of_axes.get(frozenset(frozenset(g) for g in groups), ()), size


def _groups(rest: str, number: int) -> list[list[int]]:
    """Groups of devices, in any of the three forms in which XLA writes them."""
    if match := _MESH_GROUPS.search(rest):
        axes = re.findall(r"'(\w+)'=(\d+)", match[1])
        sizes = [int(size) for _, size in axes]
        ids = _ids(match[2] or ",".join(map(str, sizes)), match[3])
        along = [i for i, (name, _) in enumerate(axes) if f"'{name}'" in match[4]]
        rows = np.moveaxis(ids.reshape(sizes), along, range(-len(along), 0))
        return rows.reshape(-1, math.prod(sizes[i] for i in along)).tolist()
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        return _ids(match[3], match[4]).reshape(int(match[1]), int(match[2])).tolist()
    if match := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)+)\}", rest):
        return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", match[1])]
    return [list(range(number))]


def _ids(sizes: str, order: str | None) -> np.ndarray:
    """Devices numbered as an array of these sizes, its axes then put into the given order."""
    sizes = [int(n) for n in sizes.split(",")]
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose([int(n) for n in order.split(",")]) if order else ids


def _axes_of_pairs(pairs: list[tuple[int, ...]], shape: dict[str, int]) -> tuple[str, ...]:
    from_, to = (np.stack(np.unravel_index(side, tuple(shape.values())), axis=1) for side in zip(*pairs, strict=True))
    return tuple(axis for i, axis in enumerate(shape) if (from_[:, i] != to[:, i]).any())
