"""Which rules a corpus is made by, and with which numbers: the bindings that the variants' gin files set."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import gin
from t5x_lite.corpus import libraries
from t5x_lite.errors import UserError, did_you_mean, nearest

DEDUPLICATIONS = ("lines", "spans")


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class CorpusRules:
    """Which pages and lines a corpus keeps; the rules themselves are in `t5x_lite.corpus.rules`.

    Raises UserError for a value that cannot be, and for a file that is not there.

    Attributes:
      languages: codes of the languages that are kept. With one the splits are `train` and `validation`; with several
        `<language>` and `<language>-validation`.
      max_page_characters: longer pages are left out.
      news_domains: a JSON file {registered domain: [subdomains] or true}; other pages are left out. None for no rule.
      url_list: files of addresses, one a line; other pages are left out. None for no rule.
      min_paragraphs: pages need so many lines of `paragraph_characters`; 0 for no rule.
      clean: whether the rules of lines apply, and with them `min_sentences`.
      min_words: of a line.
      min_sentences: of a page, before and after deduplication.
      max_word_characters: lines with a longer word are left out.
      deduplicate: "lines", as the public code does it; "spans" of `span_sentences` sentences, as the paper says; None.
      identifier: "langdetect" or "cld3".
      min_probability: of the language; less likely pages are left out.
      keep_unknown: with several languages, keep less likely pages as language `und`.
      bad_words: a file of words, one a line, or a folder of such files named by language. None for no rule.
      bad_words_share: of the pages with such a word, the share that is left out.
      validation_one_in: one page in so many is of the validation split.
      punkt_data: a folder `punkt_tab/english` of NLTK's data; None for the model in the extra `corpus`.
    """

    languages: Sequence[str] = ("en",)
    max_page_characters: int = 190_000
    news_domains: str | None = None
    url_list: str | None = None
    min_paragraphs: int = 0
    paragraph_characters: int = 200
    clean: bool = True
    min_words: int = 5
    min_sentences: int = 3
    max_word_characters: int = 1000
    deduplicate: str | None = "lines"
    span_sentences: int = 3
    identifier: str = "langdetect"
    min_probability: float = 0.99
    keep_unknown: bool = False
    bad_words: str | None = None
    bad_words_share: float = 1.0
    validation_one_in: int = 1000
    punkt_data: str | None = None

    def __post_init__(self):
        languages = (self.languages,) if isinstance(self.languages, str) else tuple(self.languages)
        object.__setattr__(self, "languages", languages)  # gin gives a list for ['en']
        whole = {
            "max_page_characters": 1,
            "min_paragraphs": 0,
            "paragraph_characters": 1,
            "min_words": 0,
            "min_sentences": 0,
            "max_word_characters": 1,
            "span_sentences": 1,
            "validation_one_in": 2,
        }
        for name, least in whole.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise UserError(f"CorpusRules.{name} must be a whole number of at least {least}, not {value!r}")
        for name in ("min_probability", "bad_words_share"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise UserError(f"CorpusRules.{name} must be between 0 and 1, not {value!r}")
        if not self.languages:
            raise UserError("CorpusRules.languages is empty; give ('en',)")
        _one_of("deduplicate", self.deduplicate, DEDUPLICATIONS, none=True)
        _one_of("identifier", self.identifier, libraries.IDENTIFIERS)
        # Files are looked at before the first page is read.
        if self.news_domains is not None:
            libraries.read_domains(self.news_domains)
        if self.url_list is not None:
            libraries.url_files(self.url_list)
        if self.bad_words is not None:
            libraries.read_bad_words(self.bad_words, self.languages)
        if self.punkt_data is not None:
            libraries.check_punkt_data(self.punkt_data)


def _one_of(name: str, value: Any, names: Sequence[str], none: bool = False) -> None:
    if value in names or (none and value is None):
        return
    hint = did_you_mean(nearest(str(value), names))
    raise UserError(f"CorpusRules.{name} = {value!r}{hint}; it is one of {', '.join(names)}{', None' if none else ''}")
