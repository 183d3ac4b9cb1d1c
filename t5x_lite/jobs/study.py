"""The job `study`: the paper's tables, a row's runs, and experiments of several rows."""

import copy
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from etils import epath

import gin
from t5x_lite import checkpoints, configuration, console, gin_files, plots
from t5x_lite.errors import UserError, did_you_mean, nearest
from t5x_lite.jobs.evaluate import evaluate
from t5x_lite.jobs.train import train
from t5x_lite.study import experiments, report, scaling, scores
from t5x_lite.study.rows import Run, StudyRow, plan

SHIPPED = f"{gin_files.PREFIX}study/"
JOBS = {"pretrain": "train", "finetune": "train", "test": "eval", "ensemble": "eval"}  # of each stage
ROOTS = {"train": train, "eval": evaluate}
_Bound = TypeVar("_Bound")


@gin.configurable(module="t5x_lite")
def study(
    table: str | None = None,
    row: str | None = None,
    experiment: experiments.Experiment | None = None,
    runs: str = "runs/study",
    scale: str | None = None,
    corpus: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    dry_run: bool = False,
) -> int:
    """Prints a table, runs a row, or runs an experiment. What is done already is not done again.

    Args:
      table: of the paper, "6": its published scores, and under them those of the runs found below `runs`.
      row: the name of a file of gin/study: its pretraining, its finetuning on each task, its ensemble if it is one.
      experiment: several rows with several seeds (see `Experiment`), with its own scale, corpus and overrides.
      runs: the folder below which runs are looked for, or made.
      scale: gin/study/scales/<scale>.gin; None for the paper's sizes.
      corpus: gin/study/corpora/<corpus>.gin; None for the paper's data.
      overrides: {macro or parameter: value} for all runs; they win over the row, the scale and the corpus.
      dry_run: write the gin files of the runs that need no other's result, and print the commands.

    Raises:
      UserError: an unknown table, row, scale or corpus, a mistake in a run, or a folder with runs of other settings.
    """
    asked = [name for name, value in (("table", table), ("row", row), ("experiment", experiment)) if value is not None]
    if len(asked) != 1:
        raise UserError(
            "study takes one of --table=6, --row=T6-25 and --gin_file=study/miniature.gin, not "
            + (" and ".join(asked) or "none of them")
        )
    configuration.check_all_read()
    top = epath.Path(runs if "://" in runs else os.path.abspath(runs))
    if table is not None:
        console.show(str(scores.table(table, columns(), top if top.is_dir() else None)))
    elif row is not None:
        recipe = load(row, scale, corpus, overrides or {})
        parts = columns().all_parts
        for run in plan(recipe.row):
            execute(recipe, run, top, parts, dry_run)
        if not dry_run:
            console.show(str(scores.table(scores.published()[row]["table"], columns(), top)))
    else:
        # All recipes first: a mistake in the last row should not come up after hours. Then seed by seed, so that what
        # is there after an interruption can be compared.
        recipes = [
            load(name, experiment.scale, experiment.corpus, experiment.overrides)
            for name in dict.fromkeys(experiment.rows.values())
        ]
        todo = [(recipe, run) for recipe in recipes for run in experiments.runs(experiment, recipe.row)]
        for recipe, run in sorted(todo, key=lambda one: one[1].bindings["RANDOM_SEED"]):
            execute(recipe, run, top, experiment.parts, dry_run)
        if not dry_run:
            console.show(str(report.write(experiment, experiments.collect(experiment, top), top)))
            console.show(f"{top / report.FILE}, with {report.PICTURE}")
    return 0


# ----------------------------------------------------------------------------------------------------------------------
# Rows
# ----------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A row as it is to run: its stages, and {macro or parameter: value} of the scale, the corpus and the overrides."""

    row: StudyRow
    values: Mapping[str, Any]

    def files(self, stage: str) -> list[str]:
        """The gin files that a run of `stage` is made of."""
        own = [self.row.finetuning] if self.row.finetuning and stage == "finetune" else []
        return [f"{SHIPPED}{self.row.name}.gin", f"{SHIPPED}stages/{stage}.gin", *own]


def load(name: str, scale: str | None = None, corpus: str | None = None, overrides: Mapping[str, Any] = {}) -> Recipe:
    """Reads a row's gin file, and what the scale and the corpus make of it.

    Raises:
      UserError: there is no such row, scale or corpus, or an override that no stage has a use for.
    """
    scores.check_row(name)
    parts = [_part(kind, part) for kind, part in (("scale", scale), ("corpus", corpus)) if part is not None]
    configuration.parse([f"{SHIPPED}{name}.gin", *parts], root="t5x_lite.StudyRow")
    row, values = _bound(StudyRow), {}
    if scale is not None:
        values |= scaling.scaled(_bound(scaling.Scale))
    if corpus is not None:
        replacement = _bound(scaling.Corpus)
        row = scaling.on_corpus(row, replacement)
        values |= replacement.values
    recipe = Recipe(row, {**values, **overrides})
    if overrides:
        _check_overrides(recipe, overrides)
    return recipe


def _bound(kind: Callable[..., _Bound]) -> _Bound:
    """What gin makes of a configurable's bindings."""
    return kind()


