"""C4's rules for pages of text (Raffel et al. 2020, section 2.2): pure functions, without Beam and TensorFlow.

Order and constants are the public code's (tensorflow-datasets' `c4` 3.1.0), which are the paper's. Order matters: a
rule of lines that comes first keeps a line from the rules of pages after it.

A page's bytes are those of its lines in UTF-8, each with its newline. What goes into a rule and what comes out differ
by what the rule says that it removed.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

# rule -> (what it takes away, in which case; numbers by their names in CorpusRules)
RULES: dict[str, tuple[str, str]] = {
    "damaged": ("record", "its gzip member or WARC header cannot be read"),
    "truncated": ("record", "its file ends within it"),
    "oversized": ("record", "it is longer than a record may be"),
    "not_utf8": ("page", "text that is no UTF-8"),
    "not_html": ("page", "a response that is not HTML"),
    "no_url": ("page", "no address"),
    "no_date": ("page", "no date"),
    "empty": ("page", "no text"),
    "long_page": ("page", "longer than max_page_characters"),
    "not_news": ("page", "its domain is not in the list of news domains"),
    "same_url": ("page", "its address has a newer page"),
    "not_listed": ("page", "its address is not in the list of addresses"),
    "few_paragraphs": ("page", "fewer than min_paragraphs lines of paragraph_characters"),
    "white_space": ("within lines", "blanks around lines, and blank lines"),
    "long_word": ("line", "a word of more than max_word_characters"),
    "citation": ("within lines", "[1], [], [edit], [citation needed]"),
    "no_end_mark": ("line", 'not ended by . ? ! or ", or by ...'),
    "few_words": ("line", "fewer than min_words words"),
    "lorem_ipsum": ("page", "a line that is kept so far has “lorem ipsum”"),
    "javascript": ("line", "has “javascript”"),
    "curly_bracket": ("page", "a line that is kept so far has {"),
    "policy": ("line", "has “privacy policy”, “terms of use”, “use cookies” or the like"),
    "few_sentences": ("page", "fewer than min_sentences sentences in the lines kept"),
    "duplicate_line": ("line", "the same line, in lower case, stands elsewhere"),
    "duplicate_span": ("sentences", "the same span_sentences sentences in a row stand elsewhere"),
    "few_sentences_left": ("page", "nothing, or fewer than min_sentences, left after deduplication"),
    "unsure_language": ("page", "no language is as likely as min_probability"),
    "other_language": ("page", "in another language"),
    "bad_word": ("page", "has a word of the list"),
}

END_MARKS = (".", "?", "!", '"')
ELLIPSIS = "..."
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
UNKNOWN_LANGUAGE = "und"  # ISO 639's code for an undetermined language
WITHOUT_BLANKS = ("ja", "th", "zh")  # languages in which words are not set apart
# Words of the public lists that are common parts of other words in languages without blanks.
ALLOWED_WORDS = {"ja": {"sm", "グロ", "女の子"}, "zh": {"性"}}

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_SCHEME = re.compile(r"https?://(www\.)?")
_TRACKING = re.compile(r"\?(utm_|ref|feed).*")


class Page(NamedTuple):
    """A page of a crawl. Its lines are set apart by newlines."""

    url: str
    timestamp: str
    text: str
    content_type: str = ""
    content_length: str = ""
    language: str = ""


class Removed(NamedTuple):
    """What a rule took away: pages, lines and bytes, and some of the text."""

    rule: str
    pages: int
    lines: int
    bytes: int
    sample: str


def size(text: str) -> int:
    """Bytes of a text's lines, each with its newline; 0 of no text."""
    return len(text.encode("utf-8")) + 1 if text else 0


def whole_page(rule: str, text: str, sample: str | None = None) -> Removed:
    """That `rule` removed a page that had `text` left."""
    return Removed(rule, 1, text.count("\n") + 1 if text else 0, size(text), text if sample is None else sample)


