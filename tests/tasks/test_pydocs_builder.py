"""The built corpus: complete or absent, the same every time, near duplicates on one side only."""

import json
import os
import random
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.tasks.pydocs import builder, corpus, near_duplicates

VERSION = str(builder.Pydocs.VERSION)


def texts_by_split(directory):
    return {s: [r["text"].decode() for r in builder.open_split(s, directory)] for s in builder.SPLITS}


def test_every_distinct_document_is_in_one_split(corpus_dir, tree_sources):
    found = [t for texts in texts_by_split(corpus_dir).values() for t in texts]
    expected = [d.text for d in corpus.read_documents(tree_sources)]
    assert len(found) == len(set(found)) and sorted(found) == sorted(expected)


def test_records_have_all_features_and_random_access(corpus_dir):
    records = builder.open_split("train", corpus_dir)
    assert len(records) > 80
    assert set(records[3]) == {"text", "summary", "body", "library", "name"}
    assert records[3]["library"] == b"invented" and records[3]["name"].startswith(b"package.module")
    assert records.__getitems__([3, 5]) == [records[3], records[5]]


def contents(directory):
    """All that a build makes, but for the order of features within a stored record: protobuf's maps have none."""
    folder = builder.ensure_built(directory)
    splits = {s: list(builder.open_split(s, directory)) for s in builder.SPLITS}
    files = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix == ".model" or p.suffix == ".json"}
    return splits, files


def test_two_builds_are_equal(corpus_dir, tree_sources, tmp_path):
    builder.ensure_built(tmp_path, sources=list(reversed(tree_sources)))
    assert contents(tmp_path) == contents(corpus_dir)


def test_near_duplicates_share_a_split(corpus_dir):
    side = {t: s for s, texts in texts_by_split(corpus_dir).items() for t in texts}
    pairs = [(t, t.rstrip() + " Indeed.") for t in side if t.rstrip() + " Indeed." in side]
    assert len(pairs) >= 15
    assert all(side[a] == side[b] for a, b in pairs)
    report = json.loads((builder.ensure_built(corpus_dir) / builder.REPORT_FILE_NAME).read_text())
    assert set(report) == {"validation in train", "test in train", "test in validation"}
    assert all(found["similarity >= 0.5"] == 0 for found in report.values())


def variants(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    texts = []
    for n in range(count):
        words = [f"w{rng.choice('abcdefghij')}{rng.choice('klmnopqrst')}{chr(97 + n)}" for _ in range(60)]
        texts.append(" ".join(words))
        for _ in range(rng.randrange(3)):
            changed = list(words)
            changed[rng.randrange(60)] = "changed"
            texts.append(" ".join(changed))
    return texts


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_clusters_never_straddle_and_leaks_agree(seed):
    texts = variants(seed, 20)
    documents = [corpus.Document("lib", str(i), t) for i, t in enumerate(texts)]
    splits = {s: [d.text for d in ds] for s, ds in builder.split_documents(documents).items()}
    assert sum(map(len, splits.values())) == len(texts)
    assert all(found["similarity >= 0.5"] == 0 for found in near_duplicates.leaks(splits).values())


def test_leak_report_finds_planted_leaks():
    texts = variants(1, 30)
    first, *rest = texts
    one_word_more = first + " more"
    validation = [one_word_more, "entirely other words here"]
    report = near_duplicates.leaks({"train": [*rest, first], "validation": validation})
    found = report["validation in train"]
    assert (found["documents"], found["similarity >= 0.9"], found["contained >= 0.8"]) == (2, 1, 1)
    assert found["highest similarity"] == pytest.approx(56 / 57, abs=1e-4)


def test_clusters_by_hand():
    base = " ".join(f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(100))
    other = " ".join(f"thing{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(100))
    assert near_duplicates.clusters([base, other, base + " end", other + " end", "short"]) == [0, 1, 0, 1, 4]


def test_split_sizes_and_stability():
    rng = random.Random(3)
    texts = [" ".join("".join(rng.choices("abcdefgh", k=6)) for _ in range(8)) for _ in range(3000)]
    documents = [corpus.Document("lib", str(i), text) for i, text in enumerate(texts)]
    splits = builder.split_documents(documents)
    shares = [len(splits[s]) / 3000 for s in builder.SPLITS]
    assert 0.87 < shares[0] < 0.93 and all(0.035 < s < 0.065 for s in shares[1:])
    fewer = builder.split_documents(documents[::2])
    assert all(set(fewer[s]) <= set(splits[s]) for s in builder.SPLITS)


def test_a_failed_build_leaves_nothing_and_the_next_one_clears_up(tree_sources, tmp_path):
    def interrupt(stage, total):
        if stage == "training the vocabulary":
            raise KeyboardInterrupt
        return lambda done: None

    with pytest.raises(KeyboardInterrupt):
        builder.ensure_built(tmp_path, sources=tree_sources, progress=interrupt)
    parent = tmp_path / "pydocs"
    assert not (parent / VERSION).exists()
    killed = parent / f"incomplete.ABC_{VERSION}"  # what a killed process leaves
    killed.mkdir(parents=True)
    folder = builder.ensure_built(tmp_path, sources=tree_sources)
    assert [p.name for p in parent.iterdir()] == [VERSION] and (folder / "vocabulary.model").exists()


_OTHER_PROCESS = """
import pathlib, sys, time
from t5x_lite.tasks.pydocs import builder, corpus
directory, tree = map(pathlib.Path, sys.argv[1:])
def progress(stage, total):
    if stage == "training the vocabulary":
        (directory / "inside").touch()
        time.sleep(2)  # time enough for the other process to build as well, if nothing stopped it
    return lambda done: None
builder.ensure_built(directory, sources=corpus.tree_sources(tree, "invented"), progress=progress)
"""


@pytest.mark.slow
def test_two_processes_at_once_build_once(corpus_dir, tree, tree_sources, tmp_path, capsys):
    command = [sys.executable, "-c", _OTHER_PROCESS, str(tmp_path), str(tree)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as other:
        while not (tmp_path / "inside").exists() and other.poll() is None:
            time.sleep(0.05)
        stages = []
        folder = builder.ensure_built(
            tmp_path, sources=tree_sources, progress=lambda s, n: stages.append(s) or (lambda done: None)
        )
        _, errors = other.communicate()
    assert other.returncode == 0, errors[-2000:]
    assert stages == [] and (folder / "vocabulary.model").exists()
    assert contents(tmp_path) == contents(corpus_dir)  # also with another process' order of sets
    assert "Building" not in capsys.readouterr().err


def test_what_is_there_is_not_built_again(corpus_dir, tree_sources, capsys):
    before = os.stat(corpus_dir / "pydocs" / VERSION).st_mtime_ns
    builder.ensure_built(corpus_dir, sources=tree_sources[:1])
    assert os.stat(corpus_dir / "pydocs" / VERSION).st_mtime_ns == before
    assert capsys.readouterr().err == ""


def test_first_use_says_one_line(tree_sources, tmp_path, capsys):
    builder.ensure_built(tmp_path, sources=tree_sources)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if "pydocs" in line]
    assert len(lines) == 1 and str(tmp_path) in lines[0]
