"""A task's tokens, made once: what its preprocessors do before the objective, written where seqio looks for it."""

import contextlib
import importlib
import multiprocessing
import os
import queue
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import gin
from t5x_lite import configuration, console, monitor, run_folder
from t5x_lite.errors import UserError
from t5x_lite.text_files import TextFiles


@gin.configurable(module="t5x_lite")
def cache(
    task: str | Mapping[str, float] = gin.REQUIRED,
    output_dir: str = gin.REQUIRED,
    splits: Sequence[str] | None = None,
    shards: int = 16,
    processes: int | None = None,
    seed: int = 0,
    task_modules: Sequence[str] = ("t5x_lite.tasks",),
    vocabulary: Any | None = None,
    text_files: TextFiles | None = None,
    named_files: Mapping[str, TextFiles] | None = None,
) -> int:
    """Caches a task, or the tasks of a mixture, in seqio's format below `output_dir`.

    `SeqioSource.cache_dir` of a run reads it: the same batches as without it, and no tokenizing. So does seqio, with
    `seqio.add_global_cache_dirs`. A task that is there already is left as it is.

    Args:
      task: as MIXTURE_OR_TASK_NAME.
      output_dir: the folder of caches.
      splits: those to cache; by default all that a task has.
      shards: files of a split, where the task's source can be cut anywhere; else as many as the source has.
      processes: that tokenize; by default one for each core.
      seed: of random preprocessing before the cache.
      task_modules: modules that register tasks.
      vocabulary: used instead of the tasks' own, as in the runs that read the cache.
      text_files, named_files: as in `SeqioSource`.

    Returns:
      0.

    Raises:
      UserError: an unknown task or split, data that are not here, or a task that cannot be cached.
    """
    # 1. What was asked.
    for name, value in (("shards", shards), ("processes", processes or 1)):
        if type(value) is not int or value < 1:
            raise UserError(f"cache.{name} must be a whole number of at least 1, not {value!r}")
    from t5x_lite import seqio_cache, seqio_names, seqio_sources  # TensorFlow: seconds

    names = seqio_names.Named(task, tuple(task_modules), vocabulary, text_files, named_files or {})
    provider = seqio_names.find(names)
    tasks = list(getattr(provider, "tasks", [provider]))
    todo = []
    for each in tasks:
        folder = seqio_cache.task_folder(os.path.expanduser(output_dir), each)
        if (folder / "COMPLETED").exists():
            console.say(f"cache: {folder} is there already")
            continue
        wanted = [splits] if isinstance(splits, str) else list(splits or each.splits)
        for split in wanted:
            seqio_sources.tasks_with_split(each, split)  # or it says which data set is not here
        todo.append((each, folder, {split: seqio_cache.number_of_shards(each, split, shards) for split in wanted}))
    configuration.check_all_read()

    # 2. Shard by shard, beside the place; then into it.
    for each, folder, counts in todo:
        with run_folder.made_beside(folder) as unfinished:
            unfinished.mkdir(parents=True)
            for split, count in counts.items():
                work = [(names, each.name, split, os.fspath(unfinished), shard, count, seed) for shard in range(count)]
                total = each.source.num_input_examples(split)
                parts = _run(work, min(processes or os.cpu_count(), count), f"{split} of {each.name}", total)
                stats = seqio_cache.finish_split(os.fspath(unfinished), split, count, parts)
                console.say(f"cache: {split}: " + ", ".join(f"{name} {value:,}" for name, value in stats.items()))
            (unfinished / "COMPLETED").touch()
        console.say(f"cache: {folder}")
    return 0


def _run(work: Sequence[tuple], processes: int, what: str, total: int | None) -> list:
    """The results of `_write` of each piece of work, in their order."""
    with monitor.Progress(f"cache: {what}", total, "examples") as progress:
        if processes == 1:
            return [_write(piece, progress.add) for piece in work]
        return _in_processes(work, processes, progress)


def _in_processes(work: Sequence[tuple], processes: int, progress: monitor.Progress) -> list:
    # New processes: TensorFlow's threads do not live on in forked ones.
    context = multiprocessing.get_context("spawn")
    counts = context.Queue()
    known = sorted(name for name in sys.modules if name.startswith("t5x_lite."))  # whose names gin may bind
    with context.Pool(processes, _set_up, (counts, gin.config_str(), known)) as pool:
        pending = [pool.apply_async(_write_apart, (piece,)) for piece in work]
        while not all(result.ready() for result in pending):
            with contextlib.suppress(queue.Empty):
                progress.add(counts.get(timeout=0.2))
        return [result.get() for result in pending]


def _write(piece: tuple, count) -> tuple:
    from t5x_lite import seqio_cache, seqio_names

    names, task_name, split, folder, shard, shards, seed = piece
    provider = seqio_names.find(names)
    (task,) = [task for task in getattr(provider, "tasks", [provider]) if task.name == task_name]
    return seqio_cache.write_shard(task, split, folder, shard, shards, seed, count)


# Of a worker process.
_counts = None


def _set_up(counts, config: str, modules: Sequence[str]) -> None:
    global _counts
    _counts = counts
    for module in modules:
        importlib.import_module(module)
    gin.parse_config(config, skip_unknown=True)


def _write_apart(piece: tuple) -> tuple:
    return _write(piece, _counts.put)
