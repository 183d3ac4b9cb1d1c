"""The vocabularies against seqio's, id for id and character for character; and their life in a checkpoint."""

import base64
import copy
import io
import json
import pickle

import numpy as np
import pytest
import sentencepiece
import seqio
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gin
from t5x_lite import vocabularies
from t5x_lite.errors import UserError
from t5x_lite.vocabularies import ByteVocabulary, SentencePieceVocabulary

SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "a translation of some English text",
    "hello world",
    "numbers 1 2 3 4 5",
    "Übersetzung ist schön",
    "<extra_id is not a sentinel>",
] * 10


def train(vocab_size=90, **kwargs) -> bytes:
    out = io.BytesIO()
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1} | kwargs
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(SENTENCES),
        model_writer=out,
        minloglevel=2,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        **ids,
    )
    return out.getvalue()


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "tiny.model"
    path.write_bytes(train())
    return path


@pytest.fixture(scope="module")
def byte_fallback_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "bytes.model"
    path.write_bytes(train(vocab_size=340, byte_fallback=True))
    return path


PAIRS = {
    "T5's 100 sentinels": lambda m, _: (
        SentencePieceVocabulary.from_path(m),
        seqio.SentencePieceVocabulary(str(m), 100),
    ),
    "three sentinels": lambda m, _: (SentencePieceVocabulary.from_path(m, 3), seqio.SentencePieceVocabulary(str(m), 3)),
    "no sentinels": lambda m, _: (SentencePieceVocabulary.from_path(m, 0), seqio.SentencePieceVocabulary(str(m), 0)),
    "sentinels forwards": lambda m, _: (
        SentencePieceVocabulary.from_path(m, 5, reverse_extra_ids=False),
        seqio.SentencePieceVocabulary(str(m), 5, reverse_extra_ids=False),
    ),
    "byte fallback": lambda _, b: (SentencePieceVocabulary.from_path(b), seqio.SentencePieceVocabulary(str(b), 100)),
    "ByT5's bytes": lambda *_: (ByteVocabulary(), seqio.ByteVocabulary(125)),
    "bytes alone": lambda *_: (ByteVocabulary(0), seqio.ByteVocabulary()),
}


@pytest.fixture(scope="module", params=PAIRS, ids=str)
def pair(request, model_file, byte_fallback_file):
    """One of ours and its seqio model."""
    return PAIRS[request.param](model_file, byte_fallback_file)


TEXTS = [
    "",
    " ",
    "hello world",
    "  the   fox ",
    "<extra_id_0>",
    "fox <extra_id_0> dog <extra_id_1>",
    "fox<extra_id_0>dog",
    "<extra_id_99> <extra_id_100>",
    "<extra_id_4>\n<extra_id_2>",
    "▁<extra_id_1>",
    "</s> <pad> <unk>",
    "ﬁ Ⅷ ｆｕｌｌ",
    "tab\tline\nreturn\r",
    "nul\x00",
    "\u2028\u2029\x0b\x85",
    "e\u0301 é",
    "\ufeffbom",
    "日本語 العربية",
    "👩‍👩‍👧 🇩🇪",
    "\U0010ffff\ue000\ufdd0",
    "\u200b\u200d\u202e",
    "a" * 3000,
]


def test_sizes_and_special_ids(pair):
    ours, theirs = pair
    for name in ("vocab_size", "extra_ids", "pad_id", "eos_id", "unk_id", "bos_id"):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_where_sentinels_lie(model_file):
    size = SentencePieceVocabulary.from_path(model_file, 0).vocab_size
    assert SentencePieceVocabulary.from_path(model_file).encode("<extra_id_0> <extra_id_99>") == [size + 99, size]
    forwards = SentencePieceVocabulary.from_path(model_file, reverse_extra_ids=False)
    assert forwards.encode("<extra_id_0> <extra_id_99>") == [size, size + 99]
    assert forwards.decode([size]) == "<extra_id_0>"


@pytest.mark.parametrize("text", TEXTS)
def test_odd_texts(pair, text):
    ours, theirs = pair
    ids = ours.encode(text)
    assert ids == list(theirs.encode(text))
    assert ours.decode(ids) == theirs.decode(ids)


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("thefox <>_▁123")), max_size=60)
    | st.lists(st.sampled_from(["fox", "<extra_id_0>", "<extra_id_2>", " ", "▁", "ö", "</s>"])).map("".join)
)
@example(text="fox <extra_id_0>")
def test_any_text(pair, text):
    ours, theirs = pair
    ids = ours.encode(text)
    assert ids == list(theirs.encode(text))
    assert ours.decode(ids) == theirs.decode(ids)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 600) | st.sampled_from([0, 1, 2, 32127, 2**31 - 1])))
