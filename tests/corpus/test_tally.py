"""Counts and samples: the same however the work is divided, and shown as what they are."""

from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.corpus import report
from t5x_lite.corpus.rules import Removed
from t5x_lite.corpus.tally import SAMPLE_CHARACTERS, SAMPLES, Tally

REMOVED = st.builds(
    Removed,
    st.sampled_from(["few_words", "javascript"]),
    st.just(0),
    st.just(1),
    st.integers(1, 9),
    st.text(max_size=5),
)


def added(removed):
    tally = Tally()
    for one in removed:
        tally.add(one)
    return tally


@settings(deadline=None)
@given(st.lists(REMOVED, max_size=40), st.integers(0, 40))
def test_parts_add_up_to_the_whole(removed, cut):
    whole, parts = added(removed), Tally()
    for part in (added(removed[cut:]), added(removed[:cut])):
        for name, counts in part.items():
            parts.merge(name, counts)
    assert dict(parts.items()) == dict(whole.items())
    for rule, (_, lines, size, samples) in whole.items():
        own = [one for one in removed if one.rule == rule]
        assert (lines, size) == (len(own), sum(one.bytes for one in own))
        assert len(samples) == min(SAMPLES, len({one.sample for one in own} - {""}))


def test_samples_are_cut_and_few():
    tally = added(Removed("policy", 0, 1, 1, f"{i} " + "x" * 1000) for i in range(100))
    ((_, (_, _, _, samples)),) = tally.items()
    assert len(samples) == SAMPLES and all(len(text) == SAMPLE_CHARACTERS for _, text in samples)


TALLY = {
    "read": [3, 10, 1000, []],
    "few_words": [0, 4, 250, ["<b>Too</b> short."]],
    "bad_word": [1, 2, 50, []],
    "kept": [2, 4, 700, []],
}


def test_the_page_escapes_texts_and_keeps_the_order_of_the_rules():
    page = report.as_html("c4/en:3.1.0", {"input": "1 file & more"}, TALLY, {"train": (2, 690)})
    assert "&lt;b&gt;Too&lt;/b&gt; short." in page and "<b>" not in page and "1 file &amp; more" in page
    assert (
        page.index("<td>read</td>")
        < page.index(">few_words</a>")
        < page.index(">bad_word</a>")
        < page.index("<td>kept</td>")
    )
    assert "<td class=n>25.00</td>" in page and "<td class=n>70.00</td>" in page
    assert "src=" not in page and "http" not in page  # needs no other file


def test_lines_for_a_terminal():
    lines = report.as_text(TALLY).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["read", "few_words", "bad_word", "kept"]
    assert lines[1].split()[1:] == ["3", "10", "1,000"]


def test_nothing_was_read():
    assert "0.00" in report.as_html("c4/en:3.1.0", {}, {}, {}) and report.as_text({}).splitlines()[1].split()[1] == "0"
