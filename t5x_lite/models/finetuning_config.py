"""What parameter-efficient finetuning adds to a model: one small class of choices for each method.

They stand in T5Config, so that a checkpoint explains itself, and can be combined. Which parameters are trained is
another choice: `t5x_lite.finetuning.Trainable`.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import gin
from t5x_lite.errors import UserError

ADAPTED_BLOCKS = ("attention", "mlp")
PROMPT_STARTS = ("vocabulary", "random")


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class Adapters:
    """Bottlenecks in the residual stream: x + wo(relu(wi(norm(x)))), nothing at the start since wo is zero.

    Houlsby et al. 2019, https://arxiv.org/abs/1902.00751, as T5's study has them (Raffel et al. 2020, section 3.5.1):
    with a norm of their own, at the end of a block, inside the residual stream.

    Attributes:
      inner_dim: width of the bottleneck; the study tries 32, 128, 512 and 2048.
      after: the blocks that an adapter follows: ("mlp",) is the study's, one a layer, ("attention", "mlp") Houlsby's.

    Raises:
      UserError: a width below one, or an unknown block.
    """

    inner_dim: int = 128
    after: tuple[str, ...] = ("mlp",)

    def __post_init__(self):
        object.__setattr__(self, "after", tuple(self.after))
        _whole("Adapters.inner_dim", self.inner_dim)
        if not self.after or set(self.after) - set(ADAPTED_BLOCKS):
            raise UserError(f"Adapters.after must name some of {', '.join(ADAPTED_BLOCKS)}, not {self.after!r}")


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class LoRA:
    """Low-rank changes of kernels: x W + (alpha / rank) (x A) B, nothing at the start since B is zero.

    Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1.

    Attributes:
      rank: of A [input, rank] and B [rank, output].
      alpha: the change is scaled by alpha / rank.
      kernels: regular expressions of the whole paths of kernels inside the layers, written as in a model with scanned
        layers (`encoder/layers/attention/query/kernel`); by default every query and value (the paper's section 7.1).

    Raises:
      UserError: a rank below one, or no regular expression. (One that no kernel matches is refused by the model.)
    """

    rank: int = 8
    alpha: float = 16.0
    kernels: tuple[str, ...] = (r".*/(query|value)/kernel",)

    def __post_init__(self):
        object.__setattr__(self, "kernels", tuple(self.kernels))
        _whole("LoRA.rank", self.rank)
        for pattern in self.kernels:
            try:
                re.compile(pattern)
            except re.error as e:
                raise UserError(f"LoRA.kernels: {pattern!r} is no regular expression ({e})") from e
        if not self.kernels:
            raise UserError("LoRA.kernels is empty; name the kernels to change")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def changes(self, path: str) -> bool:
        """Whether the kernel of this path, written with scanned layers, is changed."""
        return any(re.fullmatch(pattern, path) for pattern in self.kernels)


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class IA3:
    """Learned vectors, ones at the start, that scale keys, values and the hidden units of the feed-forward block.

    Liu et al. 2022, https://arxiv.org/abs/2205.05638, section 3.3.
    """


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class PromptTuning:
    """Learned vectors in front of the encoder's embedded input (Lester et al. 2021, https://arxiv.org/abs/2104.08691).

    Attributes:
      length: how many.
      start: "vocabulary", embeddings of sampled frequent tokens (section 3.2), or "random", uniform in ±1/2.
      sampled_from: the first so many tokens of the vocabulary, special ones left out; word pieces are sorted by
        frequency.

    Raises:
      UserError: a length below one, or an unknown start.
    """

    length: int = 100
    start: str = "vocabulary"
    sampled_from: int = 5000

    def __post_init__(self):
        _whole("PromptTuning.length", self.length)
        _whole("PromptTuning.sampled_from", self.sampled_from)
        if self.start not in PROMPT_STARTS:
            raise UserError(f"PromptTuning.start must be one of {', '.join(PROMPT_STARTS)}, not {self.start!r}")


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class BitFit:
    """A bias, zero at the start, after every product of attention and feed-forward blocks: T5 has none to train.

    Ben Zaken et al. 2021, https://arxiv.org/abs/2106.10199.
    """


METHODS = {"adapters": Adapters, "lora": LoRA, "ia3": IA3, "prompt": PromptTuning, "bitfit": BitFit}


def as_scanned(path: str) -> str:
    """A parameter's path as it is where layers are scanned: `encoder/layers_3/…` -> `encoder/layers/…`."""
    return re.sub(r"(^|/)layers_\d+/", r"\1layers/", path)


def check(values: Mapping[str, Any]) -> None:
    """Raises UserError unless each of T5Config's fields named in METHODS holds None or an object of its class."""
    for name, method in METHODS.items():
        if values[name] is not None and not isinstance(values[name], method):
            raise UserError(f"T5Config.{name} must be None or @{method.__name__}(), not {values[name]!r}")


def check_kernels(lora: LoRA | None, paths: Sequence[str]) -> None:
    """Raises UserError for a pattern of LoRA's that matched no kernel of a model with these parameters."""
    changed = [as_scanned(p).removesuffix("lora_a") + "kernel" for p in paths if p.endswith("/lora_a")]
    for pattern in lora.kernels if lora else ():
        if not any(re.fullmatch(pattern, kernel) for kernel in changed):
            raise UserError(
                f"LoRA.kernels: {pattern!r} matches no kernel of a layer; paths are such as "
                "encoder/layers/attention/query/kernel"
            )


def to_dict(values: Mapping[str, Any]) -> dict[str, Any]:
    """T5Config's fields as JSON-able dictionaries, without the methods that are not used."""
    return {name: _lists(dataclasses.asdict(values[name])) for name in METHODS if values[name] is not None}


def from_dict(values: Mapping[str, Any]) -> dict[str, Any]:
    """The objects that `to_dict` described; reads no gin binding, since every field is passed.

    Raises:
      UserError: a field that the method does not have.
    """
    made = {}
    for name, method in METHODS.items():
        if values.get(name) is None:
            continue
        defaults = {f.name: f.default for f in dataclasses.fields(method)}
        unknown = sorted(set(values[name]) - set(defaults))
        if unknown:
            raise UserError(f"the checkpoint's model configuration has unknown fields of {name}: {', '.join(unknown)}")
        made[name] = method(**{**defaults, **values[name]})
    return made


def _lists(values: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _whole(name: str, value: Any) -> None:
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{name} must be a whole number of at least 1, not {value!r}")
