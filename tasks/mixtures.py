"""T5's mixtures under their names, and `all_supervised_*`, which T5 lacks.

`_proportional` goes by the number of examples. In the mixtures of one benchmark that is fixed; in those across data
sets limit and temperature are set in gin:

    rate_num_examples.maximum = 524288      # K = 2^19
    rate_num_examples.temperature = 2.0
    rate_unsupervised.value = 2620000       # all_mix, en_mix: what unlabelled text counts for

Sources: Raffel et al. 2020 (https://arxiv.org/abs/1910.10683), sections 3.5.2 and 3.7; Roberts et al. 2020
(https://arxiv.org/abs/2002.08910) for `closed_book_qa`.
"""

import functools

import seqio

# Most of them for the tasks that are mixed.
from t5x_lite.tasks import c4, closed_book_qa, cnn_dailymail, glue, rates, squad, super_glue, trivia_qa, wmt
from t5x_lite.tasks.registration import sentinel_form

_C4 = "c4_v020_unsupervised"
_BENCHMARKS = {"glue_v002_proportional": rates.GLUE, "super_glue_v102_proportional": rates.SUPER_GLUE}
_TRANSLATION = ["wmt_t2t_ende_v003", "wmt15_enfr_v003"]
_OTHERS = ["cnn_dailymail_v002", "squad_v010_allanswers", *_TRANSLATION, "wmt16_enro_v003"]
_SUPERVISED = [*rates.GLUE, *rates.SUPER_GLUE, *_OTHERS]
# The same examples in both benchmarks.
_TWINS = {"glue_rte_v002", "super_glue_rte_v102"}

_add = seqio.MixtureRegistry.add


def _proportional(tasks):
    """Rates by the number of examples, twins sharing theirs."""
    halved = functools.partial(rates.rate_num_examples, copies=2)
    twins = set(tasks) >= _TWINS
    return [(task, halved if twins and task in _TWINS else rates.rate_num_examples) for task in tasks]


# GLUE and SuperGLUE ------------------------------------------------------------------------------------------------


for _name, _sizes in _BENCHMARKS.items():
    _add(_name, list(_sizes.items()))
_add("super_glue_v102_proportional_sentinel", [(sentinel_form(task), size) for task, size in rates.SUPER_GLUE.items()])
_add("glue_mnli_and_dev_v002", [task for task in rates.GLUE if "mnli" in task], default_rate=1.0)
_add(
    "wsc_dpr_simple_proportional",
    [(task, size) for task, size in rates.SUPER_GLUE.items() if "wsc" in task or "dpr" in task],
)

# Many data sets ----------------------------------------------------------------------------------------------------

_add("all_supervised_equal", _SUPERVISED, default_rate=1.0)
_add("all_supervised_proportional", _proportional(_SUPERVISED))
_add("large_supervised_equal", [*_TRANSLATION, "cnn_dailymail_v002"], default_rate=1.0)
_add("large_supervised_proportional", _proportional([*_TRANSLATION, "cnn_dailymail_v002"]))
_add("large_translation_equal", _TRANSLATION, default_rate=1.0)
_add("squad_trivia_qa_equal", ["squad_v010_allanswers", "trivia_qa_v010"], default_rate=1.0)
for _suffix in ("", "_test"):
    _members = [f"{task}_open{_suffix}" for task in ("trivia_qa", "natural_questions", "web_questions")]
    _add(f"closed_book_qa{_suffix}", _proportional(_members))

# With unlabelled text ----------------------------------------------------------------------------------------------

_add("all_equal", [*_SUPERVISED, _C4], default_rate=1.0)
_add("all_proportional", _proportional([*_SUPERVISED, _C4]))
_add("all_mix", [(_C4, rates.rate_unsupervised), *_proportional(_SUPERVISED)])
_add(
    "en_mix",
    [(_C4, rates.rate_unsupervised), *rates.GLUE, *rates.SUPER_GLUE, "squad_v010_allanswers"],
    default_rate=rates.rate_num_examples,
)
for _left_out in (*_BENCHMARKS, *_OTHERS):
    _without = _BENCHMARKS.get(_left_out, {_left_out})
    _add(f"leave_one_out_{_left_out}", _proportional([t for t in (*_SUPERVISED, _C4) if t not in _without]))
