"""A row of the paper's tables and the runs that make it (Raffel et al. 2020, arXiv:1910.10683, section 3).

    gin/study/<row>.gin ── StudyRow ── runs: pretrain, finetune on each task, ensemble ── scores of one row

A row's gin file says what it pretrains and finetunes on, and how. A run is one call of `train` (or of `eval`, for an
ensemble); its folder holds `run.gin`, which includes the row and says what only this run has, so that
`t5x-lite train --gin_file=FOLDER/run.gin` is the run, on this machine or any other.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import gin
from t5x_lite.errors import UserError


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class StudyRow:
    """Which runs a row has.

    Attributes:
      name: as in the file's name, `T6-25`.
      pretrain_task: the task or mixture to pretrain on; None for no pretraining.
      pretrain_steps, finetune_steps: of each run; `finetune_steps` = 0: the pretrained model is evaluated as it is.
      finetune: {task or mixture: bindings of its run}, such as its TASK_FEATURE_LENGTHS.
      finetuning: gin file of the way of finetuning, for example `t5x_lite/gin/finetuning/adapters.gin`; None: all
        parameters.
      leave_one_out: {finetuning task: what the model that is finetuned on it is pretrained on}, where each has one of
        its own; in place of `pretrain_task`.
      models: models finetuned on each task, with seeds 0, 1, …
      pretrained_models: models pretrained, `models` of them or one.
      ensemble: the row's score is that of the models' mean logits; otherwise the mean of their scores.

    Raises:
      UserError: numbers of models that do not go together, or nothing to run.
    """

    name: str
    pretrain_task: str | Mapping[str, float] | None
    pretrain_steps: int
    finetune: Mapping[str, Mapping[str, Any]]
    finetune_steps: int
    finetuning: str | None = None
    leave_one_out: Mapping[str, str] | None = None
    models: int = 1
    pretrained_models: int = 1
    ensemble: bool = False

    def __post_init__(self):
        if self.pretrained_models not in (1, self.models) or self.models < 1:
            raise UserError(
                f"StudyRow.pretrained_models of {self.name} must be 1 or StudyRow.models = {self.models}, "
                f"not {self.pretrained_models}"
            )
        if not self.pretrains and not self.finetunes:
            raise UserError(
                f"{self.name} has nothing to run: set StudyRow.pretrain_task, StudyRow.finetune_steps or both"
            )
        if self.leave_one_out is not None and set(self.leave_one_out) != set(self.finetune):
            raise UserError(
                f"StudyRow.leave_one_out of {self.name} must name what to pretrain on for each of "
                f"{', '.join(self.finetune)}"
            )

    @property
    def pretrains(self) -> bool:
        return (self.pretrain_task or self.leave_one_out) is not None and self.pretrain_steps > 0

    @property
    def finetunes(self) -> bool:
        return self.finetune_steps > 0


@dataclasses.dataclass(frozen=True)
class Run:
    """One call of `train` or, for an ensemble, of `eval`.

    Attributes:
      folder: below the study's folder.
      stage: the name of a file of gin/study/stages.
      bindings: name -> value, on top of the row's.
      parents: folders of the runs whose checkpoints it starts from or averages.
    """

    folder: str
    stage: str
    bindings: Mapping[str, Any]
    parents: tuple[str, ...] = ()


def plan(row: StudyRow) -> list[Run]:
    """The runs of a row, each after those that it needs; their folders are `<row>/seed<i>/<pretrain or task>`."""
    runs = []

    def pretraining(seed: int, task: str) -> str:
        """The folder of the model that `task` starts from with this seed; plans its run when first asked."""
        apart = row.leave_one_out is not None
        folder = f"{row.name}/seed{seed}/pretrain" + (f"-{task}" if apart else "")
        if folder not in {run.folder for run in runs}:
            on = row.leave_one_out[task] if apart else row.pretrain_task
            runs.append(Run(folder, "pretrain", {"MIXTURE_OR_TASK_NAME": on, "RANDOM_SEED": seed}))
        return folder

    if not row.finetunes:
        for seed in range(row.pretrained_models):
            pretraining(seed, "")
        return runs
    for task, bindings in row.finetune.items():
        members = []
        for seed in range(row.models):
            parents = (pretraining(seed % row.pretrained_models, task),) if row.pretrains else ()
            folder = f"{row.name}/seed{seed}/{task}"
            named = {"MIXTURE_OR_TASK_NAME": task, "RANDOM_SEED": seed, **bindings}
            runs.append(Run(folder, "finetune", named, parents))
            members.append(folder)
        if row.ensemble:
            named = {"MIXTURE_OR_TASK_NAME": task, **bindings}
            runs.append(Run(f"{row.name}/ensemble/{task}", "ensemble", named, tuple(members)))
    return runs
