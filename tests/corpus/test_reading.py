"""Crawl files as pages, and whatever can be wrong with them: skipped, counted, named."""

import gzip

import pytest

pytest.importorskip("warcio", reason="needs the extra `corpus`")

from crawl_files import documentation, write_warc, write_wet

from t5x_lite.corpus import reading
from t5x_lite.corpus.rules import Page, Removed

PAGES = [(f"http://example.com/{i}", f"Page {i}.\nIts second line.") for i in range(5)]


def read(path):
    """(urls of the pages, [(rule, pages)] of what was left out)."""
    found = list(reading.read_pages(str(path)))
    return (
        [int(page.url.rpartition("/")[2]) for page in found if isinstance(page, Page)],
        [(removed.rule, removed.pages) for removed in found if isinstance(removed, Removed)],
    )


@pytest.fixture
def wet(tmp_path):
    path = tmp_path / "a.warc.wet.gz"
    write_wet(path, PAGES)
    return path


def members(path):
    """Where each gzip member begins, and the end."""
    with open(path, "rb") as f:
        starts = [start for start, _ in reading.gzip_members(f)]
    return [*starts, path.stat().st_size]


def test_wet_files(wet):
    first = next(reading.read_pages(str(wet)))
    assert first == Page(
        "http://example.com/0", "2019-04-18T10:00:00Z", "Page 0.\nIts second line.", "text/plain", str(len(PAGES[0][1]))
    )
    assert read(wet) == ([0, 1, 2, 3, 4], [])


def test_lines_lose_the_blanks_around_them_and_blank_ones_go(tmp_path):
    write_wet(tmp_path / "a.wet", [("http://example.com/1", "  one \r\n\r\n\ttwo\rthree\u2028three\n\n")], packed=False)
    (page,) = reading.read_pages(str(tmp_path / "a.wet"))
    assert page.text == "one\ntwo\nthree\u2028three"


def test_files_that_are_not_packed_or_packed_as_one(wet, tmp_path):
    (tmp_path / "plain.wet").write_bytes(gzip.decompress(wet.read_bytes()))
    assert read(tmp_path / "plain.wet") == ([0, 1, 2, 3, 4], [])
    (tmp_path / "one.wet.gz").write_bytes(gzip.compress((tmp_path / "plain.wet").read_bytes()))
    assert read(tmp_path / "one.wet.gz") == ([0, 1, 2, 3, 4], [])


def test_one_member_for_all_is_read_as_a_stream_when_it_is_large(wet, tmp_path, monkeypatch):
    (tmp_path / "one.wet.gz").write_bytes(gzip.compress(gzip.decompress(wet.read_bytes())))
    monkeypatch.setattr(reading.gzip_members, "__defaults__", (500,))
    assert read(tmp_path / "one.wet.gz") == ([0, 1, 2, 3, 4], [])


def test_a_member_longer_than_a_record_may_be(wet, tmp_path, monkeypatch):
    write_wet(tmp_path / "a.wet.gz", [*PAGES[:2], ("http://example.com/9", "x " * 4000), PAGES[2]])
    monkeypatch.setattr(reading.gzip_members, "__defaults__", (4000,))
    assert read(tmp_path / "a.wet.gz") == ([0, 1, 2], [("oversized", 0)])


@pytest.mark.parametrize("damage", ["flip", "hole", "cut out"])
def test_a_damaged_member_costs_itself(wet, tmp_path, damage):
    data, starts = wet.read_bytes(), members(wet)  # of the file's information, then the pages
    start, end = starts[3], starts[4]
    middle = {
        "flip": data[start : start + 40] + bytes([data[start + 40] ^ 255]) + data[start + 41 : end],
        "hole": bytes(end - start),
        "cut out": data[start : start + 30],
    }[damage]
    (tmp_path / "b.gz").write_bytes(data[:start] + middle + data[end:])
    assert read(tmp_path / "b.gz") == ([0, 1, 3, 4], [("damaged", 0)])
    (removed,) = [r for r in reading.read_pages(str(tmp_path / "b.gz")) if isinstance(r, Removed)]
    assert removed.bytes == len(middle) and f"b.gz at byte {start:,}" in removed.sample


