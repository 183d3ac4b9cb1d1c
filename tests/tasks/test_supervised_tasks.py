"""Every supervised task, from an example with its data set's real features to the text that T5 sees."""

import contextlib
import functools

import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

import t5x_lite.tasks  # noqa: F401  (registers)
from t5x_lite.tasks import rates

BYTES = seqio.ByteVocabulary()
SENTINEL = BYTES.vocab_size - 1

NLI = {"premise": "A dog runs.", "hypothesis": "An animal moves.", "idx": 3}
WNLI = {"sentence1": "The fish ate the worm. It was tasty.", "sentence2": "The worm was tasty.", "label": 1, "idx": 0}
WSC = {
    "text": "Bob asked Tom if he can lend some money.",
    "span1_index": 2,
    "span1_text": "Tom",
    "span2_index": 4,
    "span2_text": "he",
    "label": 1,
    "idx": 6,
}
SQUAD = {
    "id": "q7",
    "title": "T",
    "question": "Who won?",
    "context": "In 1998, Ann won; Bo lost.",
    "answers": {"text": ["Ann", "Ann won"], "answer_start": [9, 9]},
}
TRIVIA_ANSWER = {
    "aliases": ["B. C.", "Bc"],
    "normalized_aliases": ["b c", "bc"],
    "matched_wiki_entity_name": "",
    "normalized_matched_wiki_entity_name": "",
    "normalized_value": "b c",
    "type": "FreeForm",
    "value": "B. C.",
}
TRIVIA = {
    "question": "Who is 'It'?",
    "question_id": "x",
    "question_source": "",
    "answer": TRIVIA_ANSWER,
    "entity_pages": {"doc_source": ["TagMe"], "filename": ["f"], "title": ["t"], "wiki_context": ["A B C, said (Bc)."]},
    "search_results": {
        "description": [""],
        "filename": [""],
        "rank": [1],
        "search_context": ["Nothing here."],
        "title": [""],
        "url": [""],
    },
}
SINGLE = {"idx": 1, "sentence": "It  is\tso ."}
PAIR = {"idx": 2, "sentence1": "One .", "sentence2": "Two ?"}

