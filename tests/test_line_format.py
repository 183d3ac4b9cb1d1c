"""Lines as records: what is read, and every way in which a line cannot be."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.errors import UserError
from t5x_lite.line_format import LineFormat, Malformed


def read(line, kind="tsv", columns=(0, 1), first=None, **options):
    line = line.encode() if isinstance(line, str) else line
    return LineFormat(kind, columns, **options).open(first or line, "a.tsv")(line)


def pair(inputs, targets):
    return {"inputs": inputs, "targets": targets}


def test_tsv_by_number_and_by_name():
    assert read("one\ttwo") == pair("one", "two")
    assert read("one\ttwo\tthree", columns=(2, 0)) == pair("three", "one")
    assert read("x\ty\tz", columns=("c", "a"), first=b"a\tb\tc") == pair("z", "x")
    assert read("x\ty", columns=("b",), first=b"a\tb") == {"text": "y"}


def test_json_fields_and_text():
    line = json.dumps({"q": 'a "quoted"\tand\nbroken text', "a": "ä"})
    assert read(line, "jsonl", ("q", "a")) == pair('a "quoted"\tand\nbroken text', "ä")
    assert read(line, "jsonl", ("a",)) == {"text": "ä"}
    assert read('  "as it is"\t\\n', "text", ()) == {"text": '  "as it is"\t\\n'}


def test_templates_take_any_columns():
    first = b"premise\thypothesis\tlabel"
    template = "nli premise: {premise} hypothesis: {hypothesis}{{}}"
    assert read("p\th\tl", columns=("premise", "label"), template=template, first=first) == pair(
        "nli premise: p hypothesis: h{}", "l"
    )
    assert read("p\th\tl", columns=(1, 2), template="{}: {0}") == pair("h: p", "l")
    assert read(
        '{"input": "i", "target": "t", "lang": "de"}', "jsonl", ("input", "target"), template="to {lang}: {input}"
    ) == pair("to de: i", "t")


def test_dialects():
    line = r'a\tb\nc\\n\d "q"' + "\tt"
    assert read(line) == pair(r'a\tb\nc\\n\d "q"', "t")
    assert read(line, dialect="escaped") == pair('a\tb\nc\\n\\d "q"', "t")
    assert read('"a\tb ""c"""\tt', dialect="quoted") == pair('a\tb "c"', "t")


@given(st.lists(st.text(alphabet='a\t\n\r\\n"', min_size=1).filter(lambda t: t.strip()), min_size=2, max_size=2))
def test_any_text_can_be_escaped(cells):
    names = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
    line = "\t".join("".join(names.get(c, c) for c in cell) for cell in cells)
    assert read(line, dialect="escaped") == pair(*cells)


@pytest.mark.parametrize(
    "line, options, reason, detail",
    [
        ("one", {"first": b"a\tb"}, "wrong number of columns", "1 column(s), not 2 as in line 1"),
        ("one\ttwo\tthree", {"first": b"a\tb"}, "wrong number of columns", "3 column(s), not 2"),
        ("\ttwo", {}, "empty field", "0 is empty"),
        ("one\t ", {}, "empty field", "1 is empty"),
        (b"one\t\xff", {"first": b"a\tb"}, "not UTF-8", "at byte 5"),
        ('"one\ttwo', {"first": b"a\tb", "dialect": "quoted"}, "bad quoting", "bad quoting"),
        ("{", {"kind": "jsonl", "columns": ("a", "b")}, "not JSON", "not JSON"),
        ("[1]", {"kind": "jsonl", "columns": ("a", "b")}, "not a JSON object", "not a JSON object"),
        ('{"a": "x"}', {"kind": "jsonl", "columns": ("a", "b")}, "missing field", "no field 'b'"),
        ('{"a": "x", "b": 1}', {"kind": "jsonl", "columns": ("a", "b")}, "wrong type", "field 'b' is not a string"),
        (r'{"a": "\ud800"}', {"kind": "jsonl", "columns": ("a",)}, "not UTF-8", "lone surrogate"),
    ],
)
def test_a_bad_line_has_its_reason(line, options, reason, detail):
    with pytest.raises(Malformed) as caught:
        read(line, **options)
    assert caught.value.reason == reason and detail in str(caught.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kind": "csv"}, "'csv' is no kind of file"),
        ({"dialect": "excel"}, "TextFiles.dialect = 'excel'"),
        ({"columns": (0, 1, 2)}, "name one column of text, or two"),
        ({"columns": (0, "b")}, "give names, or numbers from 0"),
        ({"columns": (-1, 1)}, "numbers from 0"),
        ({"kind": "jsonl"}, r"columns = \(0, 1\): give names"),
        ({"template": "{source}"}, "stands the number of a column"),
        ({"template": "{"}, "write {{ for a bracket itself"),
        ({"template": "{0:3}"}, "stands the number of a column"),
        ({"columns": (0,), "template": "{}"}, "name two columns"),
        ({"columns": (0, 2)}, r"a.tsv:1: no column 2, the line has 2 column\(s\)"),
        ({"columns": ("a", "c")}, "a.tsv:1: no column 'c', the line names 'a', 'b'"),
        ({"template": "{5}"}, "no column 5"),
    ],
)
def test_what_is_asked_wrongly_is_said(options, message):
    with pytest.raises(UserError, match=message):
        LineFormat(**{"kind": "tsv", "columns": (0, 1), **options}).open(b"a\tb", "a.tsv")
