"""The job `inspect`: a look at what a run reads and what it leaves. Nothing is trained."""

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

import gin
from t5x_lite import checkpoint_contents, configuration, console, run_folder
from t5x_lite.errors import UserError
from t5x_lite.jobs import evaluate, infer, train  # noqa: F401  (gin must know them: files of their runs are looked at)
from t5x_lite.monitor import Table
from t5x_lite.text_files import TextFiles
from t5x_lite.vocabularies import Vocabulary

CELL = 100  # characters of a value in a table
LINE = 600  # of a field of an example
IDS = 12  # tokens shown as numbers


@gin.configurable("inspect", module="t5x_lite")
def inspect(
    task: str | Mapping[str, float] | None = None,
    checkpoint: str | None = None,
    against: str | None = None,
    json_file: str | None = None,
    split: str = "train",
    feature_lengths: Mapping[str, int] | None = None,
    records: int = 2,
    first: int = 0,
    examples: int = 2,
    sample: int = 200,
    seed: int = 0,
    vocabulary: Vocabulary | None = None,
    task_modules: Sequence[str] = ("t5x_lite.tasks",),
    text_files: TextFiles | None = None,
    named_files: Mapping[str, TextFiles] | None = None,
) -> int:
    """Shows a task, a mixture, a checkpoint, or else what the gin files and flags bind, and where each binding is.

    Of a task: what its preprocessors make of some records, one after the other. Of a mixture: rates, and what each task
    is of the examples and of the tokens. Of a checkpoint: its arrays, and what it says of itself; with `against`, how
    the parameters of two differ, of whatever systems they are.

    Args:
      task: a task or mixture, as MIXTURE_OR_TASK_NAME.
      checkpoint: a MODEL_DIR, one checkpoint in it, or another system's.
      against: a second checkpoint.
      json_file: a file for the same as JSON; "-" prints JSON in place of text.
      split: of the task's data.
      feature_lengths: as TASK_FEATURE_LENGTHS; by default 512 tokens of each feature.
      records: how many go into the task's preprocessors.
      first: number of the first of them.
      examples: how many are shown of each stage.
      sample: records of each task of a mixture on which tokens are counted.
      seed: of the preprocessors' random choices.
      vocabulary: instead of the task's own.
      task_modules, text_files, named_files: as in `SeqioSource`.

    Returns:
      0.

    Raises:
      UserError: nothing to look at, two things at once, or what is wrong with the thing.
    """
    if against is not None and checkpoint is None:
        raise UserError("--against needs --checkpoint=PATH: it is the second of two checkpoints")
    if task is not None and checkpoint is not None:
        raise UserError("--task and --checkpoint are two things to look at: give one of them")
    for name, value, least in (
        ("records", records, 1),
        ("first", first, 0),
        ("examples", examples, 1),
        ("sample", sample, 1),
    ):
        if value < least:
            raise UserError(f"inspect.{name} must be at least {least}, not {value!r}")
    if task is not None:
        from t5x_lite import seqio_names  # TensorFlow: seconds

        names = seqio_names.Named(task, tuple(task_modules), vocabulary, text_files, named_files or {})
        text, found = _data(seqio_names.find(names), split, feature_lengths, records, first, examples, sample, seed)
    elif checkpoint is not None:
        configuration.check_all_read()
        text, found = _checkpoint(checkpoint, against)
    else:
        text, found = _bindings()
    if json_file is not None:
        written = json.dumps(found, indent=2, ensure_ascii=False, default=str) + "\n"
        if json_file == "-":
            sys.stdout.write(written)
            return 0
        path = epath.Path(os.path.expanduser(json_file))
        path.parent.mkdir(parents=True, exist_ok=True)
        run_folder.write_whole(path, written)
    console.show(text)
    return 0


# Tasks and mixtures --------------------------------------------------------------------------------------------------


def _data(provider, split, feature_lengths, records, first, examples, sample, seed) -> tuple[str, dict[str, Any]]:
    from t5x_lite import seqio_sources, seqio_stages

    lengths = seqio_stages.lengths_of(provider, feature_lengths)
    name = seqio_sources.plain_name(provider.name)
    if hasattr(provider, "tasks"):
        found, problems = seqio_stages.shares(provider, split, lengths, sample, seed)
        configuration.check_all_read()
        if not found:
            seqio_sources.tasks_with_split(provider, split)  # says which splits there are
        about = {"mixture": name, "split": split, "feature_lengths": lengths, "problems": problems}
        return _of_mixture(name, split, found, problems), {**about, "tasks": [vars(share) for share in found]}
    seqio_sources.tasks_with_split(provider, split)
    about = seqio_stages.describe(provider)
    made = list(seqio_stages.stages(provider, split, lengths, records, first, examples, seed))
    configuration.check_all_read()
    found = {
        "task": name,
        "split": split,
        "feature_lengths": lengths,
        **about,
        "stages": [vars(stage) for stage in made],
    }
    return _of_task(found, records, first), found


