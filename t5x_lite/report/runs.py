"""What a run's folder tells about it."""

import contextlib
import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from t5x_lite import checkpoints, monitor, plots
from t5x_lite.errors import UserError
from t5x_lite.saving import is_better_lower


@dataclasses.dataclass(frozen=True)
class Run:
    """A MODEL_DIR, read when it is asked for.

    Attributes:
      label: its name among the others.
      folder: MODEL_DIR.
    """

    label: str
    folder: epath.Path

    @functools.cached_property
    def metrics(self) -> plots.Metrics:
        return plots.read_metrics(self.folder)

    @functools.cached_property
    def journal(self) -> list[tuple[float, str]]:
        return monitor.read_journal(self.folder)

    @functools.cached_property
    def meta(self) -> dict[str, Any]:
        """Of the newest checkpoint, without its vocabulary's bytes; empty where there is none."""
        if not self.steps:
            return {}
        return checkpoints.read_meta(checkpoints.find_step(self.folder, self.steps[-1]))

    @functools.cached_property
    def steps(self) -> list[int]:
        """Of the checkpoints that are there."""
        return checkpoints.steps(self.folder)

    @property
    def damaged(self) -> list[str]:
        """Checkpoints that were found damaged and set aside."""
        folder = self.folder / checkpoints.FOLDER
        return sorted(path.name for path in folder.glob("damaged-*")) if folder.exists() else []

    @functools.cached_property
    def bindings(self) -> dict[str, str]:
        """{parameter: value as gin writes it}."""
        return {**self.meta.get("bindings", {}), **self.meta.get("meaning", {})}

    @functools.cached_property
    def config(self) -> str:
        """The gin file that would run it again; empty where it was not recorded."""
        path = self.folder / "config.gin"
        return path.read_text() if path.exists() else ""

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Of the newest evaluation: {"step", "task", "inputs", "targets", "prediction"}."""
        path = self.folder / "samples.jsonl"
        found = []
        for line in path.read_text().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def last(self, name: str) -> float | None:
        """A metric's newest value."""
        return float(self.metrics[name][1][-1]) if name in self.metrics else None

    def evaluated(self) -> Iterator[str]:
        """Names of the metrics of evaluations: `eval/TASK/METRIC`, `test/TASK/METRIC`."""
        return (name for name in self.metrics if not name.startswith("train/"))

    def best(self, name: str) -> tuple[int, float] | None:
        """(step, value) of a metric's best evaluation; None where no value is a number."""
        steps, values = self.metrics[name]
        if not np.isfinite(values).any():
            return None
        at = (np.nanargmin if is_better_lower(name) else np.nanargmax)(np.where(np.isfinite(values), values, np.nan))
        return int(steps[at]), float(values[at])


def read(folders: Sequence[str]) -> list[Run]:
    """Runs, named by what tells their folders apart.

    Raises:
      UserError: a folder that is not there, or not a run's.
    """
    paths = [epath.Path(folder) for folder in folders]
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path} is no folder: give the MODEL_DIR of a run")
        if not (monitor.metrics_files(path) or checkpoints.steps(path)):
            raise UserError(f"{path} has neither metrics nor checkpoints: give the MODEL_DIR of a run")
    return [Run(label, path) for label, path in zip(_labels(paths), paths, strict=True)]


def _labels(paths: Sequence[epath.Path]) -> list[str]:
    """What of the paths differs; of a single one its last part."""
    parts = [path.parts for path in paths]
    if len(set(parts)) < len(parts):
        raise UserError(f"{paths[0]} and the others: a MODEL_DIR is given twice")
    if len(parts) == 1:
        return [parts[0][-1]]
    start = _alike(parts)
    end = _alike([part[start:][::-1] for part in parts])
    return ["/".join(part[start : len(part) - end]) or part[-1] for part in parts]


def _alike(parts: Sequence[Sequence[str]]) -> int:
    """How many parts all begin with."""
    return sum(1 for _ in itertools.takewhile(lambda same: len(set(same)) == 1, zip(*parts)))