# Task: (raw examples, [(inputs, targets), ...]).
CASES = {
    "glue_cola_v002": ([{**SINGLE, "label": 0}], [("cola sentence: It  is\tso .", "unacceptable")]),
    "glue_sst2_v002": ([{**SINGLE, "label": 1}], [("sst2 sentence: It  is\tso .", "positive")]),
    "glue_mrpc_v002": ([{**PAIR, "label": 1}], [("mrpc sentence1: One . sentence2: Two ?", "equivalent")]),
    "glue_qqp_v002": (
        [{"question1": "A?", "question2": "B?", "label": 0, "idx": 0}],
        [("qqp question1: A? question2: B?", "not_duplicate")],
    ),
    "glue_stsb_v002": ([{**PAIR, "label": 2.57}], [("stsb sentence1: One . sentence2: Two ?", "2.6")]),
    "glue_mnli_v002": (
        [{**NLI, "label": 2}],
        [("mnli hypothesis: An animal moves. premise: A dog runs.", "contradiction")],
    ),
    "glue_mnli_matched_v002": (
        [{**NLI, "label": 1}],
        [("mnli hypothesis: An animal moves. premise: A dog runs.", "neutral")],
    ),
    "glue_mnli_mismatched_v002": (
        [{**NLI, "label": 0}],
        [("mnli hypothesis: An animal moves. premise: A dog runs.", "entailment")],
    ),
    "glue_ax_v002": ([{**NLI, "label": -1}], [("mnli hypothesis: An animal moves. premise: A dog runs.", "<unk>")]),
    "glue_qnli_v002": (
        [{"question": "Q?", "sentence": "S.", "label": 1, "idx": 0}],
        [("qnli question: Q? sentence: S.", "not_entailment")],
    ),
    "glue_rte_v002": ([{**PAIR, "label": 0}], [("rte sentence1: One . sentence2: Two ?", "entailment")]),
    "glue_wnli_v002": (
        [WNLI],
        [("wnli sentence1: The fish ate the worm. It was tasty. sentence2: The worm was tasty.", "entailment")],
    ),
    "glue_wnli_v002_simple_eval": ([WNLI], [("wsc: The fish ate the worm. *It* was tasty.", "The worm")]),
    "super_glue_boolq_v102": (
        [{"question": "is it", "passage": "It is.", "label": 1, "idx": 0}],
        [("boolq passage: It is. question: is it", "True")],
    ),
    "super_glue_cb_v102": (
        [{**NLI, "label": 1}],
        [("cb hypothesis: An animal moves. premise: A dog runs.", "contradiction")],
    ),
    "super_glue_copa_v102": (
        [{"premise": "P.", "question": "cause", "choice1": "C1.", "choice2": "C2.", "label": 1, "idx": 0}],
        [("copa choice1: C1. choice2: C2. premise: P. question: cause", "choice2")],
    ),
    "super_glue_multirc_v102": (
        [
            {
                "paragraph": "<b>Sent 1: </b>A.<br>B.<BR>",
                "question": "Q?",
                "answer": "A",
                "label": 0,
                "idx": {"paragraph": 5, "question": 6, "answer": 7},
            }
        ],
        [("multirc question: Q? answer: A paragraph: Sent 1: A. B.<BR>", "False")],
    ),
    "super_glue_record_v102": (
        [
            {
                "passage": "It ended.\n@highlight\nAnn won\n@highlight\nBo lost",
                "query": "@placeholder won",
                "entities": ["Ann", "Bo"],
                "answers": ["Ann", "Anne"],
                "idx": {"passage": 1, "query": 2},
            }
        ],
        [
            ("record query: @placeholder won entities: Ann, Bo passage: It ended. Ann won. Bo lost", answer)
            for answer in ("Ann", "Anne")
        ],
    ),
    "super_glue_rte_v102": (
        [{**NLI, "label": 0}],
        [("rte hypothesis: An animal moves. premise: A dog runs.", "entailment")],
    ),
    "super_glue_wic_v102": (
        [
            {
                "word": "bank",
                "sentence1": "A bank.",
                "sentence2": "The bank.",
                "start1": 2,
                "end1": 6,
                "start2": 4,
                "end2": 8,
                "label": 1,
                "idx": 0,
            }
        ],
        [("wic sentence1: A bank. sentence2: The bank. word: bank", "True")],
    ),
    "super_glue_axb_v102": ([{**PAIR, "label": 1}], [("rte hypothesis: Two ? premise: One .", "not_entailment")]),
    "super_glue_axg_v102": (
        [{**NLI, "label": -1}],
        [("rte hypothesis: An animal moves. premise: A dog runs.", "<unk>")],
    ),
    "dpr_v001_simple": (
        [
            {
                "sentence": "Bob asked Tom if he can lend some money, he said.",
                "pronoun": "he",
                "candidates": ["Bob", "Tom"],
                "label": 1,
            }
        ],
        [("wsc: Bob asked Tom if *he* can lend some money, he said.", "Tom")],
    ),
    "super_glue_wsc_v102_simple_train": (
        [{**WSC, "label": 0}, WSC],
        [("wsc: Bob asked Tom if *he* can lend some money.", "Tom")],
    ),
    "super_glue_wsc_v102_simple_eval": (
        [{**WSC, "span1_text": "Bob", "label": 0}, WSC],
        [("wsc: Bob asked Tom if *he* can lend some money.", noun) for noun in ("Bob", "Tom")],
    ),
    "squad_v010": ([SQUAD], [("question: Who won ? context: In 1998 , Ann won ; Bo lost . ", "Ann")]),
    "squad_v010_allanswers": ([SQUAD], [("question: Who won ? context: In 1998 , Ann won ; Bo lost . ", "Ann")]),
    "squad_v010_allanswers_span": (
        # "In 1998 , Ann won ; Bo lost . ": the comma leaves two empty words behind.
        [SQUAD],
        [("question: Who won ? context: In 1998 , Ann won ; Bo lost . ", "start: 4 end: 4")],
    ),
    "squad_v010_context_free": ([SQUAD], [("squad trivia question: Who won ? ", "Ann")]),
    "trivia_qa_v010": (
        [TRIVIA],
        [("question: Who is ' It ' ? context: A B C , said ( Bc ) . ", answer) for answer in ("b c", "bc")],
    ),
    "trivia_qa_open": ([TRIVIA], [("trivia_qa question: Who is 'It'?", "B. C.")]),
    "trivia_qa_open_test": ([TRIVIA], [("trivia_qa question: Who is 'It'?", "B. C.")]),
    "triviaqa_context_free": ([TRIVIA], [("trivia question: who is it?", "b. c.")]),
    "natural_questions_open": ([{"question": "who won", "answer": ["Ann", "Anne"]}], [("nq question: who won", "Ann")]),
    "natural_questions_open_test": (
        [{"question": "who won", "answer": ["Ann", "Anne"]}],
        [("nq question: who won", "Ann")],
    ),
    "natural_questions_open_randanswer": (
        [{"question": "who won", "answer": ["Ann", "Ann"]}],
        [("nq question: who won", "Ann")],
    ),
    "salient_span_masked_wikipedia": (
        [{"title": "T", "text": "Ann won.", "spans": {"start": [0], "limit": [3], "type": ["PER"]}}],
        [("nem: _X_ won.", "Ann")],
    ),
    "web_questions_open": (
        [{"url": "", "question": "who won?", "answers": ["Ann", "Anne"]}],
        [("wq question: who won?", "Ann")],
    ),
    "web_questions_open_test": (
        [{"url": "", "question": "who won?", "answers": ["Ann", "Anne"]}],
        [("wq question: who won?", "Ann")],
    ),
    "cnn_dailymail_v002": (
        [{"article": "Long .\nText .", "highlights": "Short .\nOne .", "id": "", "publisher": ""}],
        [("summarize: Long .\nText .", "Short .\nOne .")],
    ),
    "wmt14_ende_v003": ([{"de": "Gut.", "en": "Good."}], [("translate English to German: Good.", "Gut.")]),
    "wmt14_enfr_v003": ([{"fr": "Bon.", "en": "Good."}], [("translate English to French: Good.", "Bon.")]),
    "wmt15_enfr_v003": ([{"fr": "Bon.", "en": "Good."}], [("translate English to French: Good.", "Bon.")]),
    "wmt16_enro_v003": ([{"ro": "Bun.", "en": "Good."}], [("translate English to Romanian: Good.", "Bun.")]),
    "wmt19_ende_v003": ([{"de": "Gut.", "en": "Good."}], [("translate English to German: Good.", "Gut.")]),
    "wmt_t2t_ende_v003": ([{"de": "Gut.", "en": "Good."}], [("translate English to German: Good.", "Gut.")]),
}


