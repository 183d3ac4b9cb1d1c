"""The preprocessors of `t5.data.preprocessors` under their names: a task module written for T5 changes one import.

    from t5x_lite.tasks import preprocessors  # was: from t5.data import preprocessors
"""

from t5x_lite.tasks.glue_preprocessors import glue, record, stsb  # noqa: F401
from t5x_lite.tasks.pronoun_preprocessors import (  # noqa: F401
    definite_pronoun_resolution_simple,
    wnli_simple,
    wsc,
    wsc_simple,
)
from t5x_lite.tasks.question_preprocessors import (  # noqa: F401
    squad,
    squad_span_space_tokenized,
    trivia_qa,
    trivia_qa_truncate_inputs,
)
from t5x_lite.tasks.text_preprocessors import (  # noqa: F401
    multi_translate,
    parse_tsv,
    preprocess_tsv,
    rank_classification,
    rank_classification_formatter,
    summarize,
    translate,
)
