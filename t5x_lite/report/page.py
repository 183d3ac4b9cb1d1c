"""The page: text, tables and pictures in one file that needs no network."""

import ast
import datetime
import html
import json
import math
from collections.abc import Iterator, Sequence

from t5x_lite import monitor
from t5x_lite.models import Model, T5Config
from t5x_lite.partitioning import DEFAULT_RULES, Partitioner, leaves_by_path
from t5x_lite.report import figures
from t5x_lite.report.runs import Run

SAMPLES = 5  # of each task
LONGEST = 600  # characters of a text that is shown
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; font-size: 13px; margin: .6rem 0; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #e5e5e5; padding: .25rem .7rem; text-align: left; vertical-align: top; }
th { background: #f6f6f6; } .number { text-align: right; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
td { white-space: pre-wrap; overflow-wrap: break-word; }
pre { background: #f8f8f8; padding: .8rem; overflow-x: auto; font-size: 12px; }
svg { max-width: 100%; height: auto; } .warning { color: #a33; } summary { cursor: pointer; }
@media (prefers-color-scheme: dark) { svg { background: #fff; } }
"""


def make(runs: Sequence[Run], title: str) -> str:
    """The whole page."""
    made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p>{made}</p>", summary(runs).html()]
    for heading, text in _sections(runs):
        if text:
            parts.append(f"<h2>{html.escape(heading)}</h2>\n{text}")
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>{body}</body></html>\n"
    )


def _sections(runs: Sequence[Run]) -> Iterator[tuple[str, str]]:
    yield "Loss", figures.losses(runs)
    yield "Evaluations", _evaluations(runs)
    yield "Training", figures.training(runs)
    yield "Predictions", "".join(_samples(run) for run in runs)
    yield "What happened", "".join(_journal(run) for run in runs)
    yield "Configuration", _configuration(runs)
    yield "Parameters", "".join(_parameters(run) for run in runs)


def summary(runs: Sequence[Run]) -> monitor.Table:
    """A line for each run."""
    table = monitor.Table(
        [
            "run",
            "parameters",
            "step",
            "training loss",
            "tokens a second",
            "MFU %",
            "waiting for data %",
            "peak memory GiB",
            "updates left out",
            "starts",
            "checkpoints",
        ]
    )
    for run in runs:
        model = run.meta.get("model")
        count = (
            sum(math.prod(x.shape) for x in leaves_by_path(Model(T5Config.from_dict(model)).abstract_params()).values())
            if model
            else None
        )
        steps = run.metrics.get("train/loss", ([], []))[0]
        table.add(
            run.label,
            count,
            int(steps[-1]) if len(steps) else (run.steps or [None])[-1],
            run.last("train/loss"),
            _rounded(run.last("train/tokens_per_second")),
            _percent(run.last("train/mfu")),
            _percent(run.last("train/data_wait_fraction")),
            run.last("train/peak_memory_gib"),
            _rounded(run.last("train/skipped_updates")),
            sum(text.startswith("started: ") for _, text in run.journal) or None,
            ", ".join(f"{step:,}" for step in run.steps),
        )
    return table


def _rounded(value: float | None) -> int | None:
    return None if value is None or not math.isfinite(value) else round(value)


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _evaluations(runs: Sequence[Run]) -> str:
    names = sorted({name for run in runs for name in run.evaluated()})
    if not names:
        return ""
    table = monitor.Table(
        ["metric", *(column for run in runs for column in (f"{run.label}: best", "at step", "newest"))],
        title="best and newest value of each metric",
    )
    for name in names:
        cells = []
        for run in runs:
            best = run.best(name) if name in run.metrics else None
            cells += [best and best[1], best and best[0], run.last(name)]
        table.add(name, *cells)
    return table.html() + figures.evaluations(runs)


def _samples(run: Run) -> str:
    tables = {}
    for sample in run.samples:
        task = str(sample.get("task", ""))
        table, count = tables.get(
            task,
            (
                monitor.Table(
                    ["inputs", "targets", "prediction"], title=f"{run.label}, {task}, step {sample.get('step')}"
                ),
                0,
            ),
        )
        if count < SAMPLES:
            table.add(*(_short(sample.get(name)) for name in ("inputs", "targets", "prediction")))
        tables[task] = table, count + 1
    return "".join(table.html() for table, _ in tables.values())


def _short(value) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def _journal(run: Run) -> str:
    lines = []
    for time, text in run.journal:
        when = datetime.datetime.fromtimestamp(time, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
        bad = text.startswith(("warning", "told to stop")) or "cannot be" in text
        mark = ' class="warning"' if bad else ""
        lines.append(f"<div{mark}>{when}  {html.escape(text)}</div>")
    damaged = "".join(f'<div class="warning">{html.escape(name)} was found damaged</div>' for name in run.damaged)
    if not lines and not damaged:
        return ""
    return (
        f"<details><summary>{html.escape(run.label)}: {len(lines)} notes</summary>{''.join(lines)}</details>{damaged}"
    )


def _configuration(runs: Sequence[Run]) -> str:
    parts = []
    if len(runs) > 1:
        table = monitor.Table(["", *(run.label for run in runs)], title="what differs")
        for name in sorted({name for run in runs for name in run.bindings}):
            values = [run.bindings.get(name, "") for run in runs]
            if len(set(values)) > 1:
                table.add(name, *values)
        parts.append(table.html())
    parts += [
        f"<details><summary>{html.escape(str(run.folder / 'config.gin'))}</summary><pre>"
        f"{html.escape(run.config)}</pre></details>"
        for run in runs
        if run.config
    ]
    return "".join(parts)


def _parameters(run: Run) -> str:
    """How they are named, shaped and sharded."""
    if "model" not in run.meta:
        return ""
    model = Model(T5Config.from_dict(run.meta["model"]))
    rules = _literal(run.bindings.get("Mesh.rules")) or DEFAULT_RULES
    partitioner = Partitioner(None, tuple(rules))  # whose devices are elsewhere
    axes = leaves_by_path(model.logical_axes(), lambda x: isinstance(x, tuple))
    mesh = run.bindings.get("Mesh.shape", "")
    table = monitor.Table(
        ["parameter", "shape", "logical axes", "mesh axes", "MiB"],
        title=f"{run.label}{', mesh ' + mesh if mesh else ''}",
    )
    for name, leaf in leaves_by_path(model.abstract_params()).items():
        spec = ", ".join("·" if part is None else str(part) for part in partitioner.spec(axes[name]))
        table.add(
            name,
            " × ".join(map(str, leaf.shape)),
            ", ".join(axes[name]),
            spec,
            math.prod(leaf.shape) * leaf.dtype.itemsize / 2**20,
        )
    return f"<details><summary>{html.escape(run.label)}</summary>{table.html()}</details>"


def _literal(text: str | None):
    try:
        return ast.literal_eval(text) if text else None
    except (ValueError, SyntaxError):
        return None