@contextlib.contextmanager
def data_set(examples):
    """tensorflow-datasets gives these raw examples, which must be exactly of the builder's features."""

    def as_dataset(builder, *unused_args, **unused_kwargs):
        spec = builder.info.features.get_tensor_spec()
        return tf.data.Dataset.from_generator(lambda: examples, output_signature=spec)

    with tfds.testing.mock_data(as_dataset_fn=as_dataset):
        yield


def on_bytes(name):
    task = seqio.get_mixture_or_task(name)
    features = {key: seqio.Feature(vocabulary=BYTES, add_eos=True) for key in task.output_features}
    return task.replace(name=f"{name}#bytes", output_features=features)


def read(name, examples, **lengths):
    """The examples that the task makes of raw ones, in its first split."""
    task = on_bytes(name)
    with data_set(examples):
        dataset = task.get_dataset(
            lengths or {"inputs": 512, "targets": 512},
            next(iter(task.splits)),
            shuffle=False,
            seed=0,
            try_in_mem_cache=False,
        )
        return list(dataset.as_numpy_iterator())


@functools.cache
def of_case(name):
    return read(name, CASES[name][0])


@pytest.mark.parametrize("name", CASES)
def test_text_of_the_task(name):
    found, expected = of_case(name), CASES[name][1]
    texts = [(BYTES.decode(e["inputs"].tolist()), BYTES.decode(e["targets"].tolist())) for e in found]
    assert texts == expected
    assert all(e[key][-1] == BYTES.eos_id for e in found for key in ("inputs", "targets"))


