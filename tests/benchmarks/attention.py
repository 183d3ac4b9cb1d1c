"""Attention by tiles on a GPU: that it is right there, how fast it is, and which tiles are best.

    python -m tests.benchmarks.attention [--b 64] [--tune]

Compares outputs and gradients with attention by arrays computed in float32, and times one layer's forward and backward
pass: by tiles, by arrays and by cuDNN, which has no segments here. `--tune` times each kernel with other tiles.
Costs: a minute on a GPU; elsewhere the kernels are interpreted, and only a small --b ends.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite import monitor
from t5x_lite.models import attention, flash_attention
from t5x_lite.models.masks import Mask

SHAPES = {"encoder": (512, 512, True, False), "decoder": (114, 114, True, True), "cross": (114, 512, False, False)}
SETTINGS = {
    "FORWARD": [(64, 64, 4, 2), (128, 64, 8, 2), (128, 32, 4, 2), (64, 64, 4, 3)],
    "BACKWARD_KEYS": [(64, 64, 4, 2), (32, 64, 4, 2), (32, 64, 4, 3), (64, 32, 4, 2)],
    "BACKWARD_QUERIES": [(64, 64, 4, 2), (128, 64, 8, 2), (64, 32, 4, 2), (64, 64, 4, 3)],
    "BACKWARD_BIAS": [(64, 64, 4, 2), (128, 64, 8, 2), (64, 64, 4, 3)],
}


def arguments_of(b: int, h: int, k: int, q: int, m: int, dtype):
    rng = np.random.default_rng(0)

    def normal(*shape, scale=1.0):
        return jnp.asarray(rng.standard_normal(shape, np.float32) * scale)

    queries, keys, values = normal(b, h, q, k, scale=k**-0.5), normal(b, h, m, k), normal(b, h, m, k)
    ids = [jnp.asarray(1 + (np.arange(n) > n // 3) + np.zeros((b, 1)), jnp.int32) for n in (q, m)]
    return (*(x.astype(dtype) for x in (queries, keys, values)), normal(h, q, m, scale=2.0)), ids


def by_tiles(queries, keys, values, bias, mask: Mask):
    return flash_attention.attend(queries, keys, values, bias, mask)


def by_arrays(queries, keys, values, bias, mask: Mask):
    q, m = queries.shape[2], keys.shape[2]
    scores = jnp.einsum("bhqk,bhmk->bhqm", queries, keys, preferred_element_type=jnp.float32)
    if bias is not None:
        scores += bias.astype(queries.dtype)
    scores = jnp.where(mask.array(q, m), scores, attention.MASKED)
    return jnp.einsum("bhqm,bhmk->bqhk", jax.nn.softmax(scores).astype(values.dtype), values)


def by_cudnn(queries, keys, values, bias, mask: Mask):
    bias = None if bias is None else bias[None].astype(queries.dtype)
    queries, keys, values = (x.transpose(0, 2, 1, 3) for x in (queries, keys, values))
    return jax.nn.dot_product_attention(
        queries, keys, values, bias, scale=1.0, is_causal=mask.causal, implementation="cudnn"
    )


def gradients(way, with_bias, causal, weights):
    def loss(arrays, ids):
        mask = Mask(segments=tuple(ids), causal=causal) if ids else Mask(causal=causal)
        arrays = arrays if with_bias else (*arrays[:3], None)
        out = way(*arrays, mask)
        return jnp.sum(out.astype(jnp.float32) * weights), out

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def check(h: int, k: int) -> None:
    table = monitor.Table(
        ["shape", "dtype", "way", "output", "queries", "keys", "values", "bias"],
        title="norm of the difference to float32 by arrays / norm",
    )
    for name, (q, m, with_bias, causal) in SHAPES.items():
        weights = jnp.asarray(np.random.default_rng(1).standard_normal((4, q, h, k)), jnp.float32)
        arrays, ids = arguments_of(4, h, k, q, m, jnp.bfloat16)
        exact = [x.astype(jnp.float32) for x in arrays]
        with jax.default_matmul_precision("highest"):
            (_, out), grads = gradients(by_arrays, with_bias, causal, weights)(tuple(exact), ids)
            expected = [out, *grads]
        for way in (by_arrays, by_tiles):
            (_, out), grads = gradients(way, with_bias, causal, weights)(arrays, ids)
            off = [
                float(jnp.linalg.norm((a - e).astype(jnp.float32)) / jnp.linalg.norm(e))
                for a, e in zip([out, *grads], expected, strict=True)
            ]
            table.add(
                name,
                "bfloat16",
                way.__name__,
                *(f"{x:.1e}" for x in off[: 5 if with_bias else 4]),
                *([] if with_bias else [""]),
            )
    print(table, flush=True)


def clock(function, *arguments, repeats=20) -> float:
    """Median milliseconds of one call, of five rounds of several calls in a row."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(repeats):
            out = function(*arguments)
        jax.block_until_ready(out)
        times.append((time.perf_counter() - start) / repeats)
    return 1e3 * float(np.median(times))


