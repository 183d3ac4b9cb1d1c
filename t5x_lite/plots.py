"""Pictures of runs, from their metrics.jsonl. matplotlib is imported when a picture is drawn, not before."""

import io
import json
from collections.abc import Mapping

import numpy as np
from etils import epath

from t5x_lite.errors import UserError
from t5x_lite.monitor import metrics_files

Metrics = dict[str, tuple[np.ndarray, np.ndarray]]


def read_metrics(model_dir) -> Metrics:
    """All metrics of a run, also of one that is still writing.

    Args:
      model_dir: the run's folder (local or an object store).

    Returns:
      {name: (steps int64 [n], values float64 [n])}, steps ascending, each once (the line written last counts).
      Lines that are not complete yet are skipped. Empty where there are no metrics.
    """
    found: dict[str, dict[int, float]] = {}
    for path in metrics_files(model_dir):
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
                found.setdefault(entry["name"], {})[int(entry["step"])] = float(entry["value"])
            except (ValueError, KeyError, TypeError):
                continue
    result = {}
    for name, values in found.items():
        steps = sorted(values)
        result[name] = np.array(steps, np.int64), np.array([values[step] for step in steps], np.float64)
    return result


def smooth(values, window: int) -> np.ndarray:
    """Centred moving average over `window` values, shorter at both ends; NaN and infinity are left out of the means.

    Args:
      values: [n].
      window: in values; below 2 nothing changes.

    Returns:
      float64 [n]; NaN where a window holds no finite value.
    """
    values = np.asarray(values, np.float64)
    if window < 2 or not len(values):
        return values
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    half = window // 2
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    number = counts[high] - counts[low]
    return np.where(number > 0, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)


def plot_losses(runs: Mapping[str, str], path, *, title: str = "Loss", smoothing: int | None = None):
    """Draws the loss curves of several runs into one picture; see `losses_figure`.

    Args:
      runs: {label: MODEL_DIR}.
      path: of the picture; its ending chooses the format (png, svg, pdf).

    Raises:
      UserError: no run holds a loss.
    """
    metrics = {label: read_metrics(model_dir) for label, model_dir in runs.items()}
    figure = losses_figure(metrics, title=title, smoothing=smoothing)
    if figure is None:
        raise UserError(f"no run holds a loss to draw: {', '.join(str(run) for run in runs.values())}")
    save(figure, path)


def losses_figure(runs: Mapping[str, Metrics], *, title: str = "Loss", smoothing: int | None = None):
    """The loss curves of several runs; None where no run holds a loss.

    The training loss stands as a pale line with its moving average over it, each task's validation loss as points of
    the same colour. Both axes stay linear, which keeps differences of late training readable, unless the losses span
    more than a factor of 20 (then the loss is logarithmic) or runs differ more than 30-fold in length (then the steps
    are).

    Args:
      runs: {label: what `read_metrics` gives}.
      title: above the picture.
      smoothing: width of the moving average in values; a fortieth of the curve by default.
    """
    from matplotlib import ticker

    figure = new_figure(9, 5.5)
    axes = figure.add_subplot()
    shown, lengths = [], []
    for number, (label, metrics) in enumerate(runs.items()):
        color = f"C{number % 10}"
        if "train/loss" in metrics:
            steps, values = metrics["train/loss"]
            average = smooth(values, max(1, len(values) // 40) if smoothing is None else smoothing)
            average = np.where(np.isfinite(values), average, np.nan)  # no line where there was no loss
            axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
            axes.plot(steps, average, color=color, linewidth=1.8, label=f"{label}: training")
            _mark_divergence(axes, steps, values, color, label)
            # The pale line may leave the picture: a single spike would press everything else flat.
            shown.append(average)
            lengths.append(steps[-1])
        tasks = sorted(name for name in metrics if name.startswith("eval/") and name.endswith("/loss"))
        for name, marker in zip(tasks, _markers()):
            steps, values = metrics[name]
            task = name.removeprefix("eval/").removesuffix("/loss")
            axes.plot(
                steps,
                values,
                color=color,
                marker=marker,
                linestyle=":",
                linewidth=0.8,
                markersize=6,
                markeredgecolor="white",
                markeredgewidth=0.6,
                label=f"{label}: validation, {task}",
            )
            shown.append(values)
            lengths.append(steps[-1])
    finite = np.concatenate([v[np.isfinite(v)] for v in shown]) if shown else np.array([])
    if not len(finite):
        return None

    low, high = finite.min(), finite.max()
    if low > 0 and high / low > 20:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda loss, _: f"{loss:g}"))
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())
        axes.set_ylim(low / 1.15, high * 1.15)
    else:
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
        axes.set_ylim(low - margin, high + margin)
    if min(lengths) > 0 and max(lengths) / min(lengths) > 30:
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per target token)")
    axes.grid(True, which="both", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def new_figure(width: float, height: float):
    """An empty matplotlib Figure, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    # The canvas is made by hand: pyplot would choose a window system and keep every figure alive.
    FigureCanvasAgg(figure)
    return figure


def save(figure, path) -> None:
    """Writes a figure in the format that the path's ending says, PNG where it has none."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        figure.savefig(file, format=path.suffix.lstrip(".") or "png")


def svg(figure) -> str:
    """The figure as an element for a page, its words as text."""
    import matplotlib

    text = io.StringIO()
    # Else each drawing of a figure has other names in it, and other bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "t5x-lite"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _markers():
    while True:
        yield from "osD^vP*X"


def _mark_divergence(axes, steps, values, color, label):
    """A cross at the bottom of the picture where the loss stops being a number: a gap alone is easily overlooked."""
    broken = ~np.isfinite(values)
    onset = broken & ~np.concatenate([[False], broken[:-1]])
    if onset.any():
        axes.plot(
            steps[onset],
            np.zeros(onset.sum()),
            color=color,
            marker="X",
            markersize=9,
            linestyle="",
            clip_on=False,
            transform=axes.get_xaxis_transform(),
            label=f"{label}: not a number",
        )
