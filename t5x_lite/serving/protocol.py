"""What a request to /generate may say, and what is wrong with one."""

import dataclasses
import json
from typing import Any

from t5x_lite.decoding import Decoder
from t5x_lite.errors import UserError, did_you_mean, first_line, nearest

# A setting of `Decoder` -> the JSON types that it may have.
SETTINGS: dict[str, tuple[type, ...]] = {
    "method": (str,),
    "max_length": (int,),
    "temperature": (int, float),
    "top_k": (int,),
    "top_p": (int, float),
    "seed": (int,),
    "num_beams": (int,),
    "length_penalty": (int, float),
    "beam_rule": (str,),
    "num_return_sequences": (int,),
}
_NAMES = {str: "text", int: "a whole number", float: "a number"}


class Refused(Exception):
    """A request that is not answered.

    Attributes:
      status: of HTTP.
      message: one line.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, first_line(message)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
      bytes: of its body.
      texts: at a time.
      length: tokens of an answer, EOS included.
      beams: `num_beams` and `num_return_sequences`, at most.
      seconds: until it is answered.
    """

    bytes: int
    texts: int
    length: int
    beams: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Request:
    """A request that was understood. `single`: whether one text was given, and one answer is expected."""

    texts: list[str]
    decoder: Decoder
    decoder_prefix: str
    single: bool


def parse(body: bytes, defaults: Decoder, limits: Limits) -> Request:
    """What the body of a request asks for.

    Args:
      body: a JSON object: "text", or "texts" with a list; "decoder_prefix"; and settings of `Decoder`.
      defaults: what it does not say.

    Raises:
      Refused: it cannot be understood, or asks for too much.
    """
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as e:
        raise Refused(400, f"not JSON: {e}") from e
    if not isinstance(values, dict):
        raise Refused(400, 'not a JSON object: write {"text": "…"}')
    known = ("text", "texts", "decoder_prefix", *SETTINGS)
    for name in values:
        if name not in known:
            near = did_you_mean(nearest(name, known, n=1))
            raise Refused(400, f"unknown field {name[:80]!r}{near}; there are {', '.join(known)}")
    texts = _texts(values, limits)
    prefix = values.get("decoder_prefix", "")
    if not isinstance(prefix, str):
        raise Refused(400, "field 'decoder_prefix' is not text")
    try:
        prefix.encode("utf-8")
    except UnicodeEncodeError as e:
        raise Refused(400, "field 'decoder_prefix' has a lone surrogate: give Unicode text") from e
    return Request(texts, _decoder(values, defaults, limits), prefix, "text" in values)


def _texts(values: dict[str, Any], limits: Limits) -> list[str]:
    if ("text" in values) == ("texts" in values):
        raise Refused(
            400, "one of the fields 'text' and 'texts' is needed" + (", not both" if "text" in values else "")
        )
    texts = [values["text"]] if "text" in values else values["texts"]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise Refused(400, "field 'text' is not text" if "text" in values else "field 'texts' is not a list of texts")
    if len(texts) > limits.texts:
        raise Refused(413, f"{len(texts)} texts are more than the {limits.texts} of a request: ask in several")
    return texts


def _decoder(values: dict[str, Any], defaults: Decoder, limits: Limits) -> Decoder:
    settings = {name: values[name] for name in SETTINGS if name in values}
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, SETTINGS[name]):
            raise Refused(400, f"field {name!r} is not {_NAMES[SETTINGS[name][-1]]}")
    for name, most in (
        ("max_length", limits.length),
        ("num_beams", limits.beams),
        ("num_return_sequences", limits.beams),
        ("seed", 2**32 - 1),
        ("top_k", 2**31 - 1),
    ):
        if settings.get(name, 0) > most:
            raise Refused(400, f"{name} = {settings[name]} is over {most}, the most that is answered here")
    try:
        settings |= {name: float(value) for name, value in settings.items() if float in SETTINGS[name]}
        return dataclasses.replace(defaults, **settings)
    except (UserError, OverflowError) as e:
        raise Refused(400, first_line(e).removeprefix("Decoder.")) from e