def speed(b: int, h: int, k: int, repeats: int, shapes: str) -> None:
    table = monitor.Table(["shape", "way", "forward ms", "forward and backward ms"], title=f"one layer, {b} rows, bf16")
    for name in shapes.split(","):
        q, m, with_bias, causal = SHAPES[name]
        arrays, ids = arguments_of(b, h, k, q, m, jnp.bfloat16)
        weights = jnp.ones((b, q, h, k), jnp.float32)
        for way, its_ids in ((by_arrays, ids), (by_tiles, ids), (by_cudnn, [])):
            mask = Mask(segments=tuple(its_ids), causal=causal) if its_ids else Mask(causal=causal)
            try:
                forward = jax.jit(
                    lambda *x, way=way, mask=mask, with_bias=with_bias: way(*x[:3], x[3] if with_bias else None, mask)
                )
                both = gradients(way, with_bias, causal, weights)
                table.add(
                    name,
                    way.__name__,
                    f"{clock(forward, *arrays, repeats=repeats):.3f}",
                    f"{clock(both, arrays, its_ids, repeats=repeats):.3f}",
                )
            except Exception as error:
                table.add(name, way.__name__, "", str(error).splitlines()[0][:90])
    print(table, flush=True)


def tune(b: int, h: int, k: int, repeats: int) -> None:
    table = monitor.Table(["kernel", "rows, columns, warps, stages", "ms"], title=f"kernels, {b} rows of 512/512")
    arrays, ids = arguments_of(b, h, k, 512, 512, jnp.bfloat16)
    queries, keys, values = (x.transpose(0, 2, 1, 3) for x in arrays[:3])
    forward = (queries, keys, values, *ids, arrays[3])
    mixed, highest, inverse = jax.jit(lambda *x: flash_attention._forward_tiles(False, *x))(*forward)
    backward = (queries, keys, values, mixed, highest, inverse, highest, inverse, *ids, arrays[3])
    functions = {
        "FORWARD": (flash_attention._forward_tiles, forward),
        "BACKWARD_KEYS": (flash_attention._backward_keys, backward),
        "BACKWARD_QUERIES": (flash_attention._backward_queries, backward),
        "BACKWARD_BIAS": (flash_attention._backward_bias, backward),
    }
    for name, all_settings in SETTINGS.items():
        function, its_arguments = functions[name]
        usual = getattr(flash_attention, name)
        if name != "BACKWARD_BIAS":
            bare = clock(jax.jit(lambda *x, f=function: f(False, *x)), *its_arguments[:-1], None, repeats=repeats)
            table.add(name, f"{usual} without a bias", f"{bare:.3f}")
        times = {}
        for settings in all_settings:
            setattr(flash_attention, name, settings)
            try:
                ms = clock(jax.jit(lambda *x, f=function: f(False, *x)), *its_arguments, repeats=repeats)
                table.add(name, str(settings), f"{ms:.3f}")
                times[settings] = ms
            except Exception as error:
                table.add(name, str(settings), str(error).splitlines()[0][:90])
        setattr(flash_attention, name, min(times, key=times.get, default=usual))
        print(f"{name} = {getattr(flash_attention, name)}")
    print(table, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--b", type=int, default=64)
    parser.add_argument("--h", type=int, default=12)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="to time")
    parser.add_argument("--tune", action="store_true", help="and go on with the best tiles")
    arguments = parser.parse_args()
    print(jax.devices()[0].device_kind, jax.__version__, flush=True)
    check(arguments.h, arguments.k)
    if arguments.tune:
        tune(arguments.b, arguments.h, arguments.k, arguments.repeats)
    speed(arguments.b, arguments.h, arguments.k, arguments.repeats, arguments.shapes)


if __name__ == "__main__":
    main()
