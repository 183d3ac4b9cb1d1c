"""What the quick start found: the table of both finetunings, sample predictions, and the picture of the losses.

    python launch/quickstart_summary.py runs/quickstart

Every number is read from the runs' own metrics.jsonl; the baselines are computed on the same validation examples.
"""

import json
import pathlib
import sys

from t5x_lite import monitor, plots
from t5x_lite.tasks.baselines import baselines

EXAMPLES = 500  # EVALUATION_EXAMPLES of examples/quickstart_finetune.gin
COLUMNS = {
    "library accuracy %": ("pydocs_library", "accuracy"),
    "library loss": ("pydocs_library", "loss"),
    "summary ROUGE-1": ("pydocs_summarize", "rouge1"),
    "ROUGE-2": ("pydocs_summarize", "rouge2"),
    "ROUGE-L": ("pydocs_summarize", "rougeL"),
    "summary loss": ("pydocs_summarize", "loss"),
}


def main(folder: pathlib.Path) -> None:
    """Prints what the runs below `folder` found; leaves table.md and losses.png there."""
    table = monitor.Table(["validation", *COLUMNS], title=f"{EXAMPLES} validation examples of each task")
    for label, run in (("finetuned from pretrained", "finetune"), ("finetuned from scratch", "scratch")):
        metrics = plots.read_metrics(folder / run)
        values = [f"{metrics[f'eval/{task}/{metric}'][1][-1]:.2f}" for task, metric in COLUMNS.values()]
        table.add(label, *values)
    for task, guesses in baselines("validation", EXAMPLES).items():
        for guess, scores in guesses.items():
            cells = [f"{scores[m]:.2f}" if t == task and m in scores else "" for t, m in COLUMNS.values()]
            table.add(f"baseline: {guess}", *cells)
    print(table)
    (folder / "table.md").write_text(table.markdown() + "\n")
    print("\nsample predictions (finetuned from pretrained):")
    samples = [json.loads(line) for line in (folder / "finetune" / "samples.jsonl").read_text().splitlines()]
    for sample in [s for s in samples if s["task"] == "pydocs_summarize"][:3]:
        print(f"  input:      {' '.join(sample['inputs'].split())[:160]} …")
        print(f"  target:     {sample['targets']}\n  prediction: {sample['prediction']}\n")
    runs = {name: folder / name for name in ("pretrain", "scratch", "finetune")}
    plots.plot_losses(runs, folder / "losses.png", title="quick start")
    print(f"picture of the losses: {folder / 'losses.png'}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