def test_sentinel_form():
    examples, ((inputs, targets),) = CASES["super_glue_wsc_v102_simple_train"]
    for length in (512, 9):  # cut inputs end with the sentinel all the same
        (example,) = read("super_glue_wsc_v102_simple_1_sentinel_train", examples, inputs=length, targets=512)
        assert example["inputs"].tolist() == [*BYTES.encode(inputs)[: length - 2], SENTINEL, BYTES.eos_id]
        assert example["targets"].tolist() == [SENTINEL, *BYTES.encode(targets), BYTES.eos_id]


def test_scores_of_right_answers():
    """Targets and predictions of each task's own examples, through its own postprocessor, score full marks."""
    for name, metrics in {
        "glue_mrpc_v002": {"f1": 100, "accuracy": 100},
        "super_glue_cb_v102": {"mean_3class_f1": 100 / 3, "accuracy": 100},  # one class of three is there
        "super_glue_multirc_v102": {"f1": 0, "exact_match": 100},  # F1 of "True", which is not there
        "super_glue_record_v102": {"em": 100, "f1": 100},
        "super_glue_wsc_v102_simple_eval": {"accuracy": 50},  # the answer given is Bob, right where the label is 0
        "squad_v010": {"em": 100, "f1": 100},
        "squad_v010_allanswers": {"em": 100, "f1": 100},
        "squad_v010_allanswers_span": {"em": 0, "f1": 0},  # the empty words behind the comma count for one of the two
        "trivia_qa_open": {"em": 100, "f1": 100},
        "triviaqa_context_free": {"accuracy": 100},
        "cnn_dailymail_v002": {"rouge1": 100, "rouge2": 100, "rougeLsum": 100},
        "dpr_v001_simple": {"accuracy": 100},
    }.items():
        task = seqio.get_mixture_or_task(name)
        found = of_case(name)
        decoded = [BYTES.decode(e["targets"].tolist()) for e in found]
        given = [task.postprocess_fn(text, example=e, is_target=False) for text, e in zip(decoded, found)]
        right = [task.postprocess_fn(text, example=e, is_target=True) for text, e in zip(decoded, found)]
        scores = {key: value for metric in task.metric_fns for key, value in metric(right, given).items()}
        assert scores == pytest.approx(metrics), name


def test_sentinel_is_taken_off_before_scoring():
    task = seqio.get_mixture_or_task("super_glue_boolq_v102_1_sentinel")
    assert [
        task.postprocess_fn(text, example={}, is_target=False)
        for text in ("<extra_id_0> True", "<extra_id_0>False", "True", "True <extra_id_0>")
    ] == [1, 0, 1, -1]
    (metric,) = task.metric_fns
    assert metric([1], [task.postprocess_fn("<extra_id_0> True", example={}, is_target=False)]) == {"accuracy": 100}
    # Without a postprocessor of its own, the task compares texts.
    task = seqio.get_mixture_or_task("dpr_v001_simple_1_sentinel")
    assert task.postprocess_fn("<extra_id_0> Tom", example={}, is_target=False) == "Tom"


def test_names_are_those_of_t5():
    names = set(seqio.TaskRegistry.names())
    assert set(CASES) <= names
    assert {f"super_glue_{n}_v102_1_sentinel" for n in "boolq cb copa multirc record rte wic axb axg".split()} <= names
    assert {
        "dpr_v001_simple_1_sentinel",
        "super_glue_wsc_v102_simple_1_sentinel_train",
        "super_glue_wsc_v102_simple_1_sentinel_eval",
    } <= names
    assert {*rates.GLUE, *rates.SUPER_GLUE} <= names


def test_splits_are_known_without_data():
    for name, splits in {
        "glue_mnli_v002": {"train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched"},
        "glue_ax_v002": {"test"},
        "super_glue_wsc_v102_simple_eval": {"validation", "test"},
        "dpr_v001_simple": {"train", "test"},
        "natural_questions_open": {"train", "validation", "test"},
    }.items():
        assert set(seqio.get_mixture_or_task(name).splits) == splits, name
