"""Documentation texts of installed Python code, read from source with `ast`: nothing is imported or run.

This module needs the standard library alone, for it also runs as a worker: a second interpreter started on this very
file reads its share of the source files without importing TensorFlow first.
"""

from __future__ import annotations

import ast
import concurrent.futures
import dataclasses
import importlib.metadata
import inspect
import json
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeGuard

MIN_CHARACTERS = 200  # shorter ones ("Returns the name.") say nothing that could be summarized or told apart
MAX_CHARACTERS = 20_000  # a handful of longer ones would outweigh whole libraries

# Distribution -> the name its documents carry as label. Small relatives share a label: a class needs enough documents
# to be learnt. What pip installs with T5X-lite on any platform is listed, never what happens to be present: the corpus
# depends on the versions pinned and on nothing else.
LIBRARIES = {
    "absl-py": "others",
    "array_record": "others",
    "attrs": "others",
    "clu": "others",
    "einops": "others",
    "etils": "others",
    "flatbuffers": "others",
    "flax": "flax",
    "gin-config": "others",
    "h5py": "others",
    "jax": "jax",
    "joblib": "others",
    "keras": "keras",
    "matplotlib": "matplotlib",
    "ml_collections": "others",
    "ml_dtypes": "others",
    "msgpack": "others",
    "nltk": "nltk",
    "numpy": "numpy",
    "opt_einsum": "others",
    "optax": "optax",
    "optree": "others",
    "orbax-checkpoint": "orbax",
    "pillow": "others",
    "protobuf": "others",
    "pyglove": "others",
    "python": "python",
    "rich": "others",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "seqio": "others",
    "tensorboard": "others",
    "tensorflow": "tensorflow",
    "tensorflow-datasets": "tfds",
    "tensorflow-text": "tensorflow",
    "tensorstore": "others",
    "treescope": "others",
}
# Parts of the standard library that many systems ship separately or not at all.
_OPTIONAL_STANDARD = {"ensurepip", "idlelib", "lib2to3", "test", "tkinter", "turtledemo", "venv"}
_SKIPPED_FOLDERS = {
    "test",
    "tests",
    "testing",
    "testdata",
    "_vendor",
    "vendored",
    "__pycache__",
    "dummy_data",
    "fake_data",
}
_WORTH_PARSING = re.compile(rf'("""|\'\'\').{{{MIN_CHARACTERS // 2}}}', re.DOTALL)
# Left in generated code where nobody has written anything.
_PLACEHOLDERS = ("TODO: add doc",)


@dataclasses.dataclass(frozen=True, order=True)
class Document:
    """One documentation text: the label of its library, the qualified name of what it describes, and the text."""

    library: str
    name: str
    text: str


@dataclasses.dataclass(frozen=True, order=True)
class Source:
    """One file to read: label, the file's path relative to where it is installed (POSIX), and the path itself."""

    library: str
    relative: str
    path: str


# Which files ------------------------------------------------------------------------------------------------------


