"""The curves of runs, as SVG."""

from collections.abc import Iterator, Sequence

import numpy as np

from t5x_lite import plots
from t5x_lite.report.runs import Run

# Metric of training: what a reader sees, and what its values are multiplied with.
TRAINING = {
    "learning_rate": ("learning rate", 1),
    "grad_norm": ("gradient norm", 1),
    "param_norm": ("parameter norm", 1),
    "accuracy": ("token accuracy in training %", 100),
    "tokens_per_second": ("tokens a second", 1),
    "mfu": ("MFU %", 100),
    "data_wait_fraction": ("waiting for data %", 100),
    "peak_memory_gib": ("peak memory GiB", 1),
    "skipped_updates": ("updates left out", 1),
}
ACROSS = 3


def losses(runs: Sequence[Run]) -> str:
    """Training and validation losses; empty where there are none."""
    figure = plots.losses_figure({run.label: run.metrics for run in runs}, title="")
    return plots.svg(figure) if figure else ""


def evaluations(runs: Sequence[Run]) -> str:
    """A panel for each metric of the evaluations during training but the losses."""
    names = sorted(
        {name for run in runs for name in run.evaluated() if name.startswith("eval/") and not name.endswith("/loss")}
    )
    return _panels(runs, [(name, name.removeprefix("eval/"), 1) for name in names])


def training(runs: Sequence[Run]) -> str:
    """How training went: its rates, its speed, its memory."""
    known = {name for run in runs for name in run.metrics}
    return _panels(
        runs,
        [(f"train/{name}", title, factor) for name, (title, factor) in TRAINING.items() if f"train/{name}" in known],
    )


def _panels(runs: Sequence[Run], panels: Sequence[tuple[str, str, float]]) -> str:
    if not panels:
        return ""
    from matplotlib import ticker

    down = -(-len(panels) // ACROSS)
    across = min(ACROSS, len(panels))
    figure = plots.new_figure(4.2 * across, 2.6 * down + 0.4)
    grid = np.ravel(figure.subplots(down, across, squeeze=False))
    for axes, (name, title, factor) in zip(grid, panels):
        for number, run in _having(runs, name):
            steps, values = run.metrics[name]
            axes.plot(
                steps,
                factor * values,
                color=f"C{number % 10}",
                linewidth=1.2,
                marker="o" if len(steps) < 20 else None,
                markersize=3,
                label=run.label,
            )
        axes.set_title(title, fontsize=9)
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda step, _: f"{step:,.0f}"))
        axes.tick_params(labelsize=8)
        axes.grid(True, alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(panels) :]:
        axes.remove()
    if len(runs) > 1:
        handles = {
            label: handle
            for axes in grid[: len(panels)]
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return plots.svg(figure)


def _having(runs: Sequence[Run], name: str) -> Iterator[tuple[int, Run]]:
    return ((number, run) for number, run in enumerate(runs) if name in run.metrics)
