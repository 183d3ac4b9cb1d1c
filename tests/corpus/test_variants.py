"""The variants' gin files: the rules that each stands for."""

import json

import pytest

import gin
from t5x_lite import configuration, gin_files
from t5x_lite.corpus.options import CorpusRules
from t5x_lite.errors import UserError
from t5x_lite.jobs import corpus as job

ENGLISH = dict(
    languages=("en",),
    max_page_characters=190_000,
    min_paragraphs=0,
    clean=True,
    min_words=5,
    min_sentences=3,
    max_word_characters=1000,
    deduplicate="lines",
    identifier="langdetect",
    min_probability=0.99,
    bad_words_share=1.0,
    validation_one_in=1000,
)
VARIANTS = {
    "en": ENGLISH,
    "en.noclean": ENGLISH | dict(clean=False, deduplicate=None, bad_words=None),
    "realnewslike": ENGLISH,
    "webtextlike": ENGLISH,
    "multilingual": ENGLISH
    | dict(
        clean=False,
        min_paragraphs=3,
        paragraph_characters=200,
        identifier="cld3",
        min_probability=0.95,
        keep_unknown=True,
        bad_words_share=0.999,
    ),
}


@pytest.fixture
def files(tmp_path):
    """Bindings of the files that variants ask for."""
    (tmp_path / "words").mkdir()
    for language in ("en", "de"):
        (tmp_path / "words" / language).write_text("darn\n")
    (tmp_path / "news.json").write_text(json.dumps({"example.com": True}))
    (tmp_path / "list.txt").write_text("http://example.com\n")
    yield {"BAD_WORDS": tmp_path / "words", "NEWS_DOMAINS": tmp_path / "news.json", "URL_LIST": tmp_path / "list.txt"}
    configuration.clear()


def parse(variant, bindings):
    configuration.clear()
    bindings = {"corpus.input": "crawl", "corpus.output_dir": "data", **bindings}
    configuration.parse(
        [f"corpus/{variant}.gin"],
        [f"{name}={str(value)!r}" for name, value in bindings.items()],
        root="t5x_lite.corpus",
    )
    assert gin.query_parameter("corpus.variant") == variant


@pytest.mark.parametrize("variant", VARIANTS)
def test_rules_of_a_variant(variant, files):
    asked = {"en.noclean": (), "realnewslike": ("BAD_WORDS", "NEWS_DOMAINS"), "webtextlike": ("BAD_WORDS", "URL_LIST")}
    bindings = {name: files[name] for name in asked.get(variant, ("BAD_WORDS",))}
    parse(variant, bindings)
    choice = CorpusRules()
    if variant == "multilingual":
        assert len(choice.languages) == 107 and {"en", "de", "zh-Latn", "iw"} <= set(choice.languages)
    expected = {
        name: value for name, value in VARIANTS[variant].items() if (variant, name) != ("multilingual", "languages")
    }
    assert {name: getattr(choice, name) for name in expected} == expected
    assert [choice.news_domains, choice.url_list] == [
        str(files[name]) if name in bindings else None for name in ("NEWS_DOMAINS", "URL_LIST")
    ]
    assert choice.bad_words == (None if variant == "en.noclean" else str(files["BAD_WORDS"]))
    for name in bindings:
        with pytest.raises(UserError, match=f"not set: .*{name}"):
            parse(variant, {other: value for other, value in bindings.items() if other != name})


def test_every_variant_is_here():
    names = [name for name in gin_files.shipped_names() if name.startswith("corpus/")]
    assert sorted(names) == sorted(f"corpus/{variant}.gin" for variant in VARIANTS)


def test_the_report_names_the_rules_and_no_folder(files):
    described = job.describe(CorpusRules(bad_words=str(files["BAD_WORDS"])))
    assert described["bad_words"] == "words" and described["min_words"] == "5" and described["deduplicate"] == "lines"