def installed_sources(libraries: dict[str, str] | None = None) -> tuple[list[Source], dict[str, str]]:
    """The Python files of the listed distributions, sorted, and the versions found ({distribution: version}).

    A distribution that is not installed is left out of both.
    """
    sources, versions = [], {}
    for distribution, label in sorted((libraries or LIBRARIES).items()):
        if distribution == "python":
            versions[distribution] = ".".join(map(str, sys.version_info[:3]))
            sources += _standard_library(label)
            continue
        try:
            found = importlib.metadata.distribution(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        versions[distribution] = found.version
        for file in found.files or ():
            if file.suffix == ".py" and ".." not in file.parts and not _SKIPPED_FOLDERS & set(file.parts[:-1]):
                sources.append(Source(label, file.as_posix(), str(file.locate())))
    return sorted(sources), versions


def _standard_library(label: str) -> list[Source]:
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    names = (set(sys.stdlib_module_names) | {"pydoc_data"}) - _OPTIONAL_STANDARD
    sources = []
    for name in sorted(names):
        if (root / name).is_dir():
            sources += tree_sources(root / name, label, prefix=name)
        elif (root / f"{name}.py").is_file() and not name.startswith("_sysconfigdata"):
            sources.append(Source(label, f"{name}.py", str(root / f"{name}.py")))
    return sources


def tree_sources(root: str | os.PathLike, label: str, prefix: str = "") -> list[Source]:
    """Every Python file under `root`, sorted; `prefix` stands before the relative paths."""
    root = pathlib.Path(root)
    sources = []
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        if not _SKIPPED_FOLDERS & set(relative.parts[:-1]):
            sources.append(Source(label, (pathlib.PurePosixPath(prefix) / relative.as_posix()).as_posix(), str(path)))
    return sorted(sources)


# What is in a file ------------------------------------------------------------------------------------------------


def read_source(source: Source) -> list[Document]:
    """The documents of one file, in its order. A file that cannot be read or parsed gives none."""
    try:
        code = pathlib.Path(source.path).read_text(encoding="utf-8")
        if not _WORTH_PARSING.search(code) and "pydoc_data" not in source.relative:
            return []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in somebody else's code are not our user's affair
            tree = ast.parse(code)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []
    module = source.relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    found = []
    for name, raw in _texts(tree, module):
        text = clean(raw)
        if MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS and not any(mark in text for mark in _PLACEHOLDERS):
            found.append(Document(source.library, name, text))
    return found


def clean(raw: str) -> str:
    """The text without its indentation, trailing blanks, outer blank lines and more than one blank line in a row."""
    # The word mark of SentencePiece would come back as a blank, and lone surrogates cannot be written at all.
    raw = raw.replace("\u2581", "_").encode("utf-8", "ignore").decode("utf-8")
    raw = "\n".join(re.split(r"\r\n?|\n", raw))
    lines = [line.rstrip() for line in inspect.cleandoc(raw).split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def _texts(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """(qualified name, raw text) of the docstrings in `node`, and of texts given to things written in C."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        doc = ast.get_docstring(node, clean=False)
        if doc:
            yield name, doc
        for child in node.body:
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from _texts(child, f"{name}.{child.name}")
            else:
                yield from _texts(child, name)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield from _added_docs(node.value)
    elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
        # The language reference is kept as one dictionary: topic -> text.
        for key, value in zip(node.value.keys, node.value.values):
            if name.startswith("pydoc_data") and _is_text(key) and _is_text(value):
                yield f"{name}.{key.value}", value.value
    elif isinstance(node, ast.Assign) and _is_text(node.value):
        target = ast.unparse(node.targets[0])
        if target.endswith("__doc__"):
            yield f"{name}.{target}".removesuffix(".__doc__"), node.value.value
    elif isinstance(node, (ast.If, ast.Try, ast.With)):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    yield from _texts(child, f"{name}.{child.name}")
                else:
                    yield from _texts(child, name)


def _added_docs(call: ast.Call) -> Iterator[tuple[str, str]]:
    """numpy's and scipy's `add_newdoc(place, name, text)` and `add_newdoc(name, text)`."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if "newdoc" not in function:
        return
    names = [a.value for a in call.args if _is_text(a) and len(a.value) < 100]
    for argument in call.args:
        parts = argument.elts if isinstance(argument, ast.Tuple) else [argument]
        texts = [a.value for a in parts if _is_text(a)]
        if texts and len(texts[-1]) >= 100:
            member = texts[:1] if len(texts) > 1 else []
            yield ".".join(names + member), texts[-1]


def _is_text(node: ast.AST | None) -> TypeGuard[Any]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


# All of it --------------------------------------------------------------------------------------------------------


def read_documents(
    sources: Iterable[Source], processes: int | None = None, progress: Callable[[int], None] | None = None
) -> list[Document]:
    """The distinct documents of all sources, sorted; of equal texts the first in that order is kept.

    Args:
      processes: interpreters to read with; None takes one for each core, up to 8. The result does not depend on it.
      progress: called with the number of files just read.

    Raises:
      RuntimeError: a worker died.
    """
    sources = sorted(sources)
    processes = min(processes or min(os.cpu_count() or 1, 8), max(1, len(sources) // 50))
    if processes == 1:
        found = []
        for source in sources:
            found += read_source(source)
            if progress:
                progress(1)
    else:
        found = _read_with_workers(sources, processes, progress)
    kept: dict[str, Document] = {}
    for document in sorted(found):
        kept.setdefault(document.text, document)
    return sorted(kept.values())


def _read_with_workers(sources: list[Source], processes: int, progress) -> list[Document]:
    # Big files first and dealt out in turn, so that all workers end at about the same time.
    by_size = sorted(sources, key=lambda s: (-_size(s.path), s))
    shares = [by_size[i::processes] for i in range(processes)]
    # A thread a worker: a pipe that nobody empties would stop its worker.
    with concurrent.futures.ThreadPoolExecutor(processes) as threads:
        parts = threads.map(lambda share: _read_with_worker(share, progress), shares)
        return [document for part in parts for document in part]


def _read_with_worker(share: list[Source], progress) -> list[Document]:
    command = [sys.executable, "-I", __file__]
    found, done = [], 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        try:
            worker.stdin.write(json.dumps([dataclasses.astuple(s) for s in share]).encode())
            worker.stdin.close()
            for line in worker.stdout:
                found += [Document(*fields) for fields in json.loads(line)]
                done += 1
                if progress:
                    progress(1)
        except BaseException:
            worker.kill()
            raise
    if worker.returncode != 0 or done != len(share):
        raise RuntimeError(f"a reader of source files ended with status {worker.returncode}")
    return found


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def _work() -> None:
    """A worker: a JSON list of sources on standard input, one JSON line of documents a source on standard output."""
    sys.setrecursionlimit(5000)
    for fields in json.loads(sys.stdin.buffer.read()):
        documents = read_source(Source(*fields))
        sys.stdout.write(json.dumps([dataclasses.astuple(d) for d in documents]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _work()
