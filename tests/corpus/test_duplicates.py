"""Which of several equal lines, or of three equal sentences in a row, stays."""

from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite.corpus import rules


def split(text):
    """Sentences by their full stops."""
    return [f"{part.strip()}." for part in text.split(".") if part.strip()]


def lost_places(pages, units_of):
    """{page: numbers of its units that are elsewhere already}, with the pages' names as their keys."""
    first, lost = {}, {name: set() for name in pages}
    for name in sorted(pages):
        for place, unit in enumerate(units_of(pages[name])):
            if unit in first:
                lost[name].add(place)
            first.setdefault(unit, name)
    return lost


def without_lines(pages):
    lost = lost_places(pages, rules.line_units)
    return {name: rules.without_lines(text, lost[name])[0] for name, text in pages.items()}


def without_spans(pages):
    lost = lost_places(pages, lambda text: rules.span_units(rules.sentences_of_lines(text, split)))
    return {
        name: rules.without_spans(text, rules.sentences_of_lines(text, split), lost[name])[0]
        for name, text in pages.items()
    }


def test_lines_are_equal_in_lower_case_and_without_blanks_around_them():
    assert len(set(rules.line_units("One line.\n one LINE. \nOne  line."))) == 2


def test_a_line_stays_once_within_pages_and_across_them():
    pages = {"a": "Share this.\nOf a alone.\nShare this.", "b": "Of b alone.\nSHARE THIS."}
    assert without_lines(pages) == {"a": "Share this.\nOf a alone.", "b": "Of b alone."}


def test_lines_tell_what_they_took():
    text, removed = rules.without_lines("One.\nTwo.\nThree.", {1})
    assert text == "One.\nThree." and removed == [rules.Removed("duplicate_line", 0, 1, 5, "Two.")]


def test_three_sentences_in_a_row_stay_once():
    pages = {"a": "A. B. C. D.", "b": "X. A. B.\nC. Y. Z."}
    assert without_spans(pages) == {"a": "A. B. C. D.", "b": "X.\nY. Z."}


def test_two_sentences_may_repeat():
    pages = {"a": "A. B. C.", "b": "A. B. D.\nB. C. A."}
    assert without_spans(pages) == pages


def test_overlapping_spans_go_as_a_whole():
    pages = {"a": "A. B. C. D. E.", "b": "A. B. C. D. E.", "c": "Q. B. C. D. R."}
    assert without_spans(pages) == {"a": "A. B. C. D. E.", "b": "", "c": "Q. R."}


def test_a_span_that_overlaps_with_its_repetition_stays_whole():
    assert without_spans({"a": "A. A. A. A."}) == {"a": "A. A. A."}
    assert without_spans({"a": "A. A. A. A. A. A. A. B."}) == {"a": "A. A. A. B."}


def test_spans_are_compared_in_lower_case_and_lines_keep_their_blanks():
    pages = {"a": "A.  B. C.", "b": "a. b. C. D.\nE.   F."}
    assert without_spans(pages) == {"a": "A.  B. C.", "b": "D.\nE.   F."}


def test_spans_tell_what_they_took():
    text = "A. B. C.\nD. E."
    rest, removed = rules.without_spans(text, rules.sentences_of_lines(text, split), {0})
    assert rest == "D. E." and removed == [rules.Removed("duplicate_span", 0, 1, 9, "A. B. C.")]


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("abcd"), st.lists(st.sampled_from(["A.", "B.", "C."]), max_size=12), min_size=1))
def test_the_first_page_stays_as_it_is_unless_it_repeats_itself(pages):
    pages = {name: " ".join(sentences) for name, sentences in pages.items()}
    first = min(pages)
    units = rules.span_units(rules.sentences_of_lines(pages[first], split))
    if len(set(units)) == len(units):
        assert without_spans(pages)[first] == pages[first]
    # A second copy of everything leaves nothing of itself that is long enough to be compared.
    twice = without_spans(pages | {"z": pages[first]})
    assert twice["z"] == ("" if len(units) else pages[first])
