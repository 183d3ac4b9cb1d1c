"""SQuAD 1.1 (https://rajpurkar.github.io/SQuAD-explorer): answers as text, as spans, and without the context."""

import functools

from t5x_lite.tasks import metrics, postprocessors, question_preprocessors
from t5x_lite.tasks.registration import add_task


def _add(name, preprocess, postprocess_fn=None, metric=metrics.squad):
    add_task(name, "squad/v1.1:3.0.0", ("train", "validation"), [preprocess], (metric,), postprocess_fn)


_add("squad_v010_allanswers", question_preprocessors.squad, postprocessors.qa)
_add(
    "squad_v010_context_free", functools.partial(question_preprocessors.squad, include_context=False), postprocessors.qa
)
_add(
    "squad_v010_allanswers_span",
    question_preprocessors.squad_span_space_tokenized,
    postprocessors.span_qa,
    metrics.span_squad,
)
# Scored against the first answer alone; T5 itself calls for `squad_v010_allanswers` in its place.
_add("squad_v010", question_preprocessors.squad)
