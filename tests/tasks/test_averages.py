"""GLUE's and SuperGLUE's averages."""

import json

import pytest

from t5x_lite.errors import UserError
from t5x_lite.tasks import averages

# The baseline's row of the paper's table 16, and the averages that its table 1 gives of it.
GLUE = {
    ("glue_cola_v002", "matthews_corrcoef"): 53.84,
    ("glue_sst2_v002", "accuracy"): 92.68,
    ("glue_mrpc_v002", "f1"): 92.07,
    ("glue_mrpc_v002", "accuracy"): 88.92,
    ("glue_stsb_v002", "pearson_corrcoef"): 88.02,
    ("glue_stsb_v002", "spearman_corrcoef"): 87.94,
    ("glue_qqp_v002", "f1"): 88.67,
    ("glue_qqp_v002", "accuracy"): 91.56,
    ("glue_mnli_matched_v002", "accuracy"): 84.24,
    ("glue_mnli_mismatched_v002", "accuracy"): 84.57,
    ("glue_qnli_v002", "accuracy"): 90.48,
    ("glue_rte_v002", "accuracy"): 76.28,
}
SUPER_GLUE = {
    ("super_glue_boolq_v102", "accuracy"): 76.62,
    ("super_glue_cb_v102", "mean_3class_f1"): 91.22,
    ("super_glue_cb_v102", "accuracy"): 91.96,
    ("super_glue_copa_v102", "accuracy"): 66.20,
    ("super_glue_multirc_v102", "f1"): 66.13,
    ("super_glue_multirc_v102", "exact_match"): 25.78,
    ("super_glue_record_v102", "f1"): 69.05,
    ("super_glue_record_v102", "em"): 68.16,
    ("super_glue_rte_v102", "accuracy"): 75.34,
    ("super_glue_wic_v102", "accuracy"): 68.04,
    ("super_glue_wsc_v102_simple_eval", "accuracy"): 78.56,
}


def write(folder, scores, step=10):
    with (folder / "metrics.jsonl").open("a") as file:
        for (task, metric), value in scores.items():
            file.write(json.dumps({"step": step, "name": f"eval/{task}/{metric}", "value": value, "time": 0}) + "\n")
        file.write(json.dumps({"step": step, "name": "train/loss", "value": 1.0, "time": 0}) + "\n")


def test_averages_of_the_papers_baseline():
    assert round(averages.average(GLUE, averages.GLUE), 2) == 83.28
    assert round(averages.average(SUPER_GLUE, averages.SUPER_GLUE), 2) == 71.36


def test_averages_of_a_run(tmp_path, capsys):
    write(tmp_path, GLUE, step=10)
    write(tmp_path, dict.fromkeys(GLUE, 50.0), step=20)
    named = {(task.replace("_v102", "_v102_1_sentinel"), metric): value for (task, metric), value in SUPER_GLUE.items()}
    write(tmp_path, named, step=20)
    assert averages.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == "step 10: GLUE 83.28\nstep 20: GLUE 50.00, SuperGLUE 71.36\n"


def test_what_an_average_lacks_is_named(tmp_path, capsys):
    write(tmp_path, {key: value for key, value in GLUE.items() if key[0] != "glue_rte_v002"})
    with pytest.raises(UserError, match=r"GLUE lacks glue_rte_v002; SuperGLUE lacks super_glue_boolq_v102, .*"):
        averages.of_run(str(tmp_path))
    assert averages.main([str(tmp_path / "nowhere")]) == 2
    assert "none at all" in capsys.readouterr().err
    assert averages.main([]) == 2
