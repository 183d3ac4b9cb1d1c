"""TriviaQA with its evidence (https://nlp.cs.washington.edu/triviaqa): `trivia_qa_v010`, which has no metric in T5."""

from t5x_lite.tasks import question_preprocessors
from t5x_lite.tasks.registration import add_task

add_task(
    "trivia_qa_v010",
    "trivia_qa/rc:1.1.0",
    ("train", "validation", "test"),
    [question_preprocessors.trivia_qa],
    token_preprocessors=[question_preprocessors.trivia_qa_truncate_inputs],
)