# Addresses -----------------------------------------------------------------------------------------------------------


def normalized_url(url: str) -> str:
    """The address under which pages count as one: no scheme, no `www.`, no tracking query, no slash at the end."""
    return _TRACKING.sub("", _SCHEME.sub("", url)).rstrip("/")


def newest(pages: Iterable[Page]) -> Page:
    """The page with the latest date; among several the one with the greatest text, so that the order has no say."""
    return max(pages, key=lambda page: (page.timestamp, page.text, page.url))


def page_key(url: str) -> bytes:
    """16 bytes that stand for a page: the order of pages in the corpus, and which of several duplicates stays."""
    return hashlib.md5(url.encode("utf-8")).digest()


def _url_number(url: str) -> int:
    return int.from_bytes(hashlib.md5(normalized_url(url).encode("utf-8")).digest(), "big")


def is_validation(url: str, one_in: int = 1000) -> bool:
    """Whether a page belongs to the validation split: one in `one_in`, by the hash of its normalized address."""
    return _url_number(url) % one_in == 0


def is_allowed_domain(subdomain: str, domain: str, allowed: Mapping[str, bool | Collection[str]]) -> bool:
    """Whether a registered domain is listed, with all of its subdomains (true) or with this one."""
    if domain not in allowed:
        return False
    subdomains = allowed[domain]
    return isinstance(subdomains, bool) or subdomain in subdomains


# Pages and lines -----------------------------------------------------------------------------------------------------


def has_paragraphs(text: str, at_least: int, characters: int) -> bool:
    """Whether at least so many lines have so many characters."""
    return sum(len(line) >= characters for line in text.split("\n")) >= at_least


def clean(
    text: str,
    count_sentences: Callable[[str, int], int],
    min_words: int = 5,
    min_sentences: int = 3,
    max_word_characters: int = 1000,
) -> tuple[str | None, list[Removed]]:
    """Keeps the lines that look like prose, or nothing of a page that does not.

    Args:
      count_sentences: of (text, enough), the number of sentences, at least `enough` where there are more.

    Returns:
      The lines kept, or None for no page; and what was removed.
    """
    removed, kept = [], []
    lines = [line.strip() for line in text.splitlines()]
    left = sum(size(line) for line in lines)
    if left != size(text):
        removed.append(Removed("white_space", 0, lines.count(""), size(text) - left, ""))
    for number, line in enumerate(lines):
        if not line:
            continue
        if len(line) > max_word_characters and any(len(word) > max_word_characters for word in line.split()):
            removed.append(Removed("long_word", 0, 1, size(line), line))
            continue
        whole, line = line, _CITATION.sub("", line)
        if line != whole:
            removed.append(Removed("citation", 0, 0, size(whole) - size(line), whole))
        if not line.endswith(END_MARKS) or line.endswith(ELLIPSIS):
            removed.append(Removed("no_end_mark", 0, 1, size(line), line))
            continue
        if len(line.split()) < min_words:
            removed.append(Removed("few_words", 0, 1, size(line), line))
            continue
        lower, page_rule = line.lower(), None
        if "lorem ipsum" in lower:
            page_rule = "lorem_ipsum"
        elif "javascript" in lower:
            removed.append(Removed("javascript", 0, 1, size(line), line))
            continue
        elif "{" in line:
            page_rule = "curly_bracket"
        if page_rule:
            # With it go the lines kept so far and those not looked at.
            return None, [
                *removed,
                whole_page(page_rule, "\n".join([*kept, line, *filter(None, lines[number + 1 :])]), line),
            ]
        if any(policy in lower for policy in POLICIES):
            removed.append(Removed("policy", 0, 1, size(line), line))
            continue
        kept.append(line)
    # A line that is kept has a sentence at least: long pages need no counting.
    if len(kept) < min_sentences and sum(count_sentences(line, min_sentences) for line in kept) < min_sentences:
        return None, [*removed, whole_page("few_sentences", "\n".join(kept))]
    # Blanks that stood before a citation: inside they stay.
    joined = "\n".join(kept)
    if (stripped := joined.strip()) != joined:
        removed.append(Removed("white_space", 0, 0, size(joined) - size(stripped), ""))
    return stripped, removed


