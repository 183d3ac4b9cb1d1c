"""A row at another size and on another corpus: what the paper ran on hundreds of TPUs, a laptop runs in miniature.

Both are gin files that the study reads beside the row: gin/study/scales/<name>.gin and gin/study/corpora/<name>.gin.
What they change is written into each run's `run.gin`, where it can be read.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import gin
from t5x_lite.errors import UserError
from t5x_lite.study.rows import StudyRow

# Lengths stay multiples of this when they are divided, so that no objective makes a little more than there is room for.
LENGTH_STEP = 8


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class Scale:
    """Of the models and of training.

    Attributes:
      divide: {macro or parameter: by how much}: the row's own value is divided, so that what one row has more of than
        another it still has. Numbers are rounded, and stay at least 1; lengths, {feature: tokens}, are rounded up to
        multiples of 8.
      values: {macro or parameter: value} for all rows alike.
    """

    divide: Mapping[str, float] = dataclasses.field(default_factory=dict)
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class Corpus:
    """Tasks in place of the paper's.

    Attributes:
      pretrain_tasks: {the row's pretraining task or mixture: the one in its place}.
      finetune: as StudyRow.finetune; a finetuning task of a row stands for all of these.
      leave_one_out: as StudyRow.leave_one_out.
      values: {macro or parameter: value}, for example the vocabulary's size.
    """

    pretrain_tasks: Mapping[str, str]
    finetune: Mapping[str, Mapping[str, Any]]
    leave_one_out: Mapping[str, str]
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def on_corpus(row: StudyRow, corpus: Corpus) -> StudyRow:
    """The same row on the corpus's tasks.

    Raises:
      UserError: the corpus has nothing in the place of one of the row's tasks.
    """

    def instead(task) -> str:
        if task not in corpus.pretrain_tasks:
            raise UserError(
                f"Corpus.pretrain_tasks has nothing in the place of {task}, on which {row.name} pretrains: add it"
            )
        return corpus.pretrain_tasks[task]

    alone = None
    if row.leave_one_out is not None:
        alone = {task: corpus.leave_one_out[task] for task in corpus.finetune}
    task = None if row.pretrain_task is None else instead(row.pretrain_task)
    return dataclasses.replace(row, pretrain_task=task, leave_one_out=alone, finetune=corpus.finetune)


def scaled(scale: Scale) -> dict[str, Any]:
    """{macro or parameter: value} of the scale, applied to the values that gin holds now (those of a row's file)."""
    values = dict(scale.values)
    for name, divisor in scale.divide.items():
        value = bound(name)
        if isinstance(value, Mapping):
            values[name] = {k: -(-round(v / divisor) // LENGTH_STEP) * LENGTH_STEP for k, v in value.items()}
        elif value:
            values[name] = max(1, round(value / divisor))
    return values


def bound(name: str) -> Any:
    """What gin holds for a macro or `configurable.parameter`; None where nothing is bound."""
    try:
        return gin.query_parameter(name if "." in name else f"{name}/macro.value")
    except ValueError:
        return None
