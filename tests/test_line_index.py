"""Lines of files by number: all of them once, whatever stands between them, in little memory."""

import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.errors import UserError
from t5x_lite.line_format import LineFormat
from t5x_lite.line_index import Records, is_held_out, open_index

PAIRS = LineFormat("tsv", (0, 1))


def texts(path, **options):
    records = Records(open_index([str(path)], LineFormat("text", ()), **options))
    return [records[i]["text"].decode() for i in range(len(records))]


@settings(max_examples=40, deadline=None)
@given(
    lines=st.lists(st.text(alphabet='ab \t"é\u2028', max_size=5), min_size=1),
    end=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
    mark=st.booleans(),
)
def test_every_line_is_found(tmp_path_factory, lines, end, last, mark):
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    text = end.join(["begin", *lines]) + end * last
    path.write_bytes(b"\xef\xbb\xbf" * mark + text.encode())
    assert texts(path) == ["begin", *(line for line in lines if line.strip())]


def test_records_of_several_files_in_the_order_asked_for(tmp_path):
    for name, header, rows in (("a", "x\ty", ["1\t2", "3\t4"]), ("b", "y\tx", ["6\t5", "", "8\t7"])):
        (tmp_path / f"{name}.tsv").write_text("\n".join([header, *rows]))
    index = open_index([str(tmp_path / f"{name}.tsv") for name in "ab"], LineFormat("tsv", ("x", "y")))
    records = Records(index)
    found = records.__getitems__([3, 0, 2, 0])
    assert [(r["inputs"], r["targets"]) for r in found] == [(b"7", b"8"), (b"1", b"2"), (b"5", b"6"), (b"1", b"2")]
    assert [records.where(i) for i in (0, 3)] == [f"{tmp_path}/a.tsv:2", f"{tmp_path}/b.tsv:4"]


def test_bad_lines_are_skipped_counted_and_limited(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(b"a\tb\none\n\xff\tc\n\tempty\n\nc\td\n" + b"x" * 50 + b"\ty\nt\tw\to\n")
    format = LineFormat("tsv", (0, 1), max_bytes=40)
    index = open_index([str(path)], format, folder=str(tmp_path / "index"))
    assert index.report["skipped"] == {"wrong number of columns": 2, "not UTF-8": 1, "empty field": 1, "too long": 1}
    assert index.report["first"]["too long"] == f"{path}:7: longer than TextFiles.max_line_bytes = 40"
    assert index.describe_skipped().startswith("5 of 7 line(s) skipped (2 wrong number of columns, 1 not UTF-8")
    assert [r["inputs"] for r in Records(index).__getitems__([0, 1])] == [b"a", b"c"]
    assert open_index([str(path)], format, max_bad_lines=5).report == index.report
    for folder in (None, str(tmp_path / "index")):  # read through, and found again
        message = rf"{path}:2: 1 column\(s\), not 2 .* more than TextFiles.max_bad_lines = 4"
        with pytest.raises(UserError, match=message):
            open_index([str(path)], format, max_bad_lines=4, folder=folder)


@pytest.mark.parametrize("content", [b"", b"a\tb\n", b"a\tb\n\n \n"])
def test_a_file_without_a_usable_line(tmp_path, content):
    path = tmp_path / "a.tsv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path}: no line that can be used among 0"):
        open_index([str(path)], LineFormat("tsv", ("a", "b")))


def test_an_index_is_found_again_and_a_changed_file_is_read_anew(tmp_path):
    path, folder = tmp_path / "a.txt", tmp_path / "index"
    path.write_text("one\ntwo\n")
    assert texts(path, folder=str(folder)) == ["one", "two"]
    (home,) = folder.iterdir()
    os.utime(home / "kept", (0, 0))
    assert texts(path, folder=str(folder)) == ["one", "two"]
    assert [p.name for p in folder.iterdir()] == [home.name] and (home / "kept").stat().st_mtime == 0
    path.write_text("one\ntwo\nthree\n")
    assert texts(path, folder=str(folder)) == ["one", "two", "three"]


def test_nothing_is_left_of_an_index_that_was_not_finished(tmp_path):
    path, folder = tmp_path / "a.tsv", tmp_path / "index"
    path.write_text("a\tb\none\n")
    with pytest.raises(UserError):
        open_index([str(path)], PAIRS, folder=str(folder), max_bad_lines=0)
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_done_without(tmp_path):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "a.txt").write_text("one\n")
    assert texts(tmp_path / "a.txt", folder=str(tmp_path / "file" / "index")) == ["one"]


def test_a_file_that_changes_while_it_is_used_is_named(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("a\tb\nc\td\n")
    records = Records(open_index([str(path)], PAIRS))
    path.write_text("a\tb\ncd\n\n")
    with pytest.raises(UserError, match=f"{path}:2: 1 column.* has changed"):
        records[1]
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        records[1]


def test_the_held_out_share_depends_on_the_line_alone(tmp_path):
    lines = [f"line {i}" for i in range(4000)]
    path = tmp_path / "a.txt"
    path.write_text("\n".join(lines))
    held, kept = (set(texts(path, part=part, held_out=0.1)) for part in ("held_out", "kept"))
    assert held | kept == set(lines) and not held & kept
    assert 320 < len(held) < 480
    path.write_text("\n".join([*reversed(lines), *lines, "more"]))
    assert set(texts(path, part="held_out", held_out=0.1)) - {"more"} == held
    # Whoever holds out another share of the same file: a larger one has all of a smaller one.
    assert all(is_held_out(line.encode(), 0.2) for line in held)


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Peak of Python's memory, numpy's included, while a file is indexed and read here and there."""

    def peak(lines):
        path = tmp_path / f"{lines}.txt"
        with path.open("w") as f:
            f.writelines(f"{i} {'x' * 20}\n" for i in range(lines))
        tracemalloc.start()
        records = Records(open_index([str(path)], LineFormat("text", ())))
        records.__getitems__(np.arange(0, lines, lines // 50))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(records) == lines
        return most

    peak(100)  # what is loaded once
    assert peak(24_000) < peak(8_000) + 200_000
