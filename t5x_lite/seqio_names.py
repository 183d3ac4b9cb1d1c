"""What a task or mixture is called, and what it stands for: registered names, files, and rates of several.

    "pydocs_summarize"                                     a registered task or mixture
    "tsv:/data/train.tsv"                                  files (text_files.py)
    {"tsv:/data/train.tsv": 1.0, "pydocs_library": 0.5}    a mixture of any of them at the rates given

Each is a seqio task or mixture in the end. Those that are not registered by a module are registered here, under a name
with a mark that tells what they were made of, so that another vocabulary or other options are another task.
"""

import dataclasses
import functools
import importlib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypeAlias

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import seqio

from t5x_lite import text_files, vocabularies
from t5x_lite.data import FallbackVocabulary, derive_seed
from t5x_lite.errors import UserError, did_you_mean, nearest
from t5x_lite.seqio_sources import plain_name
from t5x_lite.text_files import TextFiles

Provider: TypeAlias = seqio.Task | seqio.Mixture


class Names(Protocol):
    """What says which task is meant: SeqioSource and Evaluation."""

    @property
    def mixture_or_task_name(self) -> str | Mapping[str, float]: ...
    @property
    def task_modules(self) -> Iterable[str]: ...
    @property
    def vocabulary(self) -> vocabularies.Vocabulary | None: ...
    @property
    def text_files(self) -> TextFiles | None: ...
    @property
    def named_files(self) -> Mapping[str, TextFiles]: ...


@dataclasses.dataclass(frozen=True)
class Named:
    """Names by themselves, for what reads a task and is neither."""

    mixture_or_task_name: str | Mapping[str, float]
    task_modules: Iterable[str]
    vocabulary: vocabularies.Vocabulary | None
    text_files: TextFiles | None
    named_files: Mapping[str, TextFiles]


# (files, the task's name, vocabulary) -> a task. Set by a task module, which knows objectives and metrics.
_make_text_task: Callable[[TextFiles, str, seqio.Vocabulary], seqio.Task] | None = None


def makes_text_tasks(function):
    """Decorates the function that makes a seqio task of text files."""
    global _make_text_task
    _make_text_task = function
    return function


def find(config: Names, fallback_vocabulary: FallbackVocabulary = None) -> Provider:
    """The task or mixture that is meant, on the vocabulary that is asked for.

    Args:
      fallback_vocabulary: called for that of files, where `config` names none and no registered task is mixed in.

    Raises:
      UserError: a module that cannot be imported, an unknown name (with the nearest ones), rates that are not positive,
        tasks that cannot be mixed, or files without a vocabulary.
    """
    for module in config.task_modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as e:
            raise UserError(f"task_modules names {module!r}, which cannot be imported: {e}") from e
    asked = config.mixture_or_task_name
    names = list(asked) if isinstance(asked, Mapping) else [asked]
    if not names:
        raise UserError("MIXTURE_OR_TASK_NAME is empty; name a task, or {'a task': 1.0, 'another': 2.0}")
    files = {name: _files(name, config) for name in names}
    registered = {name: _registered(name, config) for name in names if files[name] is None}
    if config.vocabulary is not None:
        chosen = _to_seqio(config.vocabulary)
        registered = {name: _with_vocabulary(provider, config.vocabulary) for name, provider in registered.items()}
    elif registered:
        chosen = next(iter(registered.values())).output_features["targets"].vocabulary
    else:
        fallback = fallback_vocabulary() if fallback_vocabulary else None
        chosen = None if fallback is None else _to_seqio(fallback)
    made = {name: _text_task(name, files[name], chosen) for name in names if files[name] is not None}
    if not isinstance(asked, Mapping):
        return (registered | made)[asked]
    return _mixture({name: (registered | made)[name] for name in names}, asked)


def vocabulary_of(provider: Provider) -> vocabularies.Vocabulary:
    """The TensorFlow-free twin of the targets' vocabulary."""
    return vocabularies.from_seqio(provider.output_features["targets"].vocabulary)


def check_lengths(provider: Provider, lengths: Mapping[str, int]) -> None:
    """UserError if a feature that the tasks always make has no length."""
    check_named([name for name, feature in provider.output_features.items() if feature.required], lengths)


def check_named(features: Iterable[str], lengths: Mapping[str, int]) -> None:
    """UserError if one of the features has no length."""
    if missing := [name for name in features if name not in lengths]:
        raise UserError(
            f'TASK_FEATURE_LENGTHS lacks {", ".join(missing)}; for example {{"inputs": 512, "targets": 114}}'
        )
    if wrong := [name for name, length in lengths.items() if length < 1]:
        raise UserError(
            f"TASK_FEATURE_LENGTHS has {lengths[wrong[0]]} for {wrong[0]}: give at least 1, the end of a text"
        )


# Registered by a module ----------------------------------------------------------------------------------------------


def _registered(name: str, config: Names) -> Provider:
    names = set(seqio.TaskRegistry.names()) | set(seqio.MixtureRegistry.names())
    if name not in names:
        known = sorted({n for n in names if "#" not in n} | set(config.named_files))
        hint = did_you_mean(nearest(name, known))
        if os.path.exists(os.path.expanduser(name)):
            hint = f"; for a file write tsv:{name}, jsonl:{name} or text:{name}"
        raise UserError(f"MIXTURE_OR_TASK_NAME = {name!r} is not registered by {', '.join(config.task_modules)}{hint}")
    return seqio.get_mixture_or_task(name)


