"""Cached tasks: what seqio reads of them, what a run reads, and that it is what they would give without a cache."""

import json

import numpy as np
import pytest
import seqio

from t5x_lite import data, seqio_cache, seqio_names
from t5x_lite.errors import UserError
from t5x_lite.jobs.cache import cache
from t5x_lite.text_files import TextFiles
from t5x_lite.vocabularies import ByteVocabulary

TEXTS = [f"{i}. Once upon a time there were {i} of them, and no one knew of it." for i in range(50)]


@pytest.fixture(scope="module")
def name(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "tales.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS))
    return f"text:{path}"


OPTIONS = TextFiles(held_out=0.2, index_folder=None)


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    run(name, folder)
    return folder


def run(name, folder, **options):
    options = {"shards": 3, "processes": 1, "vocabulary": ByteVocabulary(), "text_files": OPTIONS, **options}
    assert cache(name, str(folder), **options) == 0


@pytest.fixture(autouse=True)
def no_caches_of_other_tests():
    before = list(seqio.get_global_cache_dirs())
    yield
    seqio.set_global_cache_dirs(before)


def source(name, **options):
    return data.SeqioSource(
        name,
        {"inputs": 64, "targets": 32},
        num_streams=2,
        block_records=8,
        text_files=OPTIONS,
        vocabulary=ByteVocabulary(),
        **options,
    )


def test_seqio_reads_it(name, folder):
    task = seqio_names.find(source(name))
    plain = list(task.get_dataset({"inputs": 64, "targets": 32}, "train", shuffle=False, seed=1).as_numpy_iterator())
    seqio.set_global_cache_dirs([str(folder)])
    task = seqio_names.find(source(name))
    assert task.cache_dir == str(seqio_cache.task_folder(folder, task))
    cached = list(
        task.get_dataset(
            {"inputs": 64, "targets": 32}, "train", use_cached=True, shuffle=False, seed=1
        ).as_numpy_iterator()
    )
    assert len(cached) == len(plain) and {*cached[0]} == {*plain[0]}
    stats = task.get_cached_stats("train")
    with open(name.removeprefix("text:")) as f:
        assert 30 < stats["examples"] < len(f.readlines())
    assert stats["targets_tokens"] > 50 * stats["examples"] and stats["targets_max_tokens"] < 80
    assert stats["examples"] + task.get_cached_stats("validation")["examples"] == len(TEXTS)


def test_tokens_are_there_at_any_place_in_the_order_of_the_source(name, folder):
    task = seqio_names.find(source(name))
    records = seqio_cache.open_cached(str(folder), task, "train")
    originals = task.source.open_split("train")
    assert len(records) == len(originals)
    texts = [
        task.output_features["targets"].vocabulary.decode(r["targets"].tolist())
        for r in records.__getitems__([5, 0, 5, len(records) - 1])
    ]
    assert texts == [originals[i]["text"].decode() for i in (5, 0, 5, len(originals) - 1)]
    assert records[3]["targets"].dtype == np.int32


def test_a_run_gets_the_same_rows_as_without_a_cache(name, folder):
    plain, cached = source(name, seed=3).open(), source(name, seed=3, cache_dir=str(folder)).open()
    for stream, block in ((0, 0), (1, 2), (1, 5)):
        rows, others = list(plain.block(stream, block)), list(cached.block(stream, block))
        assert len(rows) == len(others) > 0
        for row, other in zip(rows, others, strict=True):
            assert row.keys() == other.keys() and all(np.array_equal(row[key], other[key]) for key in row)


def test_the_data_need_not_be_there(name, tmp_path):
    path = tmp_path / "gone.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS))
    run(f"text:{path}", tmp_path / "cache")
    path.unlink()
    assert list(source(f"text:{path}", cache_dir=str(tmp_path / "cache")).open().block(0, 0))


def test_a_cache_that_is_there_is_left_as_it_is(name, folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    run(name, folder)
    assert "is there already" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_what_cannot_be_used_is_said(name, folder, tmp_path):
    with pytest.raises(UserError, match="has no tales#.*: run t5x-lite cache --task=tales"):
        source(name, cache_dir=str(tmp_path)).open()
    with pytest.raises(UserError, match="has no split 'test'"):
        run(name, tmp_path, splits=("train", "test"))
    run(name, tmp_path / "one", splits="train")
    task = seqio_names.find(source(name))
    with pytest.raises(UserError, match="has no split 'validation': cache the task once more"):
        seqio_cache.open_cached(str(tmp_path / "one"), task, "validation")
    with pytest.raises(UserError, match="cache.shards must be a whole number of at least 1, not 0"):
        run(name, tmp_path, shards=0)
    uncacheable = task.replace(
        preprocessors=[p for p in task.preprocessors if not isinstance(p, seqio.CacheDatasetPlaceholder)]
    )
    with pytest.raises(UserError, match="cannot be cached: its preprocessors have no CacheDatasetPlaceholder"):
        seqio_cache.number_of_shards(uncacheable, "train", 2)


def test_nothing_is_left_behind_by_a_run_that_fails(name, tmp_path, monkeypatch):
    monkeypatch.setattr(seqio_cache, "finish_split", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(name, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.slow  # two processes that load TensorFlow
def test_processes_write_the_same_files(name, folder, tmp_path):
    run(name, tmp_path, processes=2)
    one, two = (
        {str(p.relative_to(f)): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in (folder, tmp_path)
    )
    assert one == two
    (info,) = [json.loads(content) for file, content in one.items() if file.endswith("info.train.json")]
    assert info["num_shards"] == 3 and info["features"]["targets"] == {"dtype": "int32", "shape": [None]}
