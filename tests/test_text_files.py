"""Which files are meant, how they are read, and which lines are for validation."""

import dataclasses

import pytest

from t5x_lite import text_files
from t5x_lite.errors import UserError
from t5x_lite.text_files import TextFiles


@pytest.fixture
def folder(tmp_path):
    for name in ("train-0.tsv", "train-1.tsv"):
        (tmp_path / name).write_text("".join(f"{name} question {i}\tanswer {i}\n" for i in range(100)))
    (tmp_path / "dev.jsonl").write_text('{"input": "i", "target": "t"}\n')
    (tmp_path / "books[1].txt").write_text("once\nupon\n")
    (tmp_path / "packed.tsv.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "folder.tsv").mkdir()
    return tmp_path


def options(train, **others):
    return TextFiles(train=train, index_folder=None, **others)


def all_of(files, split):
    records = files.open_split(split)
    return records.__getitems__(range(len(records)))


def test_a_glob_is_read_in_order_and_split_by_its_lines(folder):
    files = options(f"tsv:{folder}/train-*.tsv", held_out=0.2)
    train, validation = (all_of(files, split) for split in files.splits)
    inputs = [r["inputs"].decode() for r in train]
    assert inputs == sorted(inputs, key=lambda t: (t[:11], int(t.split()[-1]))) and inputs[-1].startswith("train-1")
    assert len(train) + len(validation) == 200 and 20 < len(validation) < 60
    assert not {r["inputs"] for r in train} & {r["inputs"] for r in validation}


def test_files_of_their_own_for_validation_and_test(folder):
    files = options(f"tsv:{folder}/train-0.tsv", validation=f"{folder}/train-1.tsv", test=f"jsonl:{folder}/dev.jsonl")
    assert files.splits == ("train", "validation", "test")
    assert [len(all_of(files, split)) for split in files.splits] == [100, 100, 1]
    assert all_of(files, "test") == [{"inputs": b"i", "targets": b"t"}]


def test_without_validation_there_is_none(folder):
    files = options(f"tsv:{folder}/train-0.tsv", held_out=0)
    assert files.splits == ("train",) and len(all_of(files, "train")) == 100


def test_text_is_not_a_pattern_only(folder):
    files = options(f"text:{folder}/books[1].txt", held_out=0)
    assert not files.supervised and [r["text"] for r in all_of(files, "train")] == [b"once", b"upon"]
    assert options(f"tsv:{folder}/train-0.tsv").supervised
    assert not options(f"tsv:{folder}/train-0.tsv", columns=[1]).supervised


def test_what_was_skipped_is_said(folder, capsys):
    path = folder / "train-0.tsv"
    path.write_text(path.read_text() + "one\n")
    files = options(f"tsv:{path}", held_out=0)
    files.open_split("train")
    assert capsys.readouterr().out == (
        f"note: {path}: 1 of 101 line(s) skipped (1 wrong number of columns); the first "
        f"is {path}:101: 1 column(s), not 2 as in line 1\n"
    )


def test_what_a_run_depends_on(folder):
    """How a run is measured may change while it goes on, what it is trained on may not."""
    files = options(f"tsv:{folder}/train-0.tsv")
    for change in ({"metrics": ("accuracy",)}, {"index_folder": "elsewhere"}, {"max_bad_lines": 3}):
        assert dataclasses.replace(files, **change).to_dict() == files.to_dict()
    for change in ({"template": "{}"}, {"held_out": 0.3}, {"validation": "tsv:a.tsv"}, {"columns": (1, 0)}):
        assert dataclasses.replace(files, **change).to_dict() != files.to_dict()


@pytest.mark.parametrize(
    "name, short",
    [
        ("tsv:/data/train.tsv", "train"),
        ("jsonl:/data/part-*.jsonl", "part"),
        ("text:gs://b/a b.c.txt", "a_b"),
        ("text:/data/*", "files"),
    ],
)
def test_short_names(name, short):
    assert text_files.is_file_name(name) and text_files.short_name(name) == short


def test_names_that_are_no_files():
    assert not any(map(text_files.is_file_name, ("tsv", "pydocs_library", "csv:/data/a.csv", "a:b")))


@pytest.mark.parametrize(
    "train, others, message",
    [
        ("tsv:{}/no-*.tsv", {}, "train data '.*no-.*': no such file"),
        ("tsv:{}/folder.tsv", {}, "no such file"),
        ("tsv:{}/packed.tsv.gz", {}, "is compressed, and cannot be read at any line; unpack it"),
        ("{}/train-0.tsv", {}, "does not say what it is; write tsv:"),
        (None, {}, "TextFiles.train is not set"),
        ("tsv:{}/train-0.tsv", {"held_out": 1e-9}, "none of 100 line.s. falls to validation, with TextFiles.held_out"),
        ("tsv:{}/train-0.tsv", {"validation": "{}/none.tsv"}, "validation data '.*none.tsv': no such file"),
    ],
)
def test_files_that_cannot_be_used(folder, train, others, message):
    others = {k: v.format(folder) if isinstance(v, str) else v for k, v in others.items()}
    files = options(train and train.format(folder), **others)
    with pytest.raises(UserError, match=message):
        [files.open_split(split) for split in files.splits]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"columns": "question"}, r"TextFiles.columns = 'question': write \('question',\) for one"),
        ({"metrics": "accuracy"}, r"write \('accuracy',\)"),
        ({"held_out": 1}, "is no share of lines"),
        ({"max_bad_lines": -1}, "at least 0, not -1"),
        ({"max_line_bytes": 1.5}, "at least 1, not 1.5"),
    ],
)
def test_options_that_cannot_be(wrong, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TextFiles(), **wrong)