def _part(kind: str, name: str) -> str:
    """The gin file of a scale or a corpus."""
    folder = {"scale": "study/scales/", "corpus": "study/corpora/"}[kind]
    known = [n.removeprefix(folder).removesuffix(".gin") for n in gin_files.shipped_names() if n.startswith(folder)]
    if name not in known:
        hint = did_you_mean(nearest(name, known)) or f"; there is {', '.join(known)}"
        raise UserError(f"--{kind}={name}: no such {kind}{hint}")
    return f"{gin_files.PREFIX}{folder}{name}.gin"


def _check_overrides(recipe: Recipe, overrides: Mapping[str, Any]) -> None:
    used = set().union(*(_macros(recipe, stage) for stage in JOBS))
    for name, value in overrides.items():
        if "." in name:
            configuration.parse([], [configuration.Binding(name, _text(value), f"study.overrides, {name}")])
        elif name not in used:
            raise UserError(
                f"study.overrides: {recipe.row.name} has no use for {name}{did_you_mean(nearest(name, used))}"
            )


def _macros(recipe: Recipe, stage: str) -> set[str]:
    """Those that a stage has a use for."""
    configuration.parse(recipe.files(stage), ["MODEL_DIR=any", "MIXTURE_OR_TASK_NAME=any"])
    return configuration.referenced_macros()


def columns() -> scores.Columns:
    """Which metrics make which score."""
    configuration.parse([f"{SHIPPED}columns.gin"], root="t5x_lite.Columns")
    return _bound(scores.Columns)


# ----------------------------------------------------------------------------------------------------------------------
# Runs
# ----------------------------------------------------------------------------------------------------------------------


def execute(recipe: Recipe, run: Run, top: epath.Path, parts: Sequence[tuple[str, ...]], dry_run: bool = False) -> None:
    """Writes a run's gin file and runs it, unless it is done.

    Args:
      top: the folder below which all runs are.
      parts: metrics, by whose mean on validation a checkpoint is chosen where one is needed.
      dry_run: print the command instead of running it.

    Raises:
      UserError: the folder holds a run of other settings.
    """
    job = JOBS[run.stage]
    file = top / run.folder / ("test.gin" if run.stage == "test" else "run.gin")
    command = f"t5x-lite {job} --gin_file={file}"
    if job == "eval" and dry_run:
        console.show(f"{command}    (made when the runs before it are done)")
        return
    macros = _macros(recipe, run.stage)
    values = {name: value for name, value in _values(recipe, run, top, parts).items() if "." in name or name in macros}
    text = (
        f"# Recorded by t5x-lite study. Run it again: {command}\n"
        + "".join(f"include '{name}'\n" for name in recipe.files(run.stage))
        + "\n"
        + "".join(f"{name} = {_text(value)}\n" for name, value in values.items())
    )
    if file.exists() and file.read_text() != text:
        raise UserError(
            f"{file} is of other settings than asked for now: name another folder with --runs, or remove it"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    parsed = configuration.parse([str(file)], root=f"t5x_lite.{ROOTS[job].__name__}")
    if parsed.notes:  # in any other recorded file no mistake, but here something asked for would not happen
        raise UserError(parsed.notes[0])
    if dry_run or _is_done(run, top):
        console.show(command + ("" if dry_run else "    (done)"))
        return
    console.show(f"\n{command}", console.INFO)
    ROOTS[job]()


def _values(recipe: Recipe, run: Run, top: epath.Path, parts) -> dict[str, Any]:
    """{macro or parameter: value} of one run, on top of what its files say."""
    values = {**recipe.values, **run.bindings}
    parents = [str(top / parent) for parent in run.parents]
    match run.stage:
        case "pretrain":
            return values | {"MODEL_DIR": str(top / run.folder)}
        case "finetune":
            return values | {"MODEL_DIR": str(top / run.folder), "INITIAL_CHECKPOINT_PATH": (*parents, None)[0]}
        case "test":
            return values | {"MODEL_DIR": parents[0], "evaluate.checkpoint": scores.best_step(parents[0], parts)}
        case "ensemble":
            best = [f"{parent}/{checkpoints.FOLDER}/{scores.best_step(parent, parts)}" for parent in parents]
            return values | {"MODEL_DIR": ",".join(best), "OUTPUT_DIR": str(top / run.folder)}
        case other:
            raise ValueError(f"no stage {other!r}")


def _is_done(run: Run, top: epath.Path) -> bool:
    """Of the configuration that gin holds. A run of `train` saves its last step after everything else."""
    folder = top / run.folder
    if JOBS[run.stage] == "train":
        last = copy.deepcopy(gin.query_parameter("train.train_steps"))  # the copy of a reference is its value
        return last in checkpoints.steps(folder)
    prefix = "test/" if run.stage == "test" else "eval/"
    return any(name.startswith(prefix) for name in plots.read_metrics(folder))


def _text(value: Any) -> str:
    """As gin reads it; what gin made immutable or kept as a reference, as it was written."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text(k)}: {_text(v)}" for k, v in value.items()) + "}"
    return repr(value)
