"""How long a job takes from its start to the first step, or the first answer, cold and with the compilation cache.

    bash launch/local.sh                        # its corpus and its checkpoint are used
    python -m tests.benchmarks.startup [--run_dir runs/quickstart] [--rounds 3] [--json results.json]

Costs: some five minutes on 2 CPU cores. Nothing else should run. Each is a process of its own, from its start to the
line that tells of the first loss, or of the first answer's file; they take turns. Cold is without compiled programs,
but Python's files are in the page cache. `import seqio`, which any job with seqio tasks needs, is timed beside them.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from t5x_lite import monitor

SEQIO = [sys.executable, "-c", "import seqio"]
COMMAND = [sys.executable, "-P", "-m", "t5x_lite"]


def until(command: list[str], sign: str | None, cache: str) -> float:
    """Seconds from the start of a process to a line with `sign`, or to its end."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache, "PYTHONUNBUFFERED": "1"}
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    said = []
    for line in process.stdout:
        said.append(line)
        if sign and sign in line:
            seconds = time.perf_counter() - started
            process.kill()
            process.wait()
            return seconds
    if process.wait() or sign:
        raise SystemExit(f"{' '.join(command)} ended without {sign!r}:\n{''.join(said)}")
    return time.perf_counter() - started


def write_rows(path: pathlib.Path) -> None:
    """Tokenized batches of the quick start's pretraining shape."""
    rng = np.random.default_rng(0)
    lengths = {"encoder_input_tokens": 128, "decoder_input_tokens": 32, "decoder_target_tokens": 32}
    rows = {name: rng.integers(3, 4000, (512, n)).astype(np.int32) for name, n in lengths.items()}
    np.savez(path, **rows, decoder_loss_weights=np.ones((512, 32), np.int32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run_dir", default="runs/quickstart")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    checkpoint = pathlib.Path(arguments.run_dir, "finetune")
    if not checkpoint.is_dir():
        raise SystemExit(f"{checkpoint} is not there: run launch/local.sh first, or give --run_dir")
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        top = pathlib.Path(name)
        rows = top / "rows.npz"
        write_rows(rows)
        (top / "texts.txt").write_text("summarize: The array is filled with zeros and has the given shape and type.\n")

        def train(run: str) -> list[str]:
            return [*COMMAND, "train", "--gin_file=examples/quickstart_pretrain.gin", f"--model_dir={top / run}"]

        def train_npz(run: str) -> list[str]:
            flags = ["--gin_file=models/t5_1_1/mini.gin", "--gin_file=runs/train_npz.gin", f"--gin.NPZ_PATTERN={rows}"]
            return [
                *COMMAND,
                "train",
                *flags,
                "--gin.TRAIN_STEPS=100",
                "--gin.BATCH_SIZE=32",
                f"--model_dir={top / run}",
            ]

        def infer(run: str) -> list[str]:
            flags = [f"--checkpoint={checkpoint}", f"--input={top / 'texts.txt'}", f"--output={top / run}.jsonl"]
            return [*COMMAND, "infer", *flags, "--gin.infer.max_input_length=96", "--gin.Decoder.max_length=32"]

        for i in range(arguments.rounds):
            for what, command, sign in (
                ("train, the quick start's pretraining", train, "first loss"),
                ("train on tokenized rows", train_npz, "first loss"),
                ("infer, the first answer", infer, None),
            ):
                cache = str(top / f"cache-{i}-{command.__name__}")
                for kind in ("cold", "with the cache"):
                    run = f"{command.__name__}-{i}-{kind.replace(' ', '-')}"
                    seconds.setdefault(f"{what}, {kind}", []).append(until(command(run), sign, cache))
            seconds.setdefault("import seqio", []).append(until(SEQIO, None, name))
    table = monitor.Table(["from the start to", "s", "range"])
    for what, values in seconds.items():
        table.add(what, f"{statistics.median(values):.1f}", f"[{min(values):.1f}, {max(values):.1f}]")
    print(table.markdown())
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(seconds, indent=1))


if __name__ == "__main__":
    main()
