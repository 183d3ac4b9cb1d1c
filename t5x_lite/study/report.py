"""An experiment as RESULTS.md and a picture."""

import os
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath

from t5x_lite import monitor, plots
from t5x_lite.study.experiments import Cell, Experiment
from t5x_lite.study.scores import mean_and_sd

FILE, PICTURE = "RESULTS.md", "RESULTS.png"


def write(experiment: Experiment, cells: Sequence[Cell], folder: epath.Path) -> monitor.Table:
    """Writes both below `folder`; returns the table of means and standard deviations."""
    headings = list(experiment.metrics)
    varied = [experiment.vary_label or experiment.vary] if experiment.vary else []
    means = monitor.Table(["", *varied, "seeds", *headings])
    singles = monitor.Table(["", *varied, "seed", *headings])
    for cell in cells:
        at = [cell.value] if varied else []
        count = max(map(len, cell.scores.values()))
        means.add(cell.label, *at, count, *(mean_and_sd(v) if len(v) else "" for v in cell.scores.values()))
        for seed in range(count):
            singles.add(cell.label, *at, seed, *(v[seed] if seed < len(v) else None for v in cell.scores.values()))
    draw(experiment, cells, folder / PICTURE)
    labels = ", ".join(f"{label} ({row})" for label, row in experiment.rows.items())
    device = f"{jax.device_count()} × {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"
    scale, corpus = experiment.scale or "of the paper", experiment.corpus or "of the paper"
    (folder / FILE).write_text(f"""# {experiment.title}

{means.markdown()}

Mean ± sample standard deviation over the seeds, on the test split; of each run the checkpoint that was best on
validation. Rows of the study: {labels}.

![Scores]({PICTURE})

Each seed:

{singles.markdown()}

Scale: {scale}; corpus: {corpus}; JAX {jax.__version__} on {device}. Each run's folder has its settings, `run.gin`, and
its metrics.
""")
    return means


def draw(experiment: Experiment, cells: Sequence[Cell], path: epath.Path) -> None:
    """A panel for each metric: mean and standard deviation of each row, and each seed as a point."""
    count = len(experiment.metrics)
    figure = plots.new_figure(4.5 * count, 4)
    labels = list(experiment.rows)
    for axes, heading in zip(np.atleast_1d(figure.subplots(1, count)), experiment.metrics):
        for number, label in enumerate(labels):
            own = [cell for cell in cells if cell.label == label and len(cell.scores[heading])]
            places = [number if cell.value is None else cell.value for cell in own]
            values = [cell.scores[heading] for cell in own]
            deviations = [np.std(v, ddof=1) if len(v) > 1 else 0 for v in values]
            axes.errorbar(
                places, [np.mean(v) for v in values], deviations, color=f"C{number}", marker="o", capsize=4, label=label
            )
            for place, points in zip(places, values):
                axes.plot([place] * len(points), points, color=f"C{number}", marker=".", linestyle="", alpha=0.5)
        axes.set_ylabel(heading)
        axes.grid(True, alpha=0.25)
        if experiment.vary:
            axes.set_xscale("log")
            axes.set_xticks(experiment.values, [f"{value:,}" for value in experiment.values])
            axes.minorticks_off()
            axes.set_xlabel(experiment.vary_label or experiment.vary)
        else:
            axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    if experiment.vary:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=len(labels), frameon=False)
    plots.save(figure, path)