@pytest.mark.parametrize("distance", range(7))
def test_members_may_begin_anywhere(wet, tmp_path, monkeypatch, distance):
    monkeypatch.setattr(reading, "_CHUNK", 7)
    assert read(wet) == ([0, 1, 2, 3, 4], [])
    data, starts = wet.read_bytes(), members(wet)
    chance = b"\x1f\x8b\x08 by chance " + b"." * distance
    (tmp_path / "b.gz").write_bytes(data[: starts[2]] + chance + data[starts[2] :])
    assert read(tmp_path / "b.gz") == ([0, 1, 2, 3, 4], [("damaged", 0)])


def test_a_file_that_ends_too_early(wet, tmp_path):
    (tmp_path / "b.gz").write_bytes(wet.read_bytes()[:-20])
    assert read(tmp_path / "b.gz") == ([0, 1, 2, 3], [("truncated", 0)])
    plain = gzip.decompress(wet.read_bytes())
    (tmp_path / "b.wet").write_bytes(plain[: plain.rindex(b"second")])
    assert read(tmp_path / "b.wet") == ([0, 1, 2, 3], [("truncated", 1)])


@pytest.mark.parametrize("content", [b"this is no gzip", b"\x1f\x8b\x08", b"\x1f\x8b\x08\0\0\0\0\0\0\x03nonsense"])
def test_files_that_are_something_else(tmp_path, content):
    (tmp_path / "b.gz").write_bytes(content)
    urls, removed = read(tmp_path / "b.gz")
    assert urls == [] and [rule for rule, _ in removed] in (["damaged"], ["truncated"])


def test_an_empty_file(tmp_path):
    (tmp_path / "b.gz").write_bytes(b"")
    assert read(tmp_path / "b.gz") == ([], [])


def test_gzip_of_no_warc(tmp_path):
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"some text\n" * 9))
    assert read(tmp_path / "b.gz") == ([], [("damaged", 0)])


def test_pages_without_text_date_or_address(tmp_path):
    write_wet(tmp_path / "a.gz", [("http://example.com/1", " \n "), ("http://example.com/2", ""), ("", "Text.")])
    assert read(tmp_path / "a.gz")[1] == [("empty", 1), ("empty", 1), ("no_url", 1)]
    write_wet(tmp_path / "b.gz", PAGES[:1], date="")
    assert read(tmp_path / "b.gz") == ([], [("no_date", 1)])


def test_text_that_is_no_utf8(tmp_path):
    write_wet(tmp_path / "a.gz", [PAGES[0], ("http://example.com/1", "Größe.".encode("latin-1")), PAGES[2]])
    assert read(tmp_path / "a.gz") == ([0, 2], [("not_utf8", 1)])
    removed = list(reading.read_pages(str(tmp_path / "a.gz")))[1]
    assert "byte 2 of http://example.com/1" in removed.sample


def test_html_of_responses(tmp_path):
    pytest.importorskip("resiliparse", reason="needs the extra `corpus`")
    write_warc(tmp_path / "a.warc.gz", documentation(3))
    pages = list(reading.read_pages(str(tmp_path / "a.warc.gz")))
    assert [page.url.rpartition("/")[2] for page in pages] == sorted(p.url.rpartition("/")[2] for p in pages)
    assert len(pages) == 3 and all("<p>" not in page.text and "var a" not in page.text for page in pages)
    assert all(len(page.text.split("\n")) >= 15 for page in pages)


@pytest.mark.parametrize(
    "content_type, encoding",
    [
        ("text/html; charset=ISO-8859-1", "latin-1"),
        ("text/html", "utf-8"),
        ('TEXT/HTML;charset="utf-8"', "utf-8"),
        ("application/xhtml+xml; charset=shift_jis", "shift_jis"),
        ("text/html; charset=nonsense", "utf-8"),
    ],
)
def test_encodings_of_html(tmp_path, content_type, encoding):
    pytest.importorskip("resiliparse", reason="needs the extra `corpus`")
    text = "日本語の文です。" if encoding == "shift_jis" else "Größe und Maß."
    write_warc(tmp_path / "a.warc.gz", [("http://example.com/1", f"<p>{text}</p>".encode(encoding))], content_type)
    (page,) = reading.read_pages(str(tmp_path / "a.warc.gz"))
    assert page.text == text


def test_responses_that_are_not_html(tmp_path):
    write_warc(tmp_path / "a.warc.gz", [("http://example.com/1", "%PDF")], "application/pdf")
    assert read(tmp_path / "a.warc.gz") == ([], [("not_html", 1)])
