"""How fast this project trains and decodes beside Hugging Face's transformers with torch, on the machine at hand.

    python -m tests.benchmarks.compare --work=train --model=t5_1_1/small --b=4 --s=512 --t=114
    python -m tests.benchmarks.compare --work=greedy --b=8 --s=128 --t=32
    python -m tests.benchmarks.compare --work=beam --b=8 --s=128 --t=32

Needs torch and transformers (pip install torch==2.14.1 transformers==5.24.0); `--sides=ours` does not. They are no
extra: torch's NVIDIA packages are other ones than jax's, and one set of versions could not have both. Costs: on 2 CPU
cores about five minutes for training, on a GPU two. Nothing else should run. Each side is a process of its own, and
they take turns (A B A B …); the ratio is taken turn by turn. Each side holds its parameters in float32 and computes in
--dtype.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

from t5x_lite import configuration, flops, monitor
from t5x_lite.models import T5Config


class Side:
    def __init__(self, name: str, setup: dict):
        self.name, self.seconds, self.peak_bytes, self.failed = name, [], 0, None
        env = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "2"}
        command = [sys.executable, "-m", "tests.benchmarks.sides", json.dumps({**setup, "side": name})]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def wait(self) -> None:
        self.ready = self._read()
        print(f"{self.name}: {self.failed or self.ready}", file=sys.stderr, flush=True)

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            self.failed = f"ended with {self.process.wait()}"
            return {}
        return json.loads(line)

    def run(self, n: int) -> None:
        if self.failed:
            return
        self.process.stdin.write(json.dumps({"run": n}) + "\n")
        self.process.stdin.flush()
        answer = self._read()
        self.seconds += answer.get("seconds", [])
        self.peak_bytes = answer.get("peak_bytes", 0)
        self.loss = answer.get("loss")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(arguments) -> dict:
    config_changes = dict(pair.split("=", 1) for pair in arguments.set)
    config_changes = {name: _number(value) for name, value in config_changes.items()}
    configuration.parse([f"models/{arguments.model}.gin"], [])
    config = T5Config()
    setup = {
        name: getattr(arguments, name)
        for name in ("work", "model", "b", "s", "t", "dtype", "optimizer", "steps", "packed")
    }
    setup |= {"config": config_changes, "shape": json.dumps(config.to_dict())}
    sides = [Side(name, setup) for name in arguments.sides.split(",")]
    for side in sides:  # they compile side by side, and then take turns
        side.wait()
    for side in sides:
        side.run(1)  # warm-up
        side.seconds.clear()
    for _ in range(arguments.rounds):
        for side in sides:
            side.run(1)
    for side in sides:
        side.close()
    useful = flops.train_flops_per_example(config, arguments.s, arguments.t) * arguments.b
    results = {"setup": setup, "device": sides[0].ready.get("device"), "sides": {}}
    for side in sides:
        if side.failed or not side.seconds:
            results["sides"][side.name] = {"failed": side.failed}
            continue
        median = statistics.median(side.seconds)
        made = arguments.b * ((arguments.s + arguments.t) if arguments.work == "train" else arguments.t)
        results["sides"][side.name] = {
            "seconds": median,
            "range": [min(side.seconds), max(side.seconds)],
            "all": side.seconds,
            "rows_per_second": arguments.b / median,
            "tokens_per_second": made / median,
            "peak_gib": side.peak_bytes / 2**30,
            "start": side.ready,
            "loss": side.loss,
            **({"tflops": useful / median / 1e12} if arguments.work == "train" else {}),
        }
    for side in sides[1:]:
        if side.seconds and sides[0].seconds:
            ratios = [b / a for a, b in zip(sides[0].seconds, side.seconds, strict=True)]
            results["sides"][side.name]["ratio"] = statistics.median(ratios)
            results["sides"][side.name]["ratio_range"] = [min(ratios), max(ratios)]
    return results


def _number(value: str):
    try:
        return json.loads(value)
    except ValueError:
        return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=("train", "greedy", "beam"), default="train")
    parser.add_argument("--sides", default="ours,hf_eager", help="of ours, hf_eager, hf_compiled")
    parser.add_argument("--model", default="t5_1_1/small")
    parser.add_argument("--b", type=int, default=4, help="rows of a batch")
    parser.add_argument("--s", type=int, default=512, help="input tokens")
    parser.add_argument("--t", type=int, default=114, help="target tokens")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--optimizer", choices=("adafactor", "adamw"), default="adamw")
    parser.add_argument("--steps", type=int, default=1, help="in one turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--packed", action="store_true", help="our rows have segments")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of our T5Config")
    parser.add_argument("--json", type=pathlib.Path, help="a file to which the results are added, one line")
    arguments = parser.parse_args()
    results = compare(arguments)
    title = (
        f"{arguments.work} {arguments.model} {arguments.dtype}, {arguments.b} rows of "
        f"{arguments.s}/{arguments.t}, {results['device']}"
    )
    columns = ["side", "median s", "from", "to", "rows/s", "TFLOP/s", "peak GiB", "ours is faster by"]
    table = monitor.Table(columns, title=title)
    for name, r in results["sides"].items():
        if "seconds" not in r:
            table.add(name, r["failed"] or "no answer", "", "", "", "", "", "")
            continue
        tflops = f"{r['tflops']:.3g}" if "tflops" in r else ""
        ratio = f"{r['ratio']:.2f}" if "ratio" in r else ""
        table.add(
            name,
            f"{r['seconds']:.4g}",
            *(f"{x:.4g}" for x in r["range"]),
            f"{r['rows_per_second']:,.1f}",
            tflops,
            f"{r['peak_gib']:.1f}",
            ratio,
        )
    print(table, flush=True)
    if arguments.json:
        with arguments.json.open("a") as file:
            file.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
