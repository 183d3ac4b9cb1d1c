"""Questions without a text to find the answer in: Natural Questions, WebQuestions and TriviaQA; salient spans.

Tasks named `_open` hold a tenth of the training set out as `validation` and keep the public evaluation set as `test`;
their `_open_test` forms train on all. `natural_questions_open_randanswer` trains on another of the answers each time,
and, as its original, on the tenth that the others hold out. `triviaqa_context_free` is that of T5's notebook on trivia.
On Wikipedia, `salient_span_masked_wikipedia` asks for names and dates, `span_corrupted_wikipedia` for any spans.

Source: Roberts et al. 2020, "How Much Knowledge Can You Pack Into the Parameters of a Language Model?"
(https://arxiv.org/abs/2002.08910).
"""

import seqio

from t5x_lite.tasks import c4, closed_book_preprocessors, metrics, postprocessors, preprocessors, unsupervised
from t5x_lite.tasks.registration import add_task
from t5x_lite.tasks.tfds_source import TfdsSource

_NATURAL_QUESTIONS = ("natural_questions_open:1.0.0", closed_book_preprocessors.natural_questions_open, metrics.squad)
_WEB_QUESTIONS = ("web_questions:1.0.0", closed_book_preprocessors.web_questions_open, metrics.squad)
_TRIVIA_QA = ("trivia_qa/unfiltered.nocontext:1.1.0", closed_book_preprocessors.trivia_qa_open, metrics.trivia_qa)

# Name: (data set, split -> part of the data set).
_TASKS = {
    "natural_questions_open": (
        _NATURAL_QUESTIONS,
        {"train": "train[:79168]", "validation": "train[79168:]", "test": "validation"},
    ),
    "natural_questions_open_test": (_NATURAL_QUESTIONS, {"train": "train", "validation": "validation"}),
    "web_questions_open": (_WEB_QUESTIONS, {"train": "train[:3417]", "validation": "train[3417:]", "test": "test"}),
    "web_questions_open_test": (_WEB_QUESTIONS, {"train": "train", "validation": "test"}),
    "trivia_qa_open": (_TRIVIA_QA, {"train": "train[:78785]", "validation": "train[78785:]", "test": "validation"}),
    "trivia_qa_open_test": (_TRIVIA_QA, {"train": "train+validation", "test": "test"}),
}
for _name, ((_data, _preprocess, _metric), _splits) in _TASKS.items():
    add_task(_name, _data, _splits, [_preprocess], (_metric,), postprocessors.qa)

add_task(
    "triviaqa_context_free",
    _TRIVIA_QA[0],
    ("train", "validation", "test"),
    [closed_book_preprocessors.trivia_question],
    (metrics.accuracy,),
    postprocessors.lower_text,
)

add_task(
    "natural_questions_open_randanswer",
    _NATURAL_QUESTIONS[0],
    {"train": "train[79168:]", "validation": "train[:79168]", "test": "validation"},
    [closed_book_preprocessors.natural_questions_open, closed_book_preprocessors.sample_answer],
    (metrics.squad,),
    postprocessors.qa,
)

_WIKIPEDIA = "salient_span_wikipedia/sentences:1.0.0"
add_task("salient_span_masked_wikipedia", _WIKIPEDIA, ("train",), [closed_book_preprocessors.mask_salient_spans])
unsupervised.add_task(
    "span_corrupted_wikipedia",
    TfdsSource(tfds_name=_WIKIPEDIA, splits=("train",)),
    c4.features(),
    preprocessors.span_corruption,
    seqio.preprocessors.append_eos_after_trim,
)
