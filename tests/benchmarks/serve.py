"""What sharing batches is worth to a server: throughput and latency under load, against one request at a time.

    python tests/benchmarks/serve.py                                  # t5_1_1/mini with random parameters, 2 minutes
    python tests/benchmarks/serve.py --model=t5_1_1/small --requests=400 --concurrency=32
    python tests/benchmarks/serve.py --checkpoint=/tmp/t5x_lite/library --requests=400

It starts `t5x-lite serve` as a process of its own, asks each kind of request until nothing is left to compile, and then
measures from outside, over sockets: first by one client that waits for each answer before it asks again, then by
`--concurrency` such clients at a time. Texts have 5 to 40 words; answers `--max_length` tokens (random parameters
seldom end one early). It ends with a table: requests a second, and the time to an answer in ms that 50, 95 and 99 % are
within.
"""

import argparse
import asyncio
import contextlib
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import aiohttp
import numpy as np

WORDS = "the quick brown fox jumps over a lazy dog while some english text is translated into other words".split()


def texts(n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(5, 40))) for _ in range(n)]


def save_random(model: str, folder: pathlib.Path) -> None:
    """A checkpoint of that model file with initial parameters, on bytes."""
    import jax

    from t5x_lite import configuration
    from t5x_lite.api import Model
    from t5x_lite.inference import Answerer
    from t5x_lite.models import Model as PureModel
    from t5x_lite.models import T5Config
    from t5x_lite.partitioning import MeshConfig
    from t5x_lite.vocabularies import ByteVocabulary

    configuration.parse([f"models/{model}.gin"], ["T5Config.vocab_size=384"])
    pure = PureModel(T5Config())
    params = jax.jit(pure.init)(jax.random.key(0))
    partitioner = MeshConfig().build()
    Model(Answerer(pure, params, ByteVocabulary(), partitioner, partitioner.batch_shards, 16, 16)).save(folder)


@contextlib.contextmanager
def served(checkpoint: pathlib.Path, batch_size: int) -> Iterator[str]:
    """The address of a server."""
    command = [sys.executable, "-P", "-m", "t5x_lite", "serve", "--gin_file=runs/serve.gin", "--port=0"]
    # Compiling, a first request may take longer than a visitor would wait.
    flags = [f"--checkpoint={checkpoint}", f"--gin.BATCH_SIZE={batch_size}", "--gin.serve.timeout_seconds=600"]
    process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if "listening on " in line:
                yield line.split("listening on ")[1].split()[0]
                break
        else:
            raise SystemExit("the server did not start")
    finally:
        process.terminate()
        print(process.communicate()[0].splitlines()[-1])


async def load(address: str, asked: list[dict], clients: int) -> tuple[float, np.ndarray]:
    """Requests a second, and the seconds of each."""
    seconds, left = [], iter(asked)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=clients)) as session:

        async def client():
            for body in left:
                start = time.perf_counter()
                async with session.post(f"{address}generate", json=body) as response:
                    found = await response.json()
                    if response.status != 200:
                        raise SystemExit(f"{response.status}: {found}")
                seconds.append(time.perf_counter() - start)

        start = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return len(asked) / (time.perf_counter() - start), np.array(seconds)


async def measure(address: str, arguments: argparse.Namespace) -> list[dict]:
    rows = []
    for kind in ({"method": "greedy"}, {"method": "sample", "temperature": 0.8, "top_p": 0.9}):
        asked = [
            {"text": text, "max_length": arguments.max_length, **kind, **({"seed": i} if "top_p" in kind else {})}
            for i, text in enumerate(texts(arguments.requests, seed=1))
        ]
        for clients in (1, arguments.concurrency):
            # Programs are compiled for a few numbers of rows and of tokens: both must have been met before.
            for _ in range(2):
                await load(address, asked[: max(32, 4 * clients)], clients)
            some = asked if clients > 1 else asked[: max(1, arguments.requests // 4)]
            rate, seconds = await load(address, some, clients)
            p50, p95, p99 = np.percentile(seconds, (50, 95, 99)) * 1e3
            rows.append({"decoding": kind["method"], "clients": clients, "requests": len(some), "rate": rate})
            rows[-1] |= {"p50": p50, "p95": p95, "p99": p99}
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="instead of a model with random parameters")
    parser.add_argument("--model", default="t5_1_1/mini", help="a file of gin/models")
    parser.add_argument("--requests", type=int, default=200, help="under load; a quarter of it one at a time")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--max_length", type=int, default=32, help="tokens of an answer")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else the server would stay
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = arguments.checkpoint
        if checkpoint is None:
            checkpoint = pathlib.Path(folder) / "model"
            save_random(arguments.model, checkpoint)
        with served(checkpoint, arguments.batch_size) as address:
            rows = asyncio.run(measure(address, arguments))
    print("\n| decoding | clients | requests/s | p50 ms | p95 ms | p99 ms |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for r in rows:
        print(
            f"| {r['decoding']} | {r['clients']} | {r['rate']:.1f} | {r['p50']:.0f} | {r['p95']:.0f} | {r['p99']:.0f} |"
        )


if __name__ == "__main__":
    main()