@example(ids=[])
@example(ids=[5, 1, 6, 1, 7])
@example(ids=[1])
@example(ids=[5, 0, 0])
@example(ids=[32127, 5])
def test_any_ids(pair, ids):
    ours, theirs = pair
    text = theirs.decode(ids)
    assert ours.decode(ids) == text
    assert ours.decode(np.array(ids, np.int32)) == text
    assert ours.decode(iter(ids)) == text


def test_dictionary_round_trip_and_from_seqio(pair):
    ours, theirs = pair
    again = vocabularies.from_dict(json.loads(json.dumps(ours.to_dict())))
    taken = vocabularies.from_seqio(theirs)
    assert again == ours and taken == ours and hash(taken) == hash(ours)
    assert taken.to_dict() == ours.to_dict()
    for other in (again, taken, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert (other.vocab_size, other.extra_ids) == (theirs.vocab_size, theirs.extra_ids)
        for text in TEXTS:
            assert other.encode(text) == list(theirs.encode(text))
        assert other.decode(range(3, 500)) == theirs.decode(list(range(3, 500)))


def test_from_seqio_keeps_normalizer_overrides(model_file):
    from sentencepiece import sentencepiece_model_pb2

    spec = sentencepiece_model_pb2.NormalizerSpec(add_dummy_prefix=False, remove_extra_whitespaces=False)
    theirs = seqio.SentencePieceVocabulary(str(model_file), 10, normalizer_spec_overrides=spec)
    ours = vocabularies.from_seqio(theirs)
    plain = SentencePieceVocabulary.from_path(model_file, 10)
    assert ours != plain and ours.encode("a  fox") != plain.encode("a  fox")
    for text in TEXTS:
        assert ours.encode(text) == list(theirs.encode(text))


def test_from_seqio_passes_ours_and_refuses_the_rest():
    ours = ByteVocabulary()
    assert vocabularies.from_seqio(ours) is ours
    with pytest.raises(UserError, match="PassThroughVocabulary.*SentencePieceVocabulary"):
        vocabularies.from_seqio(seqio.PassThroughVocabulary(10))


def test_different_vocabularies_are_unequal(model_file):
    a, b = SentencePieceVocabulary.from_path(model_file, 3), SentencePieceVocabulary.from_path(model_file, 4)
    assert a != b and a != SentencePieceVocabulary.from_path(model_file, 3, False) and a != ByteVocabulary(3)
    assert ByteVocabulary(3) != ByteVocabulary(4) and ByteVocabulary(3) != a


def test_mistakes_are_one_line_with_the_remedy(tmp_path_factory, model_file):
    tmp_path = tmp_path_factory.mktemp("mistakes")
    junk = tmp_path / "junk.model"
    junk.write_bytes(b"this is text")
    empty = tmp_path / "empty.model"
    empty.write_bytes(b"")
    cases = [
        (lambda: SentencePieceVocabulary.from_path(tmp_path / "none.model"), "none.model.*check"),
        (lambda: SentencePieceVocabulary.from_path(junk), "junk.model.*Not a sentencepiece model"),
        (lambda: SentencePieceVocabulary.from_path(empty), "empty.model.*Not a sentencepiece model"),
        (
            lambda: SentencePieceVocabulary(SentencePieceVocabulary.from_path(model_file, 5).model_proto, 9),
            "extra_ids=5",
        ),
        (lambda: vocabularies.from_dict({"kind": "morse"}), "morse"),
        (lambda: vocabularies.from_dict({"kind": "sentencepiece", "extra_ids": 1}), "damaged"),
        (lambda: vocabularies.from_dict({"kind": "sentencepiece", "extra_ids": 1, "model_proto": "?"}), "damaged"),
        (
            lambda: vocabularies.from_dict(
                {"kind": "sentencepiece", "extra_ids": 1, "model_proto": base64.b64encode(b"text").decode()}
            ),
            "Not a sentence",
        ),
    ]
    for make, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)


def test_warns_when_the_model_s_padding_is_not_zero(caplog):
    SentencePieceVocabulary(train(pad_id=-1, eos_id=1, unk_id=0))
    assert "pad id -1" in caplog.text


def test_gin_swaps_vocabularies(model_file):
    @gin.configurable(module="vocabulary_test")
    def taker(vocabulary=None):
        return vocabulary

    gin.parse_config(
        f"taker.vocabulary = @SentencePieceVocabulary()\nSentencePieceVocabulary.path = '{model_file}'\n"
        "SentencePieceVocabulary.extra_ids = 7"
    )
    assert taker() == SentencePieceVocabulary.from_path(model_file, 7)
    # The binding is for the configurable alone: a vocabulary from a checkpoint is not touched by it.
    d = SentencePieceVocabulary.from_path(model_file, 3).to_dict()
    assert vocabularies.from_dict(d).extra_ids == 3
    gin.parse_config("taker.vocabulary = @ByteVocabulary()")
    assert taker() == ByteVocabulary(125)
