"""Whatever the lines of a file hold: those that are good are used, each of the others is accounted for."""

import json

from fuzzing import cases, check
from hypothesis import strategies as st
from infer_runs import INFER

from t5x_lite import text_io
from t5x_lite.errors import UserError
from t5x_lite.jobs import infer as job
from t5x_lite.line_format import BYTE_ORDER_MARK
from t5x_lite.text_files import TextFiles

WORDS = st.sampled_from(
    ["fox", "the quick brown fox", "naïve ⁇ 日本", "a" * 90, "x\u2028y", "<extra_id_0>", "0", " a "]
)
JUNK = st.one_of(
    st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"")),
    st.sampled_from(
        [
            b"",
            b" ",
            b"\r",
            b"\t",
            b"\t\t",
            b"\xff\xfe",
            b"\xed\xa0\x80",
            b"\0",
            b"one",
            b"a\tb\tc",
            b"\ta",
            b"a\t",
            b'"a\tb',
            b"{",
            b"null",
            b"[]",
            b"{}",
            b'"text"',
            b"NaN",
            b"1e999",
            b'{"input": 1, "target": 2}',
            b'{"input": "a"}',
            b'{"input": null}',
            b'{"input": "\\ud800", "target": "b"}',
            b'{"input": "", "target": ""}',
            b'{"input": "a", "target": "b", "choices": "c"}',
            b'{"input": "a", "target": "b", "choices": [1]}',
            b'{"input": "a", "target": "b", "choices": []}',
            b"[" * 3000,
            b'{"a":' * 3000,
            b"x" * 3000,
            BYTE_ORDER_MARK,
            b"9" * 5000,
            b'{"input": "a", "input": ["b"], "target": "c"}',
        ]
    ),
)


def good(kind):
    """(line, what a task makes of it)."""
    pair = st.tuples(WORDS, WORDS)
    if kind == "jsonl":
        choices = st.sampled_from([{"choices": ["yes", "no"]}, {"choices": ["a"], "other": {"deep": [None]}}])
        return st.tuples(pair, choices).map(
            lambda p: (json.dumps({"input": p[0][0], "target": p[0][1], **p[1]}).encode(), p[0])
        )
    if kind == "tsv":
        return pair.map(lambda p: ("\t".join(p).encode(), p))
    return WORDS.map(lambda text: (text.encode(), (text,)))


@st.composite
def files(draw):
    """(kind, lines as [(bytes, what is in a good one or None)], end of a line, whether the last one has it)."""
    kind = draw(st.sampled_from(["tsv", "jsonl", "text"]))
    spoilt = st.tuples(good(kind), st.integers(0, 200), st.binary(max_size=2)).map(
        lambda x: x[0][0][: x[1]] + x[2].replace(b"\n", b"") + x[0][0][x[1] + 1 :]
    )
    line = st.one_of(good(kind), good(kind), st.one_of(JUNK, spoilt).map(lambda b: (b, None)))
    lines = draw(st.lists(line, max_size=12))
    if draw(st.booleans()):
        lines.insert(0, draw(good(kind)))  # the first line of TSV says how many columns there are
    return kind, lines, draw(st.sampled_from([b"\n", b"\n", b"\r\n"])), draw(st.booleans())


def write(path, lines, end, last):
    path.write_bytes(end.join(line for line, _ in lines) + end * last)
    return path


@cases(few=150, many=6000)
def test_a_task_of_any_lines_has_the_good_ones(n, tmp_path, capsys):
    counts = {"used": 0, "refused": 0}

    def accounts(case):
        kind, lines, end, last = case
        path = write(tmp_path / "rows.txt", lines, end, last)
        limit = len(lines) // 2
        task = TextFiles(
            train=f"{kind}:{path}", held_out=0, index_folder=None, max_line_bytes=2000, max_bad_lines=limit
        )
        try:
            records = task.open_split("train")
        except UserError as e:
            assert str(e) and "\n" not in str(e), (case, e)
            counts["refused"] += 1
            return
        counts["used"] += 1
        found = records.__getitems__(range(len(records)))
        report = records._index.report
        assert len(found) + sum(report["skipped"].values()) == report["lines"] <= len(lines), (case, report)
        assert sum(report["skipped"].values()) <= limit
        names = ("text",) if kind == "text" else ("inputs", "targets")
        have = [tuple(record[name].decode() for name in names) for record in found]
        assert all(text.strip() for record in have for text in record)
        if kind != "tsv" or lines[0][1]:  # a first line of another number of columns makes the good ones odd
            wanted = [what for _, what in lines if what]
            rest = iter(have)
            assert all(any(one == what for one in rest) for what in wanted), (case, have)
        numbers = [int(records.where(i).rpartition(":")[2]) for i in range(len(records))]
        assert numbers == sorted(set(numbers)) and (not numbers or numbers[-1] <= len(lines))

    check(n, files(), accounts)
    capsys.readouterr()
    print(counts)
    assert all(counts.values())


@cases(few=20, many=400)
def test_inference_answers_any_lines_one_by_one(n, checkpoint, tmp_path, capsys):
    answered = {"answers": 0, "errors": 0}

    def answers(case):
        (kind, lines, end, last), mode = case
        suffix = {"tsv": ".tsv", "jsonl": ".jsonl", "text": ".txt"}[kind]
        path, out = write(tmp_path / f"in{suffix}", lines, end, last), tmp_path / "out.jsonl"
        arguments = {"mode": mode, "choices": ["yes", "no"] if mode == "rank" and kind != "jsonl" else None}
        try:
            errors = job.infer(checkpoint, str(path), str(out), overwrite=True, **INFER, **arguments)
        except UserError as e:
            assert (kind, mode) == ("text", "score") and "no targets" in str(e), (case, e)
            return
        raw = out.read_bytes().split(b"\n")
        assert raw.pop() == b""
        records = [json.loads(line) for line in raw]
        asked = list(
            text_io.TextInput(path, with_target=mode == "score", with_choices=mode == "rank" and kind == "jsonl")
        )
        assert [r["input"] for r in records] == [
            r.input.encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass") for r in asked
        ], case
        assert errors == sum("error" in r for r in records)
        content = end.join(line for line, _ in lines) + end * last
        assert len(records) == content.count(b"\n") + (not content.endswith(b"\n") and bool(content)), case
        for record in records:
            assert ("error" in record) != ("score" in record), record
        inputs = {r["input"] for r in records if "error" not in r}
        assert inputs >= {what[0] for _, what in lines if what}, case
        answered["errors"] += errors
        answered["answers"] += len(records) - errors

    check(n, st.tuples(files(), st.sampled_from(job.MODES)), answers)
    capsys.readouterr()
    print(answered)
    assert all(answered.values())
