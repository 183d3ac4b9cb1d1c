"""Experiments: several rows of the study with several seeds, and what they scored."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

import gin
from t5x_lite import plots
from t5x_lite.errors import UserError
from t5x_lite.study import scores
from t5x_lite.study.rows import Run, StudyRow, plan


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class Experiment:
    """Rows compared on one corpus and at one scale.

    Attributes:
      title: of the report.
      rows: {label: row}.
      metrics: {heading: metric, `<task>/<name>`}. For each run the checkpoint with the best mean of them on validation
        is chosen; the report has the metrics of that checkpoint on the test split.
      seeds: models pretrained, and finetuned, for each row.
      scale, corpus, overrides: as in the job `study`.
      finetune: what every row is finetuned on, as StudyRow.finetune; None for the row's own.
      vary: a macro or parameter of the finetuning runs; with it, each row is finetuned with each of `values`.
      values: numbers, in the order of the report.
      vary_label: what `vary` is, for people.

    Raises:
      UserError: a row that there is not, no seed, or only one of `vary` and `values`.
    """

    title: str
    rows: Mapping[str, str]
    metrics: Mapping[str, str]
    seeds: int = 3
    scale: str | None = None
    corpus: str | None = None
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    finetune: Mapping[str, Mapping[str, Any]] | None = None
    vary: str | None = None
    values: Sequence[float] = ()
    vary_label: str = ""

    def __post_init__(self):
        for row in self.rows.values():
            scores.check_row(row)
        if not isinstance(self.seeds, int) or self.seeds < 1:
            raise UserError(f"Experiment.seeds must be a whole number of at least 1, not {self.seeds!r}")
        if bool(self.vary) != bool(self.values):
            raise UserError("Experiment.vary and Experiment.values go together: set both or neither")

    @property
    def parts(self) -> list[tuple[str, ...]]:
        return [(metric,) for metric in self.metrics.values()]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row, with one value of what varies, and its scores on the test split: {heading: one for each seed}."""

    label: str
    value: float | None
    scores: Mapping[str, Sequence[float]]


def runs(experiment: Experiment, row: StudyRow) -> list[Run]:
    """The runs of one row in the experiment, and after each that is finetuned the test of its best checkpoint."""
    finetune = experiment.finetune or row.finetune
    if experiment.vary:
        finetune = {
            f"{task}-{value}": {"MIXTURE_OR_TASK_NAME": task, **bindings, experiment.vary: value}
            for task, bindings in finetune.items()
            for value in experiment.values
        }
    row = dataclasses.replace(
        row, models=experiment.seeds, pretrained_models=experiment.seeds, ensemble=False, finetune=finetune
    )
    out = []
    for run in plan(row):
        out.append(run)
        if run.stage == "finetune":
            out.append(dataclasses.replace(run, stage="test", parents=(run.folder,)))
    return out


def collect(experiment: Experiment, folder: epath.Path) -> list[Cell]:
    """What the finished runs below `folder` scored, in the order of rows and values."""
    cells = []
    for label, row in experiment.rows.items():
        for value in experiment.values or (None,):
            found: dict[str, list[float]] = {heading: [] for heading in experiment.metrics}
            for seed in range(experiment.seeds):
                ending = "*" if value is None else f"*-{value}"
                for run in sorted((folder / row / f"seed{seed}").glob(ending)):
                    metrics = plots.read_metrics(run)
                    for heading, metric in experiment.metrics.items():
                        if f"test/{metric}" in metrics:
                            found[heading].append(float(metrics[f"test/{metric}"][1][-1]))
            cells.append(Cell(label, value, found))
    return cells