# Duplicates ----------------------------------------------------------------------------------------------------------
# A page's units are its lines, or every three of its sentences in a row. Of equal units all but one are removed: the
# first one on the page whose key is smallest.


def _digest(text: str) -> bytes:
    return hashlib.md5(text.encode("utf-8")).digest()


def line_units(text: str) -> list[bytes]:
    """The hash of each line, in lower case and without blanks around it."""
    return [_digest(line.strip().lower()) for line in text.split("\n")]


def without_lines(text: str, lost: Collection[int]) -> tuple[str, list[Removed]]:
    """The lines whose numbers are not in `lost`."""
    kept, removed = [], []
    for number, line in enumerate(text.split("\n")):
        if number in lost:
            removed.append(Removed("duplicate_line", 0, 1, size(line), line))
        else:
            kept.append(line)
    return "\n".join(kept), removed


def sentences_of_lines(text: str, split: Callable[[str], Sequence[str]]) -> list[list[str]]:
    """The sentences of each line."""
    return [list(split(line)) for line in text.split("\n")]


def span_units(lines: Sequence[Sequence[str]], sentences: int = 3) -> list[bytes]:
    """The hash of every so many sentences in a row, across lines."""
    flat = [sentence.strip().lower() for line in lines for sentence in line]
    return [_digest("\n".join(flat[i : i + sentences])) for i in range(len(flat) - sentences + 1)]


def without_spans(
    text: str, lines: Sequence[Sequence[str]], lost: Collection[int], sentences: int = 3
) -> tuple[str, list[Removed]]:
    """The sentences that stand in none of the spans whose numbers are in `lost`, in their lines.

    Where the span that stays overlaps with its own repetition (the same sentence four times) it stays whole.

    Args:
      lines: the sentences of each line of `text`.
    """
    if not lost:
        return text, []
    units = span_units(lines, sentences)
    stays = {unit: number for number, unit in enumerate(units) if number not in lost}
    gone = set()
    for number in lost:
        own = stays.get(units[number])
        gone.update(i for i in range(number, number + sentences) if own is None or not own <= i < own + sentences)
    kept, taken, place = [], [], 0
    for whole, line in zip(text.split("\n"), lines):
        left = [sentence for i, sentence in enumerate(line, place) if i not in gone]
        taken += [sentence for i, sentence in enumerate(line, place) if i in gone]
        if left:
            kept.append(whole if len(left) == len(line) else " ".join(left))
        place += len(line)
    rest = "\n".join(kept)
    return rest, [Removed("duplicate_span", 0, len(lines) - len(kept), size(text) - size(rest), " ".join(taken))]


# Words ---------------------------------------------------------------------------------------------------------------


def bad_word_pattern(words: Iterable[str], language: str = "en") -> re.Pattern | None:
    """Finds the words in lower-case text, between characters that are no letters; None for no words.

    In languages without blanks between words they are found anywhere.
    """
    words = sorted({word.strip().lower() for word in words} - {""} - ALLOWED_WORDS.get(language, set()))
    if not words:
        return None
    any_word = "|".join(re.escape(word) for word in words)
    if language in WITHOUT_BLANKS:
        return re.compile(any_word)
    return re.compile(rf"(?<![^\W\d_])(?:{any_word})(?![^\W\d_])")


def spares_bad_words(url: str, share: float) -> bool:
    """Whether a page is among those that stay although they have a bad word: all but `share`, by its address."""
    numerator, denominator = float(share).as_integer_ratio()
    return _url_number(url) % denominator >= numerator
