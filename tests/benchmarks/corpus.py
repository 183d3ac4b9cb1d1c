"""How fast crawl files become a corpus, in which memory, and what more input and more workers make of it.

    python -m tests.benchmarks.corpus [--mib 8] [--times 1,4,16] [--workers 1,2] [--identifier langdetect,cld3] \
        [--json results.json]

The input is Python's own documentation as WET, `--mib` MiB of text; of times n the same pages n times over, at other
addresses and with other names in each sentence, so that no copy is repeated. Each row is a run of its own processes.
Printed: MB/s of WET text, also a core; the peak of all processes' memory together, sampled four times a second; and
what a month of Common Crawl would take at that rate, beside the 335 CPU-days that C4 took. Nothing else should run.
Costs: some minutes for times 16 with langdetect.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

import psutil

ROOT = pathlib.Path(__file__).resolve().parents[2]
MONTH_BYTES = 20e12  # text of April 2019's crawl
C4_CPU_DAYS = 335


def write_input(folder: pathlib.Path, mib: float, times: int) -> int:
    """Writes WET files of about 1 MiB; returns the bytes of their text."""
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    from crawl_files import documentation, write_wet
    from resiliparse.extract.html2text import extract_plain_text

    pages = [(url, extract_plain_text(text)) for url, text in documentation(10_000)]
    total, file, batch, size, round_ = 0, 0, [], 0, 0
    while total < mib * times * 2**20:
        for url, text in pages:
            # A word of its own for each round: no line is another's, and the language stays what it is.
            text = "\n".join(f"In release {round_} {line}" for line in text.split("\n"))
            batch.append((f"{url}/{round_}", text))
            size += len(text.encode())
            if size >= 2**20 or total + size >= mib * times * 2**20:
                write_wet(folder / f"{file:05d}.warc.wet.gz", batch)
                total, file, batch, size = total + size, file + 1, [], 0
            if total >= mib * times * 2**20:
                break
        round_ += 1
    return total


def run(folder: pathlib.Path, identifier: str, workers: int) -> tuple[float, float, float]:
    """(seconds, CPU seconds, peak of memory in MiB) of one run."""
    with tempfile.TemporaryDirectory() as out:
        started = time.monotonic()
        process = psutil.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "t5x_lite",
                "corpus",
                "--variant=en",
                f"--input={folder}/*.gz",
                f"--output_dir={out}",
                "--gin.BAD_WORDS=None",
                f"--gin.CorpusRules.identifier={identifier}",
                f"--gin.corpus.workers={workers}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        peak, cpu = [0.0], {}

        def sample():
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                total = 0
                for each in [process, *process.children(recursive=True)]:
                    try:
                        total += each.memory_full_info().pss
                        cpu[each.pid] = sum(each.cpu_times()[:2])
                    except psutil.Error:
                        continue
                peak[0] = max(peak[0], total / 2**20)
                time.sleep(0.25)

        sampler = threading.Thread(target=sample)
        sampler.start()
        said = process.stderr.read().decode()
        process.wait()
        sampler.join()
        if process.returncode:
            raise RuntimeError(said[-2000:])
        return time.monotonic() - started, sum(cpu.values()), peak[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=float, default=8)
    parser.add_argument("--times", default="1,4,16")
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--identifier", default="langdetect,cld3")
    parser.add_argument("--json")
    args = parser.parse_args()
    rows = []
    for times in map(int, args.times.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            size = write_input(pathlib.Path(folder), args.mib, times)
            for identifier in args.identifier.split(","):
                for workers in map(int, args.workers.split(",")):
                    seconds, cpu, peak = run(pathlib.Path(folder), identifier, workers)
                    row = {
                        "identifier": identifier,
                        "workers": workers,
                        "text_mb": size / 1e6,
                        "seconds": seconds,
                        "cpu_seconds": cpu,
                        "mb_per_s": size / 1e6 / seconds,
                        "mb_per_cpu_s": size / 1e6 / cpu,
                        "peak_mib": peak,
                        "month_cpu_days": MONTH_BYTES / (size / cpu) / 86400,
                    }
                    rows.append(row)
                    print(
                        "  ".join(f"{k} {v:,.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()),
                        flush=True,
                    )
    # What starting takes is in every row; between two sizes of input it drops out.
    for identifier in args.identifier.split(","):
        for workers in map(int, args.workers.split(",")):
            own = [row for row in rows if (row["identifier"], row["workers"]) == (identifier, workers)]
            if len(own) > 1:
                first, last = own[0], own[-1]
                more = last["text_mb"] - first["text_mb"]
                rate = more / (last["seconds"] - first["seconds"])
                cpu_rate = more / (last["cpu_seconds"] - first["cpu_seconds"])
                print(
                    f"{identifier}, {workers} worker(s), starting left out: {rate:.2f} MB/s, {cpu_rate:.2f} MB a CPU "
                    f"second; a month of Common Crawl {MONTH_BYTES / 1e6 / cpu_rate / 86400:,.0f} CPU-days (C4: "
                    f"{C4_CPU_DAYS}); memory × {last['peak_mib'] / first['peak_mib']:.2f} for input × "
                    f"{last['text_mb'] / first['text_mb']:.1f}"
                )
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