def _of_mixture(name: str, split: str, found, problems: list[str]) -> str:
    features = sorted({feature for share in found for feature in share.tokens or ()})
    table = Table(
        ["task", "rate", "% of examples", *(f"mean {feature}" for feature in features), "% of tokens", "records"],
        title=f"{name}, {split}: tokens are a mean over some records, cut to the feature lengths",
    )
    for share in sorted(found, key=lambda share: -share.rate):
        means = [share.tokens[feature] if share.tokens else None for feature in features]
        whole = None if share.share is None else 100 * share.share
        table.add(share.task, float(share.rate), 100 * share.examples, *means, whole, share.records)
    return "\n".join([str(table), *(f"not counted: {problem}" for problem in problems)])


def _of_task(found: Mapping[str, Any], records: int, first: int) -> str:
    lines = [
        f"{found['task']}: {found['split']} of {found['source']}, which has {', '.join(found['splits'])}",
        *(
            f"  {name:<10} {what}, cut to {found['feature_lengths'].get(name, 'any')}"
            for name, what in found["features"].items()
        ),
        f"  metrics    {', '.join(found['metrics']) or 'none'}",
    ]
    for number, stage in enumerate(found["stages"]):
        what = f"{records} record(s) from {first} on" if number == 0 else stage["name"]
        lines += ["", f"{number}. {what}: {stage['count']:,} example(s)"]
        for example in stage["examples"]:
            width = max(map(len, example), default=0)
            lines += [
                f"   {'-' if i == 0 else ' '} {name:<{width}}  {_field(field)}"
                for i, (name, field) in enumerate(example.items())
            ]
    return "\n".join(lines)


def _field(field: Mapping[str, Any]) -> str:
    """Quoted, so that newlines and blanks can be seen."""
    values = field["values"]
    if "text" in field:
        ids = " ".join(map(str, values[:IDS])) + (" …" if len(values) > IDS else "")
        return f"{field['kind']}  {ids}  {_cut(repr(field['text']), LINE)}"
    return f"{field['kind']}  {_cut(repr(values), LINE)}"


# Checkpoints ---------------------------------------------------------------------------------------------------------


def _checkpoint(path: str, against: str | None) -> tuple[str, dict[str, Any]]:
    path = os.path.expanduser(path)
    if against is None:
        found = checkpoint_contents.read(path)
        lines = [f"{found['path']} ({found['format']}), step {found['step']}"]
        for item, arrays in found["arrays"].items():
            table = Table(["path", "shape", "dtype", "bytes"], title=item)
            for name, array in arrays.items():
                table.add(name, "×".join(map(str, array["shape"])), array["dtype"], array["bytes"])
            count = sum(math.prod(array["shape"]) for array in arrays.values())
            size = sum(array["bytes"] for array in arrays.values())
            lines += ["", str(table), f"{len(arrays)} arrays, {count:,} numbers, {size:,} bytes"]
        lines += [""] + [f"{name}: {_cut(_line(value), LINE)}" for name, value in found["about"].items()]
        return "\n".join(lines), found
    found = checkpoint_contents.difference(path, os.path.expanduser(against))
    table = Table(
        ["parameter", "what differs", "largest", "relative"], title=f"{found['path']} against {found['against']}"
    )
    for name, one in found["different"].items():
        table.add(name, one["what"], one.get("largest"), one.get("relative"))
    lines = [str(table)] if found["different"] else []
    lines.append(
        f"{found['equal']} parameters are equal, {len(found['different'])} differ; step {found['step']} against "
        f"{found['against_step']}"
    )
    lines += [f"{name}: {one[0]} against {one[1]}" for name, one in found["model"].items()]
    return "\n".join(lines), found


# Configurations ------------------------------------------------------------------------------------------------------


def _bindings() -> tuple[str, dict[str, Any]]:
    said = configuration.written()
    if not said:
        raise UserError(
            "inspect: nothing to look at: give --task=NAME, --checkpoint=PATH, or the gin files and flags of a run"
        )
    entries: list[dict[str, Any]] = []
    for name, statements in said.items():
        *before, now = statements
        entries.append(
            {
                "name": name,
                "value": configuration.value_text(now),
                "where": now.where,
                "instead_of": [{"value": configuration.value_text(s), "where": s.where} for s in before],
            }
        )
    entries.sort(key=lambda entry: ("." in entry["name"], entry["name"]))
    missing = sorted(configuration.referenced_macros() - said.keys())
    table = Table(["binding", "value", "where", "instead of"])
    for entry in entries:
        others = "; ".join(f"{_cut(one['value'], CELL // 2)} ({one['where']})" for one in entry["instead_of"])
        table.add(entry["name"], _cut(entry["value"], CELL), entry["where"], others)
    for name in missing:
        table.add(name, "(not set)", "", "")
    return str(table), {"bindings": entries, "not_set": missing}


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _line(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
