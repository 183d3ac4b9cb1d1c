"""A C4-like corpus of crawl files.

WET or WARC files ── rules, on Beam ── shards ── metadata and report ── renamed into place
"""

import dataclasses
import os
import time
from collections.abc import Sequence

from etils import epath

import gin
from t5x_lite import configuration, console, run_folder
from t5x_lite.corpus import libraries, progress, report, runners, writing
from t5x_lite.corpus.options import CorpusRules
from t5x_lite.errors import UserError

_INPUT_BYTES_A_SHARD = 32 << 20
_MOST_SHARDS = 1024  # of a split; as many as C4 has
REPORT = "report.html"


@gin.configurable(module="t5x_lite")
def corpus(
    input: str = gin.REQUIRED,
    output_dir: str = gin.REQUIRED,
    variant: str | None = None,
    rules: CorpusRules | None = None,
    name: str = "c4",
    version: str = "3.1.0",
    shards: int | None = None,
    workers: int | None = None,
    pipeline_options: str = "",
    group_on_disk: bool | None = None,
    dry_run: bool = False,
) -> int:
    """Cleans crawl files into a data set of tensorflow-datasets, `<output_dir>/<name>/<variant>/<version>`.

    With TFDS_DATA_DIR=<output_dir> the tasks on `c4` read it. Beside it stands `report.html`: what each rule removed.
    The same files and rules give the same bytes, however many workers there are and whichever runner it is.

    Args:
      input: WET or WARC files, packed by gzip or not; paths or globs, apart by commas.
      output_dir: the folder of data sets.
      variant: what its rules are called; the variants' gin files set it.
      rules: by default `CorpusRules()`, with its bindings.
      name, version: of the data set. `tasks/c4.py` has tasks on `c4`, 3.1.0 being the version of today's rules.
      shards: files of each split at most; by default one for 32 MiB of input, and no more than 1,024.
      workers: processes on this machine; by default one for each core.
      pipeline_options: flags for Beam, such as "--runner=DataflowRunner --region=…": any runner of Beam's.
      group_on_disk: group records in files below the output rather than in the runner; by default on this machine
        only, where Beam would hold all of them in memory.
      dry_run: say what would be done, and stop.

    Returns:
      0.

    Raises:
      UserError: no variant, no input, an output that exists, no page that is kept, or Beam is not installed.
    """
    # 1. What was asked.
    if variant is None:
        raise UserError("corpus needs a variant: --variant=en, or en.noclean, realnewslike, webtextlike, multilingual")
    choice = rules or CorpusRules()
    configuration.check_all_read()
    files = libraries.input_files("--input", input, "WET or WARC files")
    size = sum(epath.Path(file).stat().length for file in files)
    if shards is not None and (type(shards) is not int or shards < 1):
        raise UserError(f"corpus.shards must be a whole number of at least 1, not {shards!r}")
    per_split = shards or max(1, min(_MOST_SHARDS, size // _INPUT_BYTES_A_SHARD))
    folder = epath.Path(os.path.expanduser(output_dir)) / name / variant / version
    if folder.exists():
        raise UserError(f"{folder} exists: remove it, or set corpus.version or another --output_dir")
    console.say(f"corpus: {len(files):,} file(s), {size / 2**20:,.1f} MiB, into {folder}")
    if dry_run:
        console.say("corpus: " + "; ".join(f"{key} {value}" for key, value in describe(choice).items()))
        return 0

    # 2. Pages into shards.
    started = time.monotonic()
    with run_folder.made_beside(folder) as unfinished:
        work = unfinished / "work"
        runner = runners.choose(pipeline_options, workers, os.fspath(work / "workers.log"))
        from t5x_lite.corpus import pipeline

        for part in ("shards", "runs", "marks"):
            (work / part).mkdir(parents=True)
        place = pipeline.Place(os.fspath(work / "runs"), os.fspath(work / "marks"))
        on_disk = runner.here if group_on_disk is None else group_on_disk
        layout = pipeline.Layout(
            os.fspath(work / "shards"), os.fspath(work / "summary.json"), place if on_disk else None, per_split
        )
        with progress.Progress(place.marks, pipeline.steps(len(files))):
            summary = pipeline.run(files, choice, layout, runner)
        console.show(report.as_text(summary["tally"]))
        if not summary["shards"]:
            raise UserError("no page was kept: what each rule removed is said above")

        # 3. Metadata, report, and into place.
        splits = _name_shards(work / "shards", unfinished, name, summary["shards"])
        about = {"input": f"{len(files):,} file(s), {size:,} bytes", **describe(choice)}
        writing.write_metadata(
            os.fspath(unfinished),
            name,
            version,
            splits,
            f"{variant}: made from crawl files by T5X-lite. " + "; ".join(f"{k}: {v}" for k, v in about.items()),
        )
        totals = {split: (sum(n for n, _ in parts), sum(b for _, b in parts)) for split, parts in splits.items()}
        (unfinished / REPORT).write_text(report.as_html(f"{name}/{variant}:{version}", about, summary["tally"], totals))
        work.rmtree()
    seconds = time.monotonic() - started
    for split, (pages, total) in totals.items():
        console.show(f"{split}: {pages:,} pages, {total:,} bytes in {len(splits[split])} file(s)")
    console.say(f"corpus: {seconds:.1f} s, {size / 2**20 / seconds:.2f} MiB of input a second; {folder / REPORT}")
    return 0


def describe(choice: CorpusRules) -> dict[str, str]:
    """The rules' numbers, in words for a report; of files the name alone."""
    return {
        field.name: os.path.basename(value) if isinstance(value := getattr(choice, field.name), str) else str(value)
        for field in dataclasses.fields(choice)
    }


def _name_shards(
    source: epath.Path, target: epath.Path, name: str, written: Sequence[tuple[str, int, int, int]]
) -> dict[str, list[tuple[int, int]]]:
    """Moves shards to their final names, which tell how many there are; {split: (pages, bytes) of each}."""
    splits: dict[str, list] = {}
    for split, shard, pages, size in sorted(written):
        splits.setdefault(split, []).append((shard, pages, size))
    for split, parts in splits.items():
        for number, (shard, _, _) in enumerate(parts):
            (source / f"{split}-{shard:05d}").rename(target / writing.shard_name(name, split, number, len(parts)))
    return {split: [(pages, size) for _, pages, size in parts] for split, parts in splits.items()}
