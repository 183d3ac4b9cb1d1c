"""Whether a bound value is of the kind that its parameter is annotated with, so that a wrong one is a line before the
run and no stack trace within it.

Annotations are those of this package: plain types, classes, unions, sequences and mappings. What cannot be judged fits.
"""

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

from gin import config as gin_config

_PLAIN = {int: "a whole number", float: "a number", bool: "True or False", str: "text", type(None): "None"}


def fits(value: Any, annotation: Any) -> bool:
    """`value` as gin binds it: references stand for what they will be."""
    if annotation in (Any, inspect.Parameter.empty) or isinstance(annotation, str):
        return True
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if isinstance(value, gin_config.ConfigurableReference):
        return _reference_fits(value, origin or annotation)
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in _PLAIN:
        return isinstance(value, annotation)
    if origin in (tuple, list, collections.abc.Sequence, collections.abc.Iterable):
        if not isinstance(value, (list, tuple)):
            return False
        if origin is tuple and arguments[-1:] != (...,):
            return len(value) == len(arguments) and all(map(fits, value, arguments))
        return all(fits(item, arguments[0]) for item in value)
    if origin in (dict, collections.abc.Mapping):
        return isinstance(value, dict) and all(
            fits(k, arguments[0]) and fits(v, arguments[1]) for k, v in value.items()
        )
    if origin is Callable or origin is collections.abc.Callable:
        return callable(value)
    # A class: only gin makes its objects.
    return not isinstance(annotation, type) or isinstance(value, annotation)


def _reference_fits(reference: gin_config.ConfigurableReference, annotation: Any) -> bool:
    """Of `@name()`, what it makes; of `@name`, which is handed over uncalled, that it is asked for."""
    if not reference.evaluate:
        return annotation not in _PLAIN and (not isinstance(annotation, type) or annotation is collections.abc.Callable)
    made = reference.configurable.wrapped
    if not isinstance(made, type):
        made = inspect.signature(made).return_annotation
    if not isinstance(made, type) or made is inspect.Parameter.empty or not isinstance(annotation, type):
        return True
    return issubclass(made, annotation) or (made in (int, float) and annotation in (int, float))


def words(annotation: Any) -> str:
    """What fits, for a person."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if origin in (typing.Union, types.UnionType):
        return " or ".join(words(one) for one in arguments)
    if origin in (tuple, list, collections.abc.Sequence, collections.abc.Iterable):
        return f"a list such as [{_example(arguments[0])}]"
    if origin in (dict, collections.abc.Mapping):
        return f"a dictionary such as {{{_example(arguments[0])}: {_example(arguments[1])}}}"
    if origin is Callable or origin is collections.abc.Callable:
        return "a function, @name"
    return f"a {annotation.__name__}, @name()" if isinstance(annotation, type) else "something else"


def _example(annotation: Any) -> str:
    if annotation in (int, float, str, bool):
        return {int: "1", float: "0.5", str: "'a'", bool: "True"}[annotation]
    return "..."
