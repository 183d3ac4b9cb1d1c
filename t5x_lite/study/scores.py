"""Scores of the paper's rows: the published ones, which are shipped, and those of runs found under a folder."""

import csv
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from etils import epath

import gin
from t5x_lite import gin_files, monitor, plots
from t5x_lite.errors import UserError, did_you_mean, nearest
from t5x_lite.saving import is_better_lower

FILE = "study/rows.csv"  # beside the gin files; which tables, settings and scores the paper gives each row


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class Columns:
    """What makes a score out of metrics.

    Attributes:
      metrics: {column: its parts}; a part is a metric, `<task>/<name>`, or several of one task, whose mean it is. Of
        each part the best checkpoint counts (section 3.1.3), and the column is the mean of its parts.
      published: those of the columns that the paper has.
    """

    metrics: Mapping[str, Sequence[str | Sequence[str]]]
    published: Sequence[str]

    def parts(self, column: str) -> list[tuple[str, ...]]:
        return [(part,) if isinstance(part, str) else tuple(part) for part in self.metrics[column]]

    @property
    def all_parts(self) -> list[tuple[str, ...]]:
        return [part for column in self.metrics for part in self.parts(column)]


@dataclasses.dataclass(frozen=True)
class Found:
    """The best values of one run: {part: value}."""

    row: str
    seed: int
    job: str  # train, or eval for an ensemble
    values: Mapping[tuple[str, ...], float]


def published() -> dict[str, dict[str, str]]:
    """{row: its line of rows.csv}, in the paper's order."""
    with (gin_files.shipped_folder() / FILE).open(encoding="utf-8", newline="") as file:
        return {line["row"]: line for line in csv.DictReader(file)}


def rows_of_table(table: str) -> list[dict[str, str]]:
    """The lines of one table.

    Raises:
      UserError: no such table.
    """
    lines = published().values()
    found = [line for line in lines if line["table"] == table.lower().removeprefix("table").strip()]
    if not found:
        tables = dict.fromkeys(line["table"] for line in lines)
        raise UserError(f"--table={table}: the paper has no such table of scores; there are {', '.join(tables)}")
    return found


def check_row(name: str) -> None:
    """Raises UserError, with the nearest names, for a row that there is not."""
    names = list(published())
    if name not in names:
        # Names are short, so that everything is like everything: those of the same table first.
        same = [n for n in names if n.split("-")[0].lower() == name.split("-", maxsplit=1)[0].lower()]
        near = nearest(name, same) or same or nearest(name, names)
        raise UserError(f"--row={name}: no such row" + (did_you_mean(near) or f"; there are {', '.join(names)}"))


def find(folder, columns: Columns) -> list[Found]:
    """The runs below `folder` whose recorded configuration names a row of the study; the pretraining of what is
    finetuned later is none."""
    known = published()
    found = []
    for config in _configurations(epath.Path(folder)):
        text = config.read_text()
        files = re.findall(rf"^# from {gin_files.PREFIX}study/(.+)\.gin$", text, re.MULTILINE)
        row = next((file for file in files if file in known), None)
        if row is None or ("stages/pretrain" in files and known[row]["finetune_steps"] != "0"):
            continue
        seed = re.search(r"^RANDOM_SEED = (\d+)$", text, re.MULTILINE)
        job = re.search(r"t5x-lite (\w+)", text)
        values = best_values(config.parent, columns.all_parts)
        found.append(Found(row, int(seed[1]) if seed else 0, job[1] if job else "train", values))
    return found


def _configurations(folder: epath.Path) -> Iterator[epath.Path]:
    """The config.gin of each run; what is inside a run is not looked into."""
    config = folder / "config.gin"
    if config.exists():
        yield config
        return
    for inner in sorted(folder.iterdir()):
        if inner.is_dir():
            yield from _configurations(inner)


def best_values(run, parts) -> dict[tuple[str, ...], float]:
    """{part: the best of its values over a run's evaluations on validation}, of the parts that the run has."""
    metrics = plots.read_metrics(run)
    return {part: values[_best(part[0], values)] for part in parts if len(values := _values(metrics, part)[1])}


def best_step(run, parts) -> int:
    """The step with the best mean of those parts that the run has: the checkpoint that is chosen on validation.

    Raises:
      UserError: the run has none of them.
    """
    metrics = plots.read_metrics(run)
    series = [(part, *_values(metrics, part)) for part in parts]
    series = [(part, steps, values) for part, steps, values in series if len(values)]
    if not series:
        raise UserError(
            f"{run} has none of the metrics {', '.join('/'.join(part) for part in parts)} to choose a checkpoint by"
        )
    mean = np.mean([-values if is_better_lower(part[0]) else values for part, _, values in series], axis=0)
    return int(series[0][1][np.argmax(mean)])


def _values(metrics, part: tuple[str, ...]):
    """(steps, means of the part's metrics); empty where one is missing."""
    names = [f"eval/{name}" for name in part]
    if any(name not in metrics for name in names):
        return np.array([], np.int64), np.array([])
    return metrics[names[0]][0], np.mean([metrics[name][1] for name in names], axis=0)


def _best(metric: str, values: np.ndarray) -> int:
    return int(np.argmin(values) if is_better_lower(metric) else np.argmax(values))


def column_values(found: Sequence[Found], row: str, ensemble: bool, columns: Columns, column: str) -> list[float]:
    """The column of one row, a value for each seed (for an ensemble, one), of those that have all parts of it."""
    by_seed: dict[int, dict] = {}
    for one in found:
        if one.row == row and (one.job == "eval") == ensemble:
            by_seed.setdefault(one.seed, {}).update(one.values)
    parts = columns.parts(column)
    return [
        float(np.mean([values[part] for part in parts]))
        for _, values in sorted(by_seed.items())
        if all(part in values for part in parts)
    ]


def table(name: str, columns: Columns, runs=None) -> monitor.Table:
    """The paper's table: for each row what was published and, under it, what runs below `runs` scored.

    A row that repeats another, as the baseline is in most tables, shows that row's runs where it has none of its own.
    """
    lines = rows_of_table(name)
    found = find(runs, columns) if runs is not None else []
    scores = {}
    for line in lines:
        for source in (line["row"], line["same_as"]):
            scores[line["row"]] = {
                column: values
                for column in columns.metrics
                if (values := column_values(found, source, line["combine"] == "ensemble", columns, column))
            }
            if scores[line["row"]] or not source:
                break
    extra = [c for c in columns.metrics if c not in columns.published and any(c in s for s in scores.values())]
    out = monitor.Table(["row", "", "by", *columns.published, *extra], title=f"Table {lines[0]['table']}")
    for line in lines:
        out.add(line["row"], line["name"], "published", *(line[c] for c in columns.published), *("" for _ in extra))
        if own := scores[line["row"]]:
            count = max(map(len, own.values()))
            by = f"{count} run" + "s" * (count > 1)
            out.add("", "", by, *(_cell(own.get(c, ()), line["combine"]) for c in (*columns.published, *extra)))
    return out


def _cell(values: Sequence[float], combine: str) -> str:
    if not values:
        return ""
    if combine == "sd":
        return f"{np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return mean_and_sd(values)


def mean_and_sd(values: Sequence[float], digits: int = 2) -> str:
    """`12.30 ± 0.40`, the sample standard deviation; of one value, itself."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"
