"""Crawl files to data sets: what is kept, what is counted, and that it is the same however the work is divided."""

import filecmp
import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("apache_beam", reason="needs the extra `corpus`")

import tensorflow_datasets as tfds
from crawls import PAGES, write_crawl

from t5x_lite.corpus.options import CorpusRules
from t5x_lite.errors import UserError
from t5x_lite.jobs.corpus import corpus

EN = {"validation_one_in": 3}


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crawl")
    write_crawl(folder)
    return folder


def build(crawl, target, variant="en", rules=None, **options):
    """Builds a corpus and returns its folder."""
    choice = CorpusRules(**{**EN, "bad_words": str(crawl / "words"), **(rules or {})})
    assert corpus(f"{crawl}/*.gz", str(target), variant, choice, **{"workers": 1, **options}) == 0
    return target / "c4" / variant / "3.1.0"


@pytest.fixture(scope="module")
def english(crawl, tmp_path_factory):
    return build(crawl, tmp_path_factory.mktemp("data"), shards=2)


def records(folder):
    builder = tfds.builder_from_directory(folder)
    return {split: list(builder.as_data_source(split=split)) for split in builder.info.splits}


def texts(folder):
    """{address: text} of the pages that are no documentation."""
    return {
        record["url"].decode(): record["text"].decode()
        for split in records(folder).values()
        for record in split
        if b"docs.example.org" not in record["url"]
    }


def counts(folder):
    """{rule: (pages, lines, bytes)} of the report."""
    page, number = (folder / "report.html").read_text(), r"<td class=n>([\d,]+)</td>"
    found = re.findall(rf"<a href='#\w+'>(\w+)</a>.*?{number}{number}{number}", page)
    found += re.findall(rf"<tr class=whole><td>(\w+)</td><td></td><td></td>{number}{number}{number}", page)
    return {name: tuple(int(number.replace(",", "")) for number in numbers) for name, *numbers in found}


def test_each_page_goes_by_its_rule(english):
    assert set(texts(english)) == {url for url, _, rule in PAGES if rule is None}
    found = counts(english)
    for _, _, rule in PAGES:
        if rule is not None:
            assert found[rule][0] >= 1, rule
    assert found["not_utf8"][0] == 1 and found["empty"][0] == 1


def test_kept_pages_have_lost_their_lines(english):
    kept = texts(english)
    assert len(kept["https://abel.example.com/"].split("\n")) == 5  # its own four, and that of the citation
    assert kept["https://abel.example.com/"].endswith("See  for more of it.")
    shared = "Share this page with all of your friends."
    assert sum(shared in text for text in kept.values()) == 1


def test_documentation_is_kept_as_prose(english):
    docs = [r for split in records(english).values() for r in split if b"docs.example.org" in r["url"]]
    assert docs
    for record in docs:
        lines = record["text"].decode().split("\n")
        assert all(line.endswith((".", "?", "!", '"')) and len(line.split()) >= 5 for line in lines)
        assert record["timestamp"] == b"2019-04-18T10:00:00Z" and record["content-type"].startswith(b"text/html")


def test_counts_add_up(english):
    found = counts(english)
    read, kept = found.pop("read"), found.pop("kept")
    unread = ("not_utf8", "empty")  # these are no part of what was read
    removed = [numbers for rule, numbers in found.items() if rule not in unread]
    assert read[0] == kept[0] + sum(pages for pages, _, _ in removed)
    assert read[2] == kept[2] + sum(size for _, _, size in removed)
    whole = records(english)
    assert kept[0] == sum(map(len, whole.values()))
    assert kept[2] == sum(len(record["text"]) + 1 for split in whole.values() for record in split)


def test_the_report_has_samples_and_the_rules(english):
    page = (english / "report.html").read_text()
    assert "Nobody says darn around here these days." in page and "byte 2 of https://moor.example.com/" in page
    assert "<td>words</td>" in page and str(english.parents[3]) not in page  # the list's name, not where it lies


def test_splits_by_address_and_pages_by_key(english):
    from t5x_lite.corpus import rules

    for split, found in records(english).items():
        assert all(rules.is_validation(r["url"].decode(), 3) == (split == "validation") for r in found)
    names = sorted(path.name for path in english.iterdir())
    assert names == [
        "c4-train.array_record-00000-of-00002",
        "c4-train.array_record-00001-of-00002",
        "c4-validation.array_record-00000-of-00002",
        "c4-validation.array_record-00001-of-00002",
        "dataset_info.json",
        "features.json",
        "report.html",
    ]


def same_files(one, other):
    names = sorted(os.listdir(one))
    assert names == sorted(os.listdir(other))
    different = filecmp.cmpfiles(one, other, names, shallow=False)[1:]
    assert different == ([], []), different


def test_grouping_on_disk_or_by_the_runner_makes_the_same_files(crawl, english, tmp_path, monkeypatch):
    same_files(english, build(crawl, tmp_path / "runner", shards=2, group_on_disk=False))
    from t5x_lite.corpus import shuffle

    monkeypatch.setattr(shuffle, "RUN_BYTES", 3000)  # many runs
    monkeypatch.setattr(shuffle, "PARTITIONS", 3)
    same_files(english, build(crawl, tmp_path / "disk", shards=2))


