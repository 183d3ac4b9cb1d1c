"""Sentences, languages, domains and lists of words, as the rules get them."""

import importlib.util
import json
import re

import pytest

from t5x_lite.corpus import cld3, libraries
from t5x_lite.corpus.options import CorpusRules
from t5x_lite.errors import UserError

ENGLISH = (
    "The house stands at the end of the road, and nobody has lived in it for as long as anyone can remember. "
    "Some say that a sailor built it for his wife, who never came to see the place."
)
GERMAN = (
    "Das Haus steht am Ende der Straße, und niemand hat darin gewohnt, solange sich jemand erinnern kann. "
    "Manche sagen, ein Seemann habe es für seine Frau gebaut, die den Ort nie gesehen hat."
)


def need(module):
    if importlib.util.find_spec(module) is None:
        pytest.skip("needs the extra `corpus`")


@pytest.mark.parametrize(
    "text, sentences",
    [
        ("Dr. Smith met Mrs. Jones at 5 p.m. on Monday. They had tea.", 2),
        ("One. Two! Three? Four.", 4),
        ("It costs 3.50 dollars, not much.", 1),
        ('He said "Go." She went.', 2),
        ("no mark at all", 1),
        ("", 0),
    ],
)
def test_sentences_are_counted_as_punkt_splits_them(text, sentences):
    pytest.importorskip("punkt", reason="needs the extra `corpus`")
    punkt = libraries.Sentences()
    assert punkt.count(text, 99) == sentences == len(punkt.split(text))
    assert punkt.count(text, 2) == min(2, sentences)


def test_sentences_run_across_lines():
    pytest.importorskip("punkt", reason="needs the extra `corpus`")
    # Of a whole page, as after deduplication: a newline ends no sentence, so that an abbreviation goes on after it.
    assert libraries.Sentences().count("Yesterday we met Dr.\nSmith on the way.", 9) == 1


def test_a_punkt_model_of_ones_own(tmp_path):
    for name, text in (
        ("abbrev_types.txt", "xyz\n"),
        ("collocations.tab", ""),
        ("ortho_context.tab", ""),
        ("sent_starters.txt", ""),
    ):
        (tmp_path / name).write_text(text)
    punkt = libraries.Sentences(str(tmp_path))
    assert punkt.split("An xyz. Here. End.") == ["An xyz. Here.", "End."]
    (tmp_path / "collocations.tab").unlink()
    with pytest.raises(UserError, match="has no collocations.tab: give the folder punkt_tab/english"):
        CorpusRules(punkt_data=str(tmp_path))


@pytest.mark.parametrize("identifier, module", [("langdetect", "langdetect"), ("cld3", "gcld3")])
def test_languages(identifier, module):
    need(module)
    languages = libraries.Languages(identifier)
    for text, code in ((ENGLISH, "en"), (GERMAN, "de")):
        found = [languages.identify(text) for _ in range(3)]
        assert found[0][0] == code and found[0][1] > 0.95
        assert len(set(found)) == 1
    assert languages.identify("12 34 -- !") == ("und", 0.0)


def test_cld3_lives_beside_tensorflow():
    """In one process it would end it."""
    need("gcld3")
    import tensorflow as tf

    assert libraries.Languages("cld3").identify(GERMAN)[0] == "de" and tf.constant(1).numpy() == 1


def test_a_dead_process_of_cld3_is_told():
    need("gcld3")
    one = cld3.Cld3()
    one._process.kill()
    with pytest.raises(RuntimeError, match="the process of CLD3 has ended with -9"):
        one.find(GERMAN)


def test_langdetect_is_seeded_and_leaves_its_users_alone():
    langdetect = pytest.importorskip("langdetect", reason="needs the extra `corpus`")
    mixed = ENGLISH[:60] + GERMAN[:60]
    assert len({libraries.Languages("langdetect").identify(mixed) for _ in range(5)}) == 1
    assert langdetect.DetectorFactory.seed is None


def test_registered_domains():
    pytest.importorskip("tldextract", reason="needs the extra `corpus`")
    assert libraries.split_domain("world.paper.co.uk/a/b?c=d") == ("world", "paper.co.uk")
    assert libraries.split_domain("example.com") == ("", "example.com")


def test_lists_of_words(tmp_path):
    (tmp_path / "en").write_text("darn\n\ntwo words\n")
    (tmp_path / "fr-CA-u-sd-caqc").write_text("zut\n")
    (tmp_path / "fr").write_text("flûte\n")
    found = libraries.read_bad_words(str(tmp_path / "en"), ("en",))
    assert list(found) == ["en"] and found["en"].search("darn")
    found = libraries.read_bad_words(str(tmp_path), ("fr", "de"))
    assert list(found) == ["fr"] and found["fr"].search("zut") and found["fr"].search("flûte")
    with pytest.raises(UserError, match="is one file, and there are 2 languages"):
        libraries.read_bad_words(str(tmp_path / "en"), ("en", "de"))
    with pytest.raises(UserError, match="has no file named by one of the languages, such as de"):
        libraries.read_bad_words(str(tmp_path), ("de",))


@pytest.mark.parametrize(
    "binding, field, content, message",
    [
        ("BAD_WORDS", "bad_words", None, "no such file; give a list of words, one a line"),
        ("NEWS_DOMAINS", "news_domains", None, "no such file; give Grover's domain_to_allowed_subdomains.json"),
        ("NEWS_DOMAINS", "news_domains", "{", "is no JSON"),
        ("NEWS_DOMAINS", "news_domains", json.dumps(["a.com"]), "must map each domain to true or to a list"),
        ("URL_LIST", "url_list", None, "give the lists of OpenWebText's addresses"),
    ],
)
def test_files_that_are_not_there_or_something_else(tmp_path, binding, field, content, message):
    path = tmp_path / "file"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=f"{binding}.*{re.escape(message)}"):
        CorpusRules(**{field: str(path)})


@pytest.mark.parametrize(
    "values, message",
    [
        ({"min_words": -1}, "CorpusRules.min_words must be a whole number of at least 0, not -1"),
        ({"min_sentences": 2.0}, "CorpusRules.min_sentences must be a whole number"),
        ({"min_probability": 99}, "CorpusRules.min_probability must be between 0 and 1, not 99"),
        ({"deduplicate": "line"}, "CorpusRules.deduplicate = 'line' (did you mean lines?)"),
        ({"identifier": "cld2"}, "CorpusRules.identifier = 'cld2' (did you mean cld3?); it is one of langdetect, cld3"),
        ({"languages": ()}, "CorpusRules.languages is empty"),
        ({"validation_one_in": 1}, "CorpusRules.validation_one_in must be a whole number of at least 2"),
    ],
)
def test_values_that_cannot_be(values, message):
    with pytest.raises(UserError, match=re.escape(message)):
        CorpusRules(**values)


def test_files_by_paths_globs_and_commas(tmp_path):
    for name in ("b.wet", "a.wet", "c.warc", "d[1].wet"):
        (tmp_path / name).touch()
    names = [f.rpartition("/")[2] for f in libraries.input_files("--input", f"{tmp_path}/?.wet,{tmp_path}/c.warc", "x")]
    assert names == ["a.wet", "b.wet", "c.warc"]
    assert libraries.input_files("--input", f"{tmp_path}/d[1].wet", "x") == [f"{tmp_path}/d[1].wet"]
    with pytest.raises(UserError, match="--input: there is no .*nothing.*; give crawl files"):
        libraries.input_files("--input", f"{tmp_path}/a.wet,{tmp_path}/nothing*", "crawl files")
