"""What trivial answers score on the pydocs tasks: the floor that a trained model is compared with."""

from t5x_lite.tasks.pydocs import metrics, source


def baselines(split: str = "validation", limit: int | None = None) -> dict[str, dict[str, dict[str, float]]]:
    """{task: {baseline: {metric: percent}}} on the examples of `split` that the tasks evaluate on.

    Args:
      limit: use the first so many examples of each task only, as an evaluation with that limit does.
    """
    train = _records("train")
    examples = _records(split)
    summaries = [e for e in examples if e["summary"]][:limit]
    return {
        "pydocs_library": metrics.library_baselines(
            [r["library"] for r in train], [e["library"] for e in examples][:limit]
        ),
        "pydocs_summarize": metrics.summary_baselines([r["summary"] for r in train if r["summary"]], summaries),
    }


def _records(split: str) -> list[dict[str, str]]:
    columns = source.PydocsSource().columns(split)
    return [dict(zip(columns, (v.decode() for v in row))) for row in zip(*columns.values())]
