"""GLUE's and SuperGLUE's averages of a run's evaluations, as the paper takes them.

    python -m t5x_lite.tasks.averages MODEL_DIR

A task with several metrics counts by their mean (MNLI by that of its two validation sets), and every task counts the
same: eight of GLUE, without WNLI and AX, and eight of SuperGLUE.

Source: Raffel et al. 2020 (https://arxiv.org/abs/1910.10683), sections 2.3 and 3.1.3.
"""

import statistics
import sys
from collections.abc import Mapping

from t5x_lite import plots
from t5x_lite.errors import UserError

# Benchmark task -> the (task, metric) pairs that it is the mean of.
GLUE = {
    "CoLA": [("glue_cola_v002", "matthews_corrcoef")],
    "SST-2": [("glue_sst2_v002", "accuracy")],
    "MRPC": [("glue_mrpc_v002", "f1"), ("glue_mrpc_v002", "accuracy")],
    "STS-B": [("glue_stsb_v002", "pearson_corrcoef"), ("glue_stsb_v002", "spearman_corrcoef")],
    "QQP": [("glue_qqp_v002", "f1"), ("glue_qqp_v002", "accuracy")],
    "MNLI": [("glue_mnli_matched_v002", "accuracy"), ("glue_mnli_mismatched_v002", "accuracy")],
    "QNLI": [("glue_qnli_v002", "accuracy")],
    "RTE": [("glue_rte_v002", "accuracy")],
}
SUPER_GLUE = {
    "BoolQ": [("super_glue_boolq_v102", "accuracy")],
    "CB": [("super_glue_cb_v102", "mean_3class_f1"), ("super_glue_cb_v102", "accuracy")],
    "COPA": [("super_glue_copa_v102", "accuracy")],
    "MultiRC": [("super_glue_multirc_v102", "f1"), ("super_glue_multirc_v102", "exact_match")],
    "ReCoRD": [("super_glue_record_v102", "f1"), ("super_glue_record_v102", "em")],
    "RTE": [("super_glue_rte_v102", "accuracy")],
    "WiC": [("super_glue_wic_v102", "accuracy")],
    "WSC": [("super_glue_wsc_v102_simple_eval", "accuracy")],
}
Scores = Mapping[tuple[str, str], float]


def average(scores: Scores, benchmark: Mapping[str, list[tuple[str, str]]]) -> float:
    """The benchmark's average of `scores[task, metric]`, in percent.

    Raises:
      KeyError: a score is missing.
    """
    return statistics.fmean(statistics.fmean(scores[pair] for pair in pairs) for pairs in benchmark.values())


def of_run(model_dir: str) -> dict[int, dict[str, float]]:
    """{step: {"GLUE": …, "SuperGLUE": …}} of the steps at which a benchmark has been evaluated whole.

    Tasks in their `_1_sentinel` form count as well.

    Raises:
      UserError: no such step; the message names the tasks that the last evaluation lacks.
    """
    steps: dict[int, dict[tuple[str, str], float]] = {}
    for name, (at, values) in plots.read_metrics(model_dir).items():
        where, _, name = name.partition("/")
        task, _, metric = name.partition("/")
        if where == "eval":
            for step, value in zip(at.tolist(), values.tolist(), strict=True):
                steps.setdefault(step, {})[task.replace("_1_sentinel", ""), metric] = value
    averages: dict[int, dict[str, float]] = {}
    lacking: dict[str, list[str]] = {}
    for step, scores in sorted(steps.items()):
        for name, benchmark in (("GLUE", GLUE), ("SuperGLUE", SUPER_GLUE)):
            lacking[name] = sorted(
                {task for pairs in benchmark.values() for task, metric in pairs if (task, metric) not in scores}
            )
            if not lacking[name]:
                averages.setdefault(step, {})[name] = average(scores, benchmark)
    if not averages:
        missing = "; ".join(f"{name} lacks {', '.join(tasks)}" for name, tasks in lacking.items())
        raise UserError(
            f"{model_dir} has no evaluation of a whole benchmark ({missing or 'none at all'}); evaluate "
            "glue_v002_proportional or super_glue_v102_proportional there"
        )
    return averages


def main(arguments: list[str]) -> int:
    """Prints the averages of a run; 2 for a mistake."""
    if len(arguments) != 1:
        print("usage: python -m t5x_lite.tasks.averages MODEL_DIR", file=sys.stderr)
        return 2
    try:
        for step, values in of_run(arguments[0]).items():
            print(f"step {step}: " + ", ".join(f"{name} {value:.2f}" for name, value in values.items()))
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
