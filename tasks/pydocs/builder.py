"""The corpus as a tensorflow-datasets builder, and what makes sure that it is there.

One folder, `DATA_DIR/pydocs/1.1.0/`, holds the records (array_record: any record can be read by its index), the
vocabulary and the report on near duplicates. tensorflow-datasets writes it under another name and renames it at the
end, so it is complete or absent.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.utils import tqdm_utils

from t5x_lite.tasks.pydocs import corpus, near_duplicates, vocabulary

SPLITS = ("train", "validation", "test")
REPORT_FILE_NAME = "near_duplicates.json"
# stage name, number of steps -> a function to call with the number of steps just done
Progress = Callable[[str, int], Callable[[int], None]]

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`*\"'(\[])")
_WORD = re.compile(r"[a-z]{4,}")
# What a summary must be to be asked for: more than a title, less than a page, and to be found in what is left to read:
# half of its words of four letters and more within the first characters of the body, which a short input holds.
SUMMARY_CHARACTERS = (20, 200)
BODY_CHARACTERS = 100
READ_CHARACTERS = 500
SAID_AGAIN = 0.5

_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|cf|Eq|Fig|Dr|al|approx|resp)|\b[A-Z])\.$")


def data_dir() -> epath.Path:
    """Where corpora are kept: `$T5X_LITE_DATA_DIR`, or `~/.cache/t5x-lite`."""
    return epath.Path(os.environ.get("T5X_LITE_DATA_DIR") or "~/.cache/t5x-lite").expanduser()


class Pydocs(tfds.core.GeneratorBasedBuilder):
    """Documentation of Python and of the installed libraries; see `corpus` and `near_duplicates` for how it is made.

    `sources` replaces the installed libraries by other files, `progress` is told how far the build is.
    """

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES: ClassVar = {
        "1.0.0": "First version.",
        "1.1.0": "A summary is left empty where the rest of the text does not say half of it.",
    }
    # Where tensorflow-datasets looks for checksums of downloads. There are none, and with a path it would need
    # `importlib_resources`, which it does not install.
    code_path = None

    def __init__(self, *, sources: Sequence[corpus.Source] | None = None, progress: Progress | None = None, **kwargs):
        self._sources = sources
        self._progress = progress or (lambda stage, total: lambda done: None)
        super().__init__(file_format=tfds.core.FileFormat.ARRAY_RECORD, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Docstrings and documentation texts of Python and installed libraries.",
            features=tfds.features.FeaturesDict(
                {key: tfds.features.Text() for key in ("text", "summary", "body", "library", "name")}
            ),
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        if self._sources is None:
            sources, versions = corpus.installed_sources()
        else:
            sources, versions = list(self._sources), {}
        documents = corpus.read_documents(sources, progress=self._progress("reading", len(sources)))
        splits = split_documents(documents, self._progress("finding near duplicates", len(documents)))
        texts = {name: [d.text for d in members] for name, members in splits.items()}

        step = self._progress("training the vocabulary", 1)
        self._write(vocabulary.FILE_NAME, vocabulary.train(texts["train"]))
        step(1)
        step = self._progress("checking the splits", 1)
        report = near_duplicates.leaks(texts)
        self._write(REPORT_FILE_NAME, (json.dumps(report, indent=2) + "\n").encode())
        step(1)

        self.info.metadata["versions"] = versions
        self.info.metadata["characters"] = {name: sum(map(len, t)) for name, t in texts.items()}
        self.info.metadata["libraries"] = {
            name: dict(sorted(Counter(d.library for d in members).items())) for name, members in splits.items()
        }
        return {name: self._generate_examples(members) for name, members in splits.items()}

    def _generate_examples(self, documents: Sequence[corpus.Document]) -> Iterator[tuple[str, dict[str, str]]]:
        for document in documents:
            summary, body = summarize(document.text)
            if not can_be_asked_for(summary, body):
                summary = ""
            yield (
                digest(document.text).hex(),
                {
                    "text": document.text,
                    "summary": summary,
                    "body": body,
                    "library": document.library,
                    "name": document.name,
                },
            )

    def _write(self, name: str, content: bytes) -> None:
        (epath.Path(self.data_dir) / name).write_bytes(content)  # still the folder under its other name


def digest(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def split_documents(
    documents: Sequence[corpus.Document], progress: Callable[[int], None] | None = None
) -> dict[str, list[corpus.Document]]:
    """About 90 % train, 5 % validation, 5 % test; near duplicates stay together.

    A cluster's split hangs on the smallest digest of its texts alone, so other documents coming or going move nothing.
    """
    roots = near_duplicates.clusters([d.text for d in documents], progress)
    smallest: dict[int, bytes] = {}
    for document, root in zip(documents, roots):
        own = digest(document.text)
        smallest[root] = min(smallest.get(root, own), own)
    splits: dict[str, list[corpus.Document]] = {name: [] for name in SPLITS}
    for document, root in zip(documents, roots):
        # Hashed again: the smallest of several digests is no longer uniform.
        place = int.from_bytes(hashlib.blake2b(smallest[root], digest_size=8).digest(), "big") / 2**64
        splits["train" if place < 0.9 else "validation" if place < 0.95 else "test"].append(document)
    return splits


def summarize(text: str) -> tuple[str, str]:
    """(summary, body): the first sentence of the first paragraph, on one line, and all that follows it.

    A signature standing alone on the first line ("add(x, y)") belongs to neither.
    """
    paragraphs = text.split("\n\n")
    if len(paragraphs) > 1 and re.fullmatch(r"[\w.]+\(.*\)(\s*->.*)?", paragraphs[0], re.DOTALL):
        paragraphs = paragraphs[1:]
    first = paragraphs[0]
    end = len(first)
    for match in _SENTENCE_END.finditer(first):
        if not _ABBREVIATION.search(first[: match.start()]):
            end = match.start()
            break
    summary = " ".join(first[:end].split())
    rest = first[end:].strip()
    body = "\n\n".join(([rest] if rest else []) + paragraphs[1:]).strip("\n")
    return summary, body


def can_be_asked_for(summary: str, body: str) -> bool:
    """Whether a reader of the body could write the summary: see the constants at the top."""
    shortest, longest = SUMMARY_CHARACTERS
    if not shortest <= len(summary) <= longest or len(body) < BODY_CHARACTERS:
        return False
    words, said = set(_WORD.findall(summary.lower())), set(_WORD.findall(body[:READ_CHARACTERS].lower()))
    return len(words & said) >= SAID_AGAIN * max(1, len(words))


# Building it ------------------------------------------------------------------------------------------------------


def ensure_built(
    directory: epath.PathLike | None = None,
    sources: Sequence[corpus.Source] | None = None,
    progress: Progress | None = None,
) -> epath.Path:
    """The folder of the finished corpus under `directory` (default `data_dir()`); builds it if it is not there.

    Two processes may call this at once: one builds, the other waits. A corpus that is there is used as it is, also when
    libraries have been upgraded since, so that models go on reading their own vocabulary.
    """
    directory = epath.Path(directory) if directory is not None else data_dir()
    folder = directory / Pydocs.name / str(Pydocs.VERSION)
    if _complete(folder):
        return folder
    directory.mkdir(parents=True, exist_ok=True)
    with _lock(directory):
        if _complete(folder):  # built while this process waited
            return folder
        print(f"Building the pydocs corpus in {folder}: once, it takes a minute.", file=sys.stderr, flush=True)
        if folder.parent.exists():
            for left in folder.parent.glob("*incomplete*"):
                left.rmtree()  # of an interrupted build
        builder = Pydocs(data_dir=os.fspath(directory), sources=sources, progress=progress)
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        with _quiet_tfds():
            builder.download_and_prepare(download_config=config)
    return folder


def open_split(split: str, directory: epath.PathLike | None = None) -> Sequence[dict[str, bytes]]:
    """A split for random access: `len()`, `[i]`, `__getitems__([i, j])`; dicts of UTF-8 bytes. Builds if needed."""
    return tfds.builder_from_directory(ensure_built(directory)).as_data_source(split)


def _complete(folder: epath.Path) -> bool:
    return (folder / "dataset_info.json").exists()


@contextlib.contextmanager
def _lock(directory: epath.Path):
    path = os.fspath(directory)
    if "://" in path:  # no locks in a bucket; two builders there write the same thing twice
        yield
        return
    with open(os.path.join(path, ".pydocs.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back by the system however the process ends
        yield


@contextlib.contextmanager
def _quiet_tfds():
    """Without the bars and the banner of tensorflow-datasets, which speak of a download."""
    shown = tqdm_utils._active
    tfds.display_progress_bar(enable=False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.display_progress_bar(enable=shown)
