"""Checksums that travel with a checkpoint: of its arrays as they were in memory, and of its own description.

An array's checksum is a weighted sum of its bits, modulo 2^32, taken by the devices that hold its parts: the same on
every mesh and in every layout of the bytes on disk; processes add up what each has found. All weights are odd, so that
one flipped bit always changes the sum, and they differ from place to place, so that values which change places do, too.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from t5x_lite import together
from t5x_lite.partitioning import leaves_by_path

ARRAYS, DIGEST = "checksums", "digest"  # what `seal` adds to a checkpoint's meta


Sums = list[jax.Array]  # uint32 scalars that add up to an array's checksum, or to what this process has of it


def start(tree) -> dict[str, Sums]:
    """Path -> sums that the devices are still computing when this returns."""
    return {name: _sums(jnp.asarray(leaf)) for name, leaf in leaves_by_path(tree).items()}


def finish(
    sums: Mapping[str, Sums], like, what: str = "checksums", turn: together.Turn | None = None
) -> dict[str, list]:
    """Path -> [dtype and shape, checksum], JSON-able, of what `start` began for `like`; waits for the devices.

    In a run of several processes all of them must call it.

    Args:
      what, turn: see `together.combined`.
    """
    leaves = leaves_by_path(like)
    totals = {name: sum(map(int, parts)) for name, parts in sums.items()}
    shared = [name for name in sorted(totals) if not getattr(leaves[name], "is_fully_addressable", True)]
    if shared:
        parts = json.dumps([totals[name] for name in shared])
        totals |= zip(shared, json.loads(together.combined(what, parts, _added, turn)), strict=True)
    return {name: [_kind(leaves[name]), total % 2**32] for name, total in totals.items()}


def _added(said: list[str]) -> str:
    return json.dumps([sum(parts) % 2**32 for parts in zip(*map(json.loads, said), strict=True)])


def differing(tree, stored: Mapping[str, list]) -> list[str]:
    """Paths of the arrays whose bits are not those that were stored.

    An array that was read in another dtype than it was stored in cannot be compared and counts as equal.
    """
    same_kind = {
        name: leaf for name, leaf in leaves_by_path(tree).items() if name in stored and _kind(leaf) == stored[name][0]
    }
    return [name for name, value in finish(start(same_kind), same_kind).items() if value != stored[name]]


def shapes(stored: Mapping[str, list]) -> dict[str, tuple[int, ...]]:
    """Path -> shape of the arrays that were stored."""
    return {name: tuple(json.loads(kind[kind.index("[") :])) for name, (kind, _) in stored.items()}


def _kind(leaf) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def fingerprint(params) -> str:
    """16 characters from the parameters' names and bits."""
    return hashlib.sha256(repr(sorted(finish(start(params), params).items())).encode()).hexdigest()[:16]


def seal(meta: Mapping[str, Any], arrays: Mapping[str, Mapping[str, list]]) -> dict[str, Any]:
    """`meta` with the arrays' checksums, item by item, and a digest of itself."""
    meta = {**meta, ARRAYS: dict(arrays)}
    return {**meta, DIGEST: _digest(meta)}


def opened(sealed: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, list]] | None]:
    """What `seal` was given; (meta, None) for a description that was never sealed, such as a converted checkpoint's.

    Raises:
      ValueError: it is not as it was written.
    """
    meta = dict(sealed)
    digest = meta.pop(DIGEST, None)
    if digest is not None and digest != _digest(meta):
        raise ValueError("its description is not as it was written")
    return meta, meta.pop(ARRAYS, None)


def _digest(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _sums(x: jax.Array) -> Sums:
    # Each device its own part, and the host adds up: a program that had devices wait for each other could not run
    # beside a training step on CPU devices, which share a few threads. Of several processes one has the first replica.
    return [
        _weighted_sum(shard.data, np.array([part.start or 0 for part in shard.index], np.uint32))
        for shard in x.addressable_shards
        if shard.replica_id == 0
    ]


@jax.jit
def _weighted_sum(x: jax.Array, first: jax.Array) -> jax.Array:
    """first: where in the whole array this part begins, [number of axes]."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    if x.dtype.itemsize == 8:  # becomes two words, along an axis of their own
        first = jnp.append(first, jnp.uint32(0))
    words = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32))
    words = words.astype(jnp.uint32)
    for axis in range(words.ndim):
        places = first[axis] + jnp.arange(words.shape[0], dtype=jnp.uint32)
        weights = 2 * (places * jnp.uint32(0x9E3779B1) + jnp.uint32(0x85EBCA6B) * axis) + 1
        words = jnp.sum(words * weights.reshape(-1, *(1,) * (words.ndim - 1)), axis=0, dtype=jnp.uint32)
    return words


class SealedJsonHandler(ocp.JsonCheckpointHandler):
    """Writes a checkpoint's meta as JSON, but only once the checksums are there: the devices compute them while the
    next steps are prepared."""

    async def async_save(self, directory, item=None, args: "SealedJsonSave | None" = None):
        del item  # of an older interface of Orbax
        return [ocp.future.CommitFutureAwaitingContractedSignals(self._write(directory, args), name="sealed_json")]

    async def _write(self, directory, args: "SealedJsonSave") -> None:
        arrays = {
            item: finish(sums, args.arrays[item], f"checksums of saved {item}", args.turn)
            for item, sums in args.checksums.items()
        }
        if jax.process_index() == 0:
            (directory / "metadata").write_text(json.dumps(seal(args.meta, arrays)))


@ocp.args.register_with_handler(SealedJsonHandler, for_save=True)
@dataclasses.dataclass
class SealedJsonSave(ocp.args.CheckpointArgs):
    """
    Attributes:
      meta: JSON-able.
      arrays: item -> tree of arrays.
      checksums: item -> what `start` began for them.
      turn: of saving.
    """

    meta: Mapping[str, Any]
    arrays: Mapping[str, Any]
    checksums: Mapping[str, Mapping[str, Sums]]
    turn: together.Turn


@ocp.args.register_with_handler(SealedJsonHandler, for_restore=True)
@dataclasses.dataclass
class SealedJsonRestore(ocp.args.JsonRestore):
    """What Orbax asks of a handler that saves."""
