"""SuperGLUE (https://super.gluebenchmark.com): `super_glue_<name>_v102`; WSC with DPR beside it; `_1_sentinel` forms.

WSC is `super_glue_wsc_v102_simple_train`, on the examples whose candidate is right, and
`super_glue_wsc_v102_simple_eval`, on all. In a `_1_sentinel` form inputs end and targets begin with `<extra_id_0>`.
"""

import functools

import seqio

from t5x_lite.tasks import glue_preprocessors, metrics, postprocessors, pronoun_preprocessors
from t5x_lite.tasks.registration import add_sentinel_form, add_task

_SPLITS = ("train", "validation", "test")
_BOOLEAN = ("False", "True")
_RTE = ("entailment", "not_entailment")
_CB = ("entailment", "contradiction", "neutral")
_CHOICES = ("choice1", "choice2")


def _classes(benchmark_name: str, label_names: tuple[str, ...], feature_names: tuple[str, ...] | None = None):
    return functools.partial(
        glue_preprocessors.glue, benchmark_name=benchmark_name, label_names=label_names, feature_names=feature_names
    )


def _class_id(label_names: tuple[str, ...]):
    return functools.partial(postprocessors.string_label_to_class_id, label_classes=label_names)


# AX-b is cast as RTE, whose texts are called premise and hypothesis.
_REKEY_AXB = functools.partial(
    seqio.preprocessors.rekey,
    key_map={"premise": "sentence1", "hypothesis": "sentence2", "label": "label", "idx": "idx"},
)

# Name: (splits, preprocessors, metrics, postprocessor).
_TASKS = {
    "boolq": (_SPLITS, [_classes("boolq", _BOOLEAN)], (metrics.accuracy,), _class_id(_BOOLEAN)),
    "cb": (
        _SPLITS,
        [_classes("cb", _CB)],
        (metrics.mean_multiclass_f1(num_classes=3), metrics.accuracy),
        _class_id(_CB),
    ),
    "copa": (_SPLITS, [_classes("copa", _CHOICES)], (metrics.accuracy,), _class_id(_CHOICES)),
    "multirc": (
        _SPLITS,
        [_classes("multirc", _BOOLEAN, ("question", "answer", "paragraph"))],
        (metrics.multirc_f1_over_all_answers, metrics.mean_group_metric(metrics.all_match)),
        postprocessors.multirc,
    ),
    "record": (
        _SPLITS,
        [glue_preprocessors.record],
        (metrics.deduplicate_metric(metrics.squad),),
        postprocessors.record,
    ),
    "rte": (_SPLITS, [_classes("rte", _RTE)], (metrics.accuracy,), _class_id(_RTE)),
    # Where in the sentences the word stands is not shown.
    "wic": (
        _SPLITS,
        [_classes("wic", _BOOLEAN, ("sentence1", "sentence2", "word"))],
        (metrics.accuracy,),
        _class_id(_BOOLEAN),
    ),
    "axb": (("test",), [_REKEY_AXB, _classes("rte", _RTE)], (), _class_id(_RTE)),
    "axg": (("test",), [_classes("rte", _RTE)], (), _class_id(_RTE)),
}
_names = []
for _name, (_splits, _preprocessors, _metrics, _postprocess) in _TASKS.items():
    _names.append(f"super_glue_{_name}_v102")
    add_task(_names[-1], f"super_glue/{_name}:1.0.2", _splits, _preprocessors, _metrics, _postprocess)

add_task(
    "dpr_v001_simple",
    "definite_pronoun_resolution:1.1.0",
    ("train", "test"),
    [pronoun_preprocessors.definite_pronoun_resolution_simple],
    (metrics.accuracy,),
)
add_task(
    "super_glue_wsc_v102_simple_train",
    "super_glue/wsc.fixed:1.0.2",
    ("train",),
    [functools.partial(pronoun_preprocessors.wsc_simple, correct_referent_only=True)],
)
add_task(
    "super_glue_wsc_v102_simple_eval",
    "super_glue/wsc.fixed:1.0.2",
    ("validation", "test"),
    [pronoun_preprocessors.wsc_simple],
    (metrics.accuracy,),
    postprocessors.wsc_simple,
)
for _name in (*_names, "dpr_v001_simple", "super_glue_wsc_v102_simple_train", "super_glue_wsc_v102_simple_eval"):
    add_sentinel_form(_name)