@pytest.mark.slow  # two processes, each with the libraries to load
def test_more_workers_and_more_files_make_the_same_corpus(crawl, english, tmp_path):
    two = build(crawl, tmp_path / "two", shards=2, workers=2)
    same_files(english, two)
    other = tmp_path / "other"
    other.mkdir()
    write_crawl(other, files=2)
    again = build(other, tmp_path / "three", shards=2)
    assert {split: [dict(r) for r in found] for split, found in records(again).items()} == {
        split: [dict(r) for r in found] for split, found in records(english).items()
    }


@pytest.mark.slow  # a job service, with Beam to load once more
def test_another_runner_makes_the_same_corpus(crawl, english, tmp_path):
    """By the protocol through which Flink and Spark are reached."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    service = subprocess.Popen(
        [sys.executable, "-P", "-m", "apache_beam.runners.portability.local_job_service_main", f"--port={port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            with socket.socket() as asking:
                if asking.connect_ex(("localhost", port)) == 0:
                    break
            time.sleep(0.5)
        flags = f"--runner=PortableRunner --job_endpoint=localhost:{port} --environment_type=LOOPBACK"
        same_files(english, build(crawl, tmp_path, shards=2, pipeline_options=flags))
    finally:
        service.terminate()
        service.wait()


def test_spans_rather_than_lines(crawl, tmp_path):
    folder = build(crawl, tmp_path, rules={"deduplicate": "spans"})
    kept = texts(folder)
    # One shared line is no span; a page whose every span stands elsewhere is none.
    assert sum("Share this page" in text for text in kept.values()) == 2
    assert "https://ross.example.com/" not in kept and "Abel is a town" in kept["https://abel.example.com/"]
    assert "duplicate_span" in counts(folder)


def test_without_cleaning(crawl, tmp_path):
    folder = build(crawl, tmp_path, "en.noclean", {"clean": False, "deduplicate": None, "bad_words": None})
    kept = texts(folder)
    assert set(kept) == {url for url, _, rule in PAGES if rule not in ("long_page", "same_url", "other_language")}
    assert kept["https://dover.example.com/"] == next(text for url, text, _ in PAGES if "dover" in url)


def test_news_and_listed_addresses(crawl, tmp_path):
    folder = build(crawl, tmp_path, "realnewslike", {"news_domains": str(crawl / "domains.json")})
    assert set(texts(folder)) == {"https://abel.example.com/", "https://news.example.com/a/"}
    folder = build(crawl, tmp_path, "webtextlike", {"url_list": str(crawl / "addresses.txt")})
    assert set(texts(folder)) == {"https://brook.example.com/", "https://news.example.com/a/"}
    assert counts(folder)["not_listed"][0] >= 10


def test_languages_are_splits(crawl, tmp_path):
    rules = {
        "languages": ("en", "de"),
        "identifier": "cld3",
        "clean": False,
        "min_paragraphs": 3,
        "paragraph_characters": 30,
        "keep_unknown": True,
        "min_probability": 0.95,
        "bad_words": None,
    }
    found = records(build(crawl, tmp_path, "multilingual", rules))
    names = {name.removesuffix("-validation") for name in found}
    assert {"en", "de"} <= names <= {"en", "de", "und"}
    urls = [r["url"] for name in ("de", "de-validation") for r in found.get(name, [])]
    assert urls == [b"https://kent.example.com/"]


def test_a_folder_that_exists_and_a_variant_that_is_not_named(crawl, english, tmp_path):
    with pytest.raises(UserError, match="exists: remove it, or set corpus.version"):
        build(crawl, english.parents[2])
    with pytest.raises(UserError, match="corpus needs a variant: --variant=en"):
        corpus(f"{crawl}/*.gz", str(tmp_path))
    with pytest.raises(UserError, match="--input: there is no .*nothing"):
        corpus(f"{crawl}/nothing*", str(tmp_path), "en")


def test_a_crawl_of_which_nothing_is_kept(crawl, tmp_path, capsys):
    with pytest.raises(UserError, match="no page was kept"):
        build(crawl, tmp_path, rules={"min_sentences": 10_000})
    assert "few_sentences" in capsys.readouterr().out and not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_nothing_is_left_behind_by_a_run_that_fails(crawl, tmp_path, monkeypatch):
    from t5x_lite.corpus import writing

    monkeypatch.setattr(writing, "write_metadata", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(crawl, tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.slow  # four processes
def test_the_command_line_names_the_variant_and_what_is_missing(crawl, tmp_path):
    command = [sys.executable, "-P", "-m", "t5x_lite", "corpus", f"--input={crawl}/*.gz", f"--output_dir={tmp_path}"]

    def run(*flags):
        done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=300)
        return done.returncode, done.stderr

    code, said = run("--variant=realnewslike", f"--gin.BAD_WORDS={crawl}/words")
    assert code == 2 and "not set: NEWS_DOMAINS" in said
    code, said = run("--variant=en", "--gin.BAD_WORDS=/no/such", "--dry_run")
    assert code == 2 and "BAD_WORDS = '/no/such': no such file; give a list of words" in said
    code, said = run("--variant=enn", "--gin.BAD_WORDS=None")
    assert code == 2 and "corpus/enn.gin" in said and "corpus/en.gin" in said
    code, said = run("--variant=en", "--gin.BAD_WORDS=None", "--dry_run")
    assert code == 0 and "5 file(s)" in said and not list(pathlib.Path(tmp_path).iterdir())
