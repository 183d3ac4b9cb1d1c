"""How fast the input pipeline makes packed rows of span corruption, 512 inputs and 114 targets, from pydocs.

    python -m tests.benchmarks.input_pipeline [--documents 8192] [--seconds 10] [--json results.json]

Costs: about three times `--seconds`, and half a minute to start. Nothing else should run. One row holds one example as
good as always, since documents are joined and cut to fill it. Three sources of the same documents:

    text    the trainer's own blocks of 2,048 documents, one after the other: text in memory, tokenized on the way
    cached  a task cached as seqio does it, tokens in a TFRecord file
    seqio   `cached`, with seqio's own packing
"""

import argparse
import itertools
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import seqio
import tensorflow as tf

import t5x_lite.tasks  # noqa: F401  (registers)
from t5x_lite import data, monitor, seqio_blocks

TASK = "pydocs_span_corruption"
LENGTHS = {"inputs": 512, "targets": 114}


def cache(folder: str, documents: int) -> None:
    """Writes the task's tokens where seqio looks for a cached task."""
    task = seqio.TaskRegistry.get(TASK)
    target = pathlib.Path(folder, TASK)
    target.mkdir(parents=True)
    tokens = task.preprocess_precache(task.source.get_dataset("train", shuffle=False).take(documents))
    records = seqio.utils.get_cached_tfrecord_prefix(str(target), "train") + "-00000-of-00001"
    with tf.io.TFRecordWriter(records) as writer:
        for example in tokens.as_numpy_iterator():
            ids = tf.train.Feature(int64_list=tf.train.Int64List(value=example["targets"].tolist()))
            writer.write(tf.train.Example(features=tf.train.Features(feature={"targets": ids})).SerializeToString())
    info = {"num_shards": 1, "seqio_version": "0.0.20", "features": {"targets": {"shape": [None], "dtype": "int32"}}}
    pathlib.Path(seqio.utils.get_cached_info_path(str(target), "train")).write_text(json.dumps(info))
    stats = {"examples": documents}
    pathlib.Path(seqio.utils.get_cached_stats_path(str(target), "train")).write_text(json.dumps(stats))
    (target / "COMPLETED").touch()
    seqio.set_global_cache_dirs([folder])


def text_rows() -> Iterator[data.Row]:
    blocks = data.SeqioSource(TASK, LENGTHS, num_streams=1).open()
    for k in itertools.count():
        yield from blocks.block(0, k)


def cached_rows(seqio_packing: bool) -> Iterator[data.Row]:
    dataset = seqio.TaskRegistry.get(TASK).get_dataset(
        LENGTHS, "train", use_cached=True, seed=0, num_epochs=None, try_in_mem_cache=False
    )
    if seqio_packing:
        return seqio_blocks.rows_of(seqio.EncDecFeatureConverter(pack=True)(dataset, LENGTHS))
    return seqio_blocks.rows_of(seqio_blocks.convert(dataset, LENGTHS, packing=True))


def measure(rows: Iterator[data.Row], seconds: float) -> dict[str, float]:
    """Rates after the first 1,000 rows, which fill the shuffle buffer."""
    for _ in itertools.islice(rows, 1000):
        pass
    started, cpu, number, tokens = time.perf_counter(), time.process_time(), 0, 0
    while (elapsed := time.perf_counter() - started) < seconds:
        for row in itertools.islice(rows, 200):
            number += 1
            tokens += int((row["encoder_input_tokens"] > 0).sum() + (row["decoder_target_tokens"] > 0).sum())
    return {
        "rows_per_second": number / elapsed,
        "tokens_per_second": tokens / elapsed,
        "full": tokens / number / sum(LENGTHS.values()),
        "cpu_microseconds_per_row": (time.process_time() - cpu) / number * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=8192, help="to cache")
    parser.add_argument("--seconds", type=float, default=10, help="to measure each source")
    parser.add_argument("--json", type=pathlib.Path, help="a file for the same numbers")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache(folder, arguments.documents)
        sources = {
            "text": text_rows(),
            "cached": cached_rows(seqio_packing=False),
            "seqio": cached_rows(seqio_packing=True),
        }
        results = {name: measure(rows, arguments.seconds) for name, rows in sources.items()}
    cores = len(os.sched_getaffinity(0))
    columns = ["source", "rows/s", "tokens/s", "full %", "CPU µs/row"]
    table = monitor.Table(columns, title=f"512/114 packed, {cores} cores")
    for name, r in results.items():
        table.add(
            name,
            f"{r['rows_per_second']:,.0f}",
            f"{r['tokens_per_second']:,.0f}",
            f"{100 * r['full']:.1f}",
            f"{r['cpu_microseconds_per_row']:,.0f}",
        )
    print(table)
    if arguments.json:
        summary = {"cores": cores, "task": TASK, "lengths": LENGTHS, "sources": results}
        arguments.json.write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
