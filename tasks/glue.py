"""GLUE (https://gluebenchmark.com): `glue_<name>_v002`, and WNLI as Winograd schemas for evaluation.

MNLI's validation sets are the tasks `glue_mnli_matched_v002` and `glue_mnli_mismatched_v002`; AX has a test set alone.
WNLI is registered as the others are, but no mixture trains on it.
"""

import functools

from t5x_lite.tasks import glue_preprocessors, metrics, postprocessors, pronoun_preprocessors
from t5x_lite.tasks.registration import add_task

_SPLITS = ("train", "validation", "test")
_MNLI_SPLITS = ("train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched")
_NLI = ("entailment", "neutral", "contradiction")
_F1_AND_ACCURACY = (metrics.f1_score_with_invalid, metrics.accuracy)

# Name: (the inputs' first word, class names, splits, metrics).
_TASKS = {
    "cola": ("cola", ("unacceptable", "acceptable"), _SPLITS, (metrics.matthews_corrcoef,)),
    "sst2": ("sst2", ("negative", "positive"), _SPLITS, (metrics.accuracy,)),
    "mrpc": ("mrpc", ("not_equivalent", "equivalent"), _SPLITS, _F1_AND_ACCURACY),
    "qqp": ("qqp", ("not_duplicate", "duplicate"), _SPLITS, _F1_AND_ACCURACY),
    "mnli": ("mnli", _NLI, _MNLI_SPLITS, (metrics.accuracy,)),
    "mnli_mismatched": ("mnli", _NLI, ("validation", "test"), (metrics.accuracy,)),
    "mnli_matched": ("mnli", _NLI, ("validation", "test"), (metrics.accuracy,)),
    "qnli": ("qnli", ("entailment", "not_entailment"), _SPLITS, (metrics.accuracy,)),
    "rte": ("rte", ("entailment", "not_entailment"), _SPLITS, (metrics.accuracy,)),
    "wnli": ("wnli", ("not_entailment", "entailment"), _SPLITS, (metrics.accuracy,)),
    "ax": ("mnli", _NLI, ("test",), ()),
}


def _data(name: str) -> str:
    # T5 used 1.0.0, which is read where it has been prepared; tensorflow-datasets itself prepares 2.0.0 now, with
    # another source for QQP and the same features.
    return f"glue/{name}:*.*.*"


for _name, (_benchmark, _labels, _splits, _metrics) in _TASKS.items():
    add_task(
        f"glue_{_name}_v002",
        _data(_name),
        _splits,
        [functools.partial(glue_preprocessors.glue, benchmark_name=_benchmark, label_names=_labels)],
        _metrics,
        functools.partial(postprocessors.string_label_to_class_id, label_classes=_labels),
    )

add_task(
    "glue_stsb_v002",
    _data("stsb"),
    _SPLITS,
    [glue_preprocessors.stsb],
    (metrics.pearson_corrcoef, metrics.spearman_corrcoef),
    postprocessors.string_to_float,
)
add_task(
    "glue_wnli_v002_simple_eval",
    _data("wnli"),
    ("validation", "test"),
    [pronoun_preprocessors.wnli_simple],
    (metrics.accuracy,),
    postprocessors.wsc_simple,
)
