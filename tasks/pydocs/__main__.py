"""`python -m t5x_lite.tasks.pydocs`: builds the corpus, or finds it built, and prints what is in it."""

import json
import sys
import time

import tensorflow_datasets as tfds
import tqdm

from t5x_lite.tasks.pydocs import builder, corpus


def bars(stage: str, total: int):
    """A progress bar for one stage of the build; where there is no terminal, a line when it begins."""
    bar = tqdm.tqdm(total=total, desc=stage, file=sys.stderr, disable=None)  # None: shown on a terminal alone
    if bar.disable:
        print(f"{stage} ({total:,})", file=sys.stderr, flush=True)
        return lambda done: None

    def step(done: int) -> None:
        bar.update(done)
        if bar.n >= total:
            bar.close()

    return step


def main() -> None:
    start = time.monotonic()
    folder = builder.ensure_built(progress=bars)
    info = tfds.builder_from_directory(folder).info
    print(f"{folder} ({time.monotonic() - start:.0f} s)")
    _, versions = corpus.installed_sources()
    changed = sorted(
        k
        for k in versions.keys() | info.metadata["versions"].keys()
        if versions.get(k) != info.metadata["versions"].get(k)
    )
    if changed:
        print(f"Built from other versions of {', '.join(changed)}; delete the folder to build it anew.")
    counts = info.metadata["libraries"]
    for split in builder.SPLITS:
        megabytes = info.metadata["characters"][split] / 1e6
        print(f"{split:12}{info.splits[split].num_examples:8,} documents {megabytes:8.2f} MB of text")
    print(f"{'library':12}" + "".join(f"{split:>12}" for split in builder.SPLITS))
    for name in sorted(counts["train"], key=lambda n: -counts["train"][n]):
        print(f"{name:12}" + "".join(f"{counts[split].get(name, 0):12,}" for split in builder.SPLITS))
    report = json.loads((folder / builder.REPORT_FILE_NAME).read_text())
    for pair, found in report.items():
        print(f"{pair}: " + ", ".join(f"{key} {value}" for key, value in found.items()))


if __name__ == "__main__":
    main()