def _with_vocabulary(provider: Provider, vocabulary) -> Provider:
    """The same task or mixture on another vocabulary."""
    name = f"{provider.name}#{derive_seed(vocabulary.to_dict()):08x}"
    if isinstance(provider, seqio.Mixture):
        if name not in seqio.MixtureRegistry.names():
            # Rates may look at the data, which may not be there: that is found out, and said, later.
            rates = [
                (_with_vocabulary(task, vocabulary).name, functools.partial(_rate, provider, task))
                for task in provider.tasks
            ]
            seqio.MixtureRegistry.add(name, rates)
        return seqio.get_mixture_or_task(name)
    if name not in seqio.TaskRegistry.names():
        other = _to_seqio(vocabulary)
        features = {key: type(f)(**{**vars(f), "vocabulary": other}) for key, f in provider.output_features.items()}
        seqio.TaskRegistry.add_provider(name, provider.replace(name=name, output_features=features))
    return seqio.get_mixture_or_task(name)


def _rate(mixture: seqio.Mixture, task: seqio.Task, unused_renamed: seqio.Task) -> float:
    return mixture.get_rate(task)


class _ModelInMemory(seqio.SentencePieceVocabulary):
    """seqio's vocabulary on a model that is not in a file: a checkpoint's, or one whose sentinels are in already."""

    def __init__(self, vocabulary: vocabularies.SentencePieceVocabulary):
        self._proto, self._twin = vocabulary.model_proto, vocabulary
        super().__init__("", extra_ids=vocabulary.extra_ids)

    @property
    def sp_model(self) -> bytes:
        return self._proto

    @property
    def tokenizer(self):
        return self._twin.processor


def _to_seqio(vocabulary) -> seqio.Vocabulary:
    if isinstance(vocabulary, vocabularies.ByteVocabulary):
        return seqio.ByteVocabulary(extra_ids=vocabulary.extra_ids)
    return _ModelInMemory(vocabulary)


# Files ---------------------------------------------------------------------------------------------------------------


def _files(name: str, config: Names) -> TextFiles | None:
    """The files that a name stands for; None where it is a registered one."""
    if name in config.named_files:
        return config.named_files[name]
    if not text_files.is_file_name(name):
        return None
    options = config.text_files or TextFiles()
    if options.train is not None:
        raise UserError(
            f"TextFiles.train = {options.train!r}, and MIXTURE_OR_TASK_NAME names {name!r}: give files of "
            "their own a name in TEXT_FILES"
        )
    several = (
        isinstance(config.mixture_or_task_name, Mapping)
        and sum(text_files.is_file_name(n) for n in config.mixture_or_task_name) > 1
    )
    if several and (options.validation or options.test):
        raise UserError(
            "TextFiles.validation or .test would be that of each file of MIXTURE_OR_TASK_NAME: give files "
            "of their own a name in TEXT_FILES"
        )
    return dataclasses.replace(options, train=name)


def _text_task(name: str, files: TextFiles, vocabulary: seqio.Vocabulary | None) -> seqio.Task:
    if vocabulary is None:
        raise UserError(
            f"{name}: files have no vocabulary of their own; set VOCABULARY = @ByteVocabulary(), or "
            "@SentencePieceVocabulary() with SentencePieceVocabulary.path, or start from a checkpoint"
        )
    if _make_text_task is None:
        raise UserError(f"{name}: no module of TASK_MODULES makes tasks of files; add 't5x_lite.tasks' to it")
    short = text_files.short_name(name) if text_files.is_file_name(name) else name
    marked = f"{short}#{derive_seed(files, vocabularies.from_seqio(vocabulary).to_dict()):08x}"
    # Made anew each time: the files may be others by now.
    if marked in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(marked)
    seqio.TaskRegistry.add_provider(marked, _make_text_task(files, marked, vocabulary))
    return seqio.TaskRegistry.get(marked)


# Mixtures ------------------------------------------------------------------------------------------------------------


def _mixture(members: Mapping[str, Provider], rates: Mapping[str, float]) -> seqio.Mixture:
    for name, rate in rates.items():
        if type(rate) not in (int, float) or not 0 < rate < float("inf"):
            raise UserError(f"MIXTURE_OR_TASK_NAME[{name!r}] = {rate!r}: a rate is a number above 0")
    tasks: dict[str, str] = {}
    first, *others = members.values()
    for asked, provider in members.items():
        for task in provider.tasks if isinstance(provider, seqio.Mixture) else [provider]:
            other = tasks.setdefault(plain_name(task.name), asked)
            if other != asked:
                raise UserError(
                    f"{other!r} and {asked!r} are both called {plain_name(task.name)}; give files a name "
                    "of their own in TEXT_FILES"
                )
    for provider in others:
        have, want = provider.output_features, first.output_features
        if set(have) != set(want) or any(have[key].vocabulary != want[key].vocabulary for key in want):
            raise UserError(
                f"{plain_name(first.name)} and {plain_name(provider.name)} cannot be mixed, since they "
                "have other features or vocabularies; set VOCABULARY, or choose tasks of one kind"
            )
    marked = f"mixture#{derive_seed([(members[name].name, rate) for name, rate in rates.items()]):08x}"
    if marked in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.remove(marked)
    seqio.MixtureRegistry.add(marked, [(members[name].name, rate) for name, rate in rates.items()])
    return seqio.MixtureRegistry.get(marked)
