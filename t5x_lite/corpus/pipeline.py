"""The steps from crawl files to shards as one Beam pipeline, for whichever runner.

    files -> pages ─┐                                    ┌─> lines or spans ─> which are repeated ─┐
                    ├ by address: the newest, cleaned ───┤                                         ├ by page: without
    addresses ──────┘  (only those listed)               └─> pages ────────────────────────────────┘ repetitions ┐
                                                                                                                 │
                                                        shards <─ by shard, sorted <─ language, bad words <──────┘

Text is grouped three times: by address, by page and by shard. However the work is divided, the same comes out.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue
from etils import epath

from t5x_lite.corpus import libraries, progress, reading, rules, writing
from t5x_lite.corpus.options import CorpusRules
from t5x_lite.corpus.rules import Page, Removed
from t5x_lite.corpus.runners import Runner
from t5x_lite.corpus.shuffle import PARTITIONS, Grouping, GroupInto, Place
from t5x_lite.corpus.tally import Tally

TALLY, UNITS = "tally", "units"
READ, KEPT = "read", "kept"  # names in the tally beside the rules'
# Names of steps in lines of progress; all but the first have as many parts as there are partitions.
FILES_READ, CLEANED, COMPARED, FINISHED, WRITTEN = "files read", "cleaned", "compared", "finished", "written"


class Layout(NamedTuple):
    """Where a pipeline writes.

    Attributes:
      shards: folder for shards, named `<split>-<number>` while they are written.
      summary: the file for what was done.
      place: where records are grouped on disk; None to let the runner group.
      per_split: shards of a split.
    """

    shards: str
    summary: str
    place: Place | None
    per_split: int


def run(files: Sequence[str], choice: CorpusRules, layout: Layout, runner: Runner) -> dict:
    """Runs the pipeline to its end.

    Returns:
      {"tally": {name: [pages, lines, bytes, texts]}, "shards": [[split, shard, pages, bytes]]}.
    """
    place = layout.place
    with beam.Pipeline(runner.runner, runner.options) as pipeline:
        read = (
            pipeline
            | "Files" >> beam.Create(list(files))
            | beam.Reshuffle()
            | "Read" >> beam.ParDo(_Read(choice, place)).with_outputs(TALLY, main="main")
        )
        pages, tallies = [read["main"]], [read[TALLY]]
        if choice.url_list is not None:
            lists = libraries.url_files(choice.url_list)
            pages.append(pipeline | "Lists" >> beam.Create(lists) | "Addresses" >> beam.FlatMap(_listed))
        cleaned = tuple(pages) | "ByAddress" >> GroupInto(_Choose(choice), CLEANED, place, (TALLY, UNITS))
        tallies.append(cleaned[TALLY])
        finish = _Finish(choice, layout.per_split)
        if choice.deduplicate is None:
            finished = cleaned["main"] | "Finish" >> beam.ParDo(_Each(finish)).with_outputs(TALLY, main="main")
        else:
            repeated = cleaned[UNITS] | "ByUnit" >> GroupInto(_Repeated(), COMPARED, place)
            finished = (cleaned["main"], repeated["main"]) | "ByPage" >> GroupInto(finish, FINISHED, place, (TALLY,))
        tallies.append(finished[TALLY])
        shards = finished["main"] | "ByShard" >> GroupInto(_Write(layout.shards), WRITTEN, place)
        counts = tuple(tallies) | beam.Flatten() | "Tally" >> beam.CombinePerKey(_AddUp())
        parts = (
            shards["main"] | "Shards" >> beam.Map(lambda shard: (b"", ("shards", shard))),
            counts | "Counts" >> beam.Map(lambda counted: (b"", ("tally", counted))),
        )
        parts | "Parts" >> beam.Flatten() | beam.GroupByKey() | "Summary" >> beam.Map(_summarize, layout.summary)
    return json.loads(epath.Path(layout.summary).read_text())


def steps(files: int) -> dict[str, int]:
    """{step: its parts at most}, in their order."""
    return {FILES_READ: files, **dict.fromkeys((CLEANED, COMPARED, FINISHED, WRITTEN), PARTITIONS)}


def _summarize(key_and_values, path: str) -> None:
    summary: dict[str, Any] = {"shards": [], "tally": {}}
    for kind, value in key_and_values[1]:
        if kind == "shards":
            summary[kind].append(list(value))
        else:
            name, (pages, lines, size, samples) = value
            summary[kind][name] = [pages, lines, size, [text for _, text in samples]]
    summary["shards"].sort()
    epath.Path(path).write_text(json.dumps(summary, ensure_ascii=False, sort_keys=True))


class _AddUp(beam.CombineFn):
    """Adds up what tallies have under one name."""

    def create_accumulator(self):
        return Tally()

    def add_input(self, tally, counts):
        tally.merge("", counts)
        return tally

    def merge_accumulators(self, tallies):
        total = Tally()
        for tally in tallies:
            for name, counts in tally.items():
                total.merge(name, counts)
        return total

    def extract_output(self, tally):
        return tally.items()[0][1]


class _Counting(Grouping):
    """A DoFn with a tally, which goes out with the bundle."""

    def start_bundle(self):
        self.tally = Tally()

    def finish_bundle(self):
        for counted in self.tally.items():
            yield TaggedOutput(TALLY, WindowedValue(counted, GlobalWindow().max_timestamp(), (GlobalWindow(),)))

    def remove(self, rule: str, page: Page) -> None:
        self.tally.add(rules.whole_page(rule, page.text, f"{page.url}\n{page.text}"))


class _Each(beam.DoFn):
    """Gives a grouping groups of one value."""

    def __init__(self, grouping: Grouping):
        self._grouping = grouping

    def setup(self):
        self._grouping.setup()

    def start_bundle(self):
        self._grouping.start_bundle()

    def process(self, key_and_value):
        yield from self._grouping.group(key_and_value[0], [key_and_value[1]])

    def finish_bundle(self):
        return self._grouping.finish_bundle()


class _Read(_Counting):
    """path -> (normalized address, page)."""

    def __init__(self, choice: CorpusRules, place: Place | None):
        self._choice, self._place = choice, place

    def setup(self):
        path = self._choice.news_domains
        self._domains = None if path is None else libraries.read_domains(path)

    def process(self, path: str):
        for page in reading.read_pages(path):
            if isinstance(page, Removed):
                self.tally.add(page)
                continue
            self.tally.count(READ, 1, page.text.count("\n") + 1, rules.size(page.text))
            address = rules.normalized_url(page.url)
            if len(page.text) > self._choice.max_page_characters:
                self.remove("long_page", page)
            elif self._domains is not None and not rules.is_allowed_domain(
                *libraries.split_domain(address), self._domains
            ):
                self.remove("not_news", page)
            else:
                yield address.encode("utf-8"), tuple(page)
        progress.mark(self._place and self._place.marks, FILES_READ, hashlib.md5(path.encode()).hexdigest())


def _listed(path: str) -> Iterator[tuple[bytes, tuple]]:
    for url in libraries.read_urls(path):
        yield rules.normalized_url(url).encode("utf-8"), ()  # in the place of a page


class _Choose(_Counting):
    """normalized address, pages -> (page key, its newest page, cleaned); units -> (hash, (page key, place))."""

    def __init__(self, choice: CorpusRules):
        self._choice = choice

    def setup(self):
        self._sentences = libraries.Sentences(self._choice.punkt_data)

    def group(self, key, values):
        choice, page, listed = self._choice, None, False
        for value in values:
            if not value:
                listed = True
                continue
            other = Page(*value)
            if page is not None:
                newest = rules.newest((page, other))
                self.remove("same_url", page if newest == other else other)
                other = newest
            page = other
        if page is None:
            return
        if choice.url_list is not None and not listed:
            self.remove("not_listed", page)
            return
        if choice.min_paragraphs and not rules.has_paragraphs(
            page.text, choice.min_paragraphs, choice.paragraph_characters
        ):
            self.remove("few_paragraphs", page)
            return
        if choice.clean:
            text, removed = rules.clean(
                page.text, self._sentences.count, choice.min_words, choice.min_sentences, choice.max_word_characters
            )
            for each in removed:
                self.tally.add(each)
            if text is None:
                return
            page = page._replace(text=text)
        own = rules.page_key(page.url)
        if choice.deduplicate == "lines":
            units = rules.line_units(page.text)
        elif choice.deduplicate == "spans":
            units = rules.span_units(rules.sentences_of_lines(page.text, self._sentences.split), choice.span_sentences)
        else:
            units = ()
        for place, unit in enumerate(units):
            yield TaggedOutput(UNITS, (unit, (own, place)))
        yield own, tuple(page)


class _Repeated(Grouping):
    """unit, its places -> (page key, place) of each but the first."""

    def group(self, key, values):
        first = None
        for place in values:
            if first is None:
                first = place
                continue
            first, other = min(first, place), max(first, place)
            yield other


class _Finish(_Counting):
    """page key, page and places of repeated units -> (split and shard, (page key, page))."""

    def __init__(self, choice: CorpusRules, shards: int):
        self._choice, self._shards = choice, shards

    def setup(self):
        choice = self._choice
        self._sentences = libraries.Sentences(choice.punkt_data)
        self._languages = libraries.Languages(choice.identifier)
        self._bad_words = (
            {} if choice.bad_words is None else libraries.read_bad_words(choice.bad_words, choice.languages)
        )

    def group(self, key, values):
        page, lost = None, set()
        for value in values:
            if isinstance(value, int):
                lost.add(value)
            else:
                page = Page(*value)
        page = self._without_repetitions(page, lost)
        page = page and self._in_language(page)
        if page is None:
            return
        if pattern := self._bad_words.get(page.language.split("-")[0]):
            found = pattern.search(page.text.lower())
            if found and not rules.spares_bad_words(page.url, self._choice.bad_words_share):
                self.remove("bad_word", page)
                return
        self.tally.count(KEPT, 1, page.text.count("\n") + 1, rules.size(page.text))
        validation = rules.is_validation(page.url, self._choice.validation_one_in)
        if len(self._choice.languages) == 1:
            split = "validation" if validation else "train"
        else:
            split = f"{page.language}-validation" if validation else page.language
        # By bits of the key that have no say in the order within a shard.
        shard = int.from_bytes(key[8:], "big") % self._shards
        yield f"{split}-{shard:05d}".encode(), (key, tuple(page))

    def _without_repetitions(self, page: Page, lost: set[int]) -> Page | None:
        choice = self._choice
        if choice.deduplicate is None:
            return page
        if choice.deduplicate == "lines":
            text, removed = rules.without_lines(page.text, lost)
        else:
            lines = rules.sentences_of_lines(page.text, self._sentences.split)
            text, removed = rules.without_spans(page.text, lines, lost, choice.span_sentences)
        for each in removed:
            self.tally.add(each)
        page, enough = page._replace(text=text), choice.min_sentences if choice.clean else 0
        if not text or self._sentences.count(text, enough) < enough:
            self.remove("few_sentences_left", page)
            return None
        return page

    def _in_language(self, page: Page) -> Page | None:
        choice = self._choice
        language, probability = self._languages.identify(page.text)
        if probability < choice.min_probability or language == rules.UNKNOWN_LANGUAGE:
            if not (choice.keep_unknown and len(choice.languages) > 1):
                self.remove("unsure_language", page)
                return None
            language = rules.UNKNOWN_LANGUAGE
        elif language not in choice.languages:
            self.remove("other_language", page)
            return None
        return page._replace(language=language)


class _Write(Grouping):
    """split and shard, (page key, page) -> (split, shard, pages, bytes), written in the order of the keys."""

    def __init__(self, folder: str):
        self._folder = folder

    def group(self, key, values):
        name = key.decode()
        split, _, shard = name.rpartition("-")
        pages = (Page(*page) for _, page in sorted(values))
        yield (split, int(shard), *writing.write_shard(f"{self._folder}/{name}", pages))
