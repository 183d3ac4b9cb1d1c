"""A model in an interactive session: load it, ask it, finetune it, save it. `from t5x_lite import Model`.

Everything is done by the parts of the jobs: `inference` is `infer`'s, `pairs` trains with `train`'s steps.
"""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from t5x_lite import buckets, checkpoints, optimizers, run_folder, vocabularies
from t5x_lite import pairs as _pairs
from t5x_lite.decoding import Decoder
from t5x_lite.errors import UserError, first_line
from t5x_lite.finetuning import Trainable
from t5x_lite.inference import Answer, Answerer, Row, Unusable, check_batch_size, check_prefix, check_vocabulary
from t5x_lite.losses import Loss
from t5x_lite.models import Model as PureModel
from t5x_lite.partitioning import MeshConfig, Partitioner, place
from t5x_lite.trainer import Trainer, TrainState

Pair = tuple[str, str]  # (input, target)


class Score(NamedTuple):
    """Of a target, given its input."""

    log_likelihood: float  # natural log, summed over the tokens
    tokens: int  # of the target, EOS included


class TextCut(UserWarning):
    """A text was longer than the model was to be given, and was cut."""


class Model:
    """A T5 model with its vocabulary, on this machine's devices.

    Texts are given as they were in training, with the task's prefix. Nothing here needs TensorFlow.

        model = Model.load("/tmp/t5x_lite/library")
        model.generate(["library: Computes the softmax."], method="beam", num_beams=4)
        model.score([("library: Computes the softmax.", "jax")])
        better = model.finetune([("library: Makes a plot.", "matplotlib"), …], steps=100)
        better.save("/tmp/t5x_lite/better")

    **Long texts.** A text of more tokens than `max_input_length` (a target: `max_target_length`), EOS included, is cut
    at its end as `t5x-lite infer` cuts it, and a `TextCut` warning says which; with `cut=False` it is an error.

    **Compiling.** The first call of a kind compiles (seconds; large models longer), later ones do not: one program for
    each power of two of input length, each of a few numbers of texts (`batch_size`, a quarter of it and so on), and
    each method of decoding. Temperatures, `top_p`, seeds, length penalties and maximal lengths need no program of
    their own.

    Attributes:
      config: the model's shape, a `T5Config`.
      params: the parameters, a nested dictionary of arrays.
      vocabulary: text to ids and back.
      step: of the checkpoint, and the steps of `finetune` since.
      losses: of each step of the `finetune` that made this model; empty for one that was loaded.
      answerer: what texts go through.
    """

    def __init__(self, answerer: Answerer, step: int = 0, cut: bool = True, losses: Sequence[float] = ()):
        self.answerer, self.step, self._cut, self.losses = answerer, step, cut, tuple(losses)
        self.config, self.params = answerer.model.config, answerer.params
        self.vocabulary = answerer.vocabulary

    @classmethod
    def load(
        cls,
        path: epath.PathLike,
        *,
        step: int | None = None,
        vocabulary: vocabularies.Vocabulary | None = None,
        mesh: MeshConfig | None = None,
        batch_size: int | None = None,
        max_input_length: int = 512,
        max_target_length: int = 512,
        cut: bool = True,
    ) -> "Model":
        """The model of a checkpoint.

        Args:
          path: MODEL_DIR, its `checkpoints` folder (the newest step, or `step`), one step's folder, a Hugging Face
            folder (config.json, weights, spiece.model), or a T5X or Mesh TensorFlow checkpoint.
          vocabulary: for a checkpoint that has none, or instead of its own:
            `vocabularies.SentencePieceVocabulary.from_path("spiece.model")` or `vocabularies.ByteVocabulary()`.
          mesh: the devices; by default all, which share each batch.
          batch_size: texts at a time, at most; by default 32, or so many that the devices share them evenly.
          max_input_length, max_target_length: tokens, EOS included.
          cut: whether longer texts are cut, with a warning, or are an error.

        Raises:
          UserError: no checkpoint, no vocabulary, or one that does not fit the model.
        """
        for name, value in (("max_input_length", max_input_length), ("max_target_length", max_target_length)):
            _check_whole(name, value, 2)
        partitioner = (mesh or MeshConfig()).build()
        shards = partitioner.batch_shards
        batch_size = -(-32 // shards) * shards if batch_size is None else _check_whole("batch_size", batch_size)
        check_batch_size(batch_size, partitioner)
        model, params, meta = checkpoints.load_for_inference(path, step, partitioner)
        if vocabulary is None:
            vocabulary = _vocabulary_of(path, meta)
        check_vocabulary(vocabulary, model, path, "give the vocabulary it was trained with (vocabulary=…)")
        answerer = Answerer(
            model, params, vocabulary, partitioner, batch_size, max_input_length, max_target_length, adapts_rows=True
        )
        return cls(answerer, int(meta["step"]), cut)

    def generate(
        self,
        texts: Sequence[str],
        *,
        method: str = "greedy",
        max_length: int = 128,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        num_beams: int = 4,
        length_penalty: float = 0.6,
        beam_rule: str = "t5x",
        num_return_sequences: int = 1,
        decoder_prefix: str = "",
    ) -> list[str] | list[list[str]]:
        """The model's answers: what `t5x-lite infer` gives for a file of these lines.

            model.generate(["translate English to German: A house."])            # ["Ein Haus."]
            model.generate(texts, method="sample", temperature=0.7, num_return_sequences=3)

        Args:
          method, …, num_return_sequences: as `decoding.Decoder` has them. Samples are a function of the seed and a
            text's place in the list.
          decoder_prefix: text that every answer begins with.

        Returns:
          A text for each of `texts`; with `num_return_sequences` over 1 a list of texts each, the best first (of beams
          sometimes fewer).

        Raises:
          UserError: a setting that makes no sense, or a text that cannot be used.
        """
        try:
            decoder = Decoder(
                max_length,
                method,
                temperature,
                top_k,
                top_p,
                seed,
                num_beams,
                length_penalty,
                beam_rule,
                num_return_sequences,
            )
        except UserError as e:  # gin adds lines of its own
            raise UserError(first_line(e)) from None
        prefix = tuple(self.vocabulary.encode(decoder_prefix))
        check_prefix(prefix, decoder)
        answers = _sound(self.answerer.predict(self._read_texts(texts, decoder=decoder, prefix=prefix)))
        if num_return_sequences > 1:
            return [list(answer.texts) for answer in answers]
        return [answer.texts[0] for answer in answers]

    def score(self, pairs: Sequence[Pair]) -> list[Score]:
        """The log-likelihood of each target, and its number of tokens: what `t5x-lite infer` gives in mode "score".

            model.score([("cola: A boy is.", "acceptable")])      # [Score(log_likelihood=-0.7, tokens=3)]

        Args:
          pairs: (input, target) each.

        Raises:
          UserError: what is no pair of texts, or cannot be used.
        """
        rows = self._read_pairs(pairs)
        answers = _sound(self.answerer.score(rows))
        return [Score(a.scores[0], len(row.targets[0])) for a, row in zip(answers, rows, strict=True)]

    def finetune(
        self,
        pairs: Sequence[Pair],
        *,
        steps: int,
        learning_rate: float | optimizers.Schedule = 1e-3,
        batch_size: int = 16,
        dropout_rate: float = 0.1,
        seed: int = 0,
        optimizer: optimizers.Optimizer | None = None,
        loss: Loss | None = None,
        trainable: Trainable | None = None,
        on_step: _pairs.OnStep | None = None,
    ) -> "Model":
        """A new model that was trained on the pairs; this one stays as it is, and both are in memory.

            better = model.finetune([("animal: barks", "dog"), ("animal: purrs", "cat")], steps=50)
            better.losses[-1]

        T5's way: Adafactor at a constant 1e-3, with dropout. Every epoch has its own order. The same pairs, seed and
        settings give the same parameters, on the same devices bit by bit. The optimizer's state is not kept: another
        `finetune` begins with a new one. Parameters of 16 bits are trained, and stay, as float32.

        For data that do not fit in memory, checkpoints on the way or several machines use `t5x-lite train`.

        Args:
          pairs: (input, target) each; repeated as often as the steps need.
          steps: updates.
          learning_rate: a number, or a schedule of `optimizers`.
          batch_size: pairs of an update.
          dropout_rate: while training.
          seed: of order and dropout.
          optimizer: instead of Adafactor with `learning_rate`, for example `optimizers.adamw(learning_rate=…)`.
          loss: by default `Loss()`.
          trainable: which parameters change; by default all.
          on_step: called with (step, its metrics) after each, such as {"loss": 2.3, "accuracy": 0.4, …}.

        Raises:
          UserError: a setting that makes no sense, no pairs, or a loss that stays not finite.
        """
        _check_whole("steps", steps)
        _check_whole("batch_size", batch_size)
        check_batch_size(batch_size, self.answerer.partitioner)
        if not 0 <= dropout_rate < 1:
            raise UserError(f"dropout_rate must be in [0, 1), not {dropout_rate!r}")
        rows = self._read_pairs(pairs)
        if not rows:
            raise UserError("pairs is empty: give at least one (input, target)")
        param_dtype = "float32" if self.config.param_dtype in ("bfloat16", "float16") else self.config.param_dtype
        config = dataclasses.replace(self.config, dropout_rate=dropout_rate, param_dtype=param_dtype)
        trainer = _trainer(
            PureModel(config),
            optimizer or _adafactor(learning_rate),
            loss or Loss(),
            self.answerer.partitioner,
            seed,
            trainable or Trainable(),
        )
        lengths = self.answerer.max_input_length, self.answerer.max_target_length
        source = _pairs.blocks(rows, self.vocabulary, *lengths, seed)
        params, losses = _pairs.train(trainer, self.params, source, steps, batch_size, on_step)
        model = PureModel(dataclasses.replace(self.config, param_dtype=param_dtype))
        a = self.answerer
        answerer = Answerer(model, params, self.vocabulary, a.partitioner, a.batch_size, *lengths, adapts_rows=True)
        return Model(answerer, self.step + steps, self._cut, losses)

    def save(self, path: epath.PathLike) -> None:
        """Writes a MODEL_DIR with this one checkpoint, for `Model.load`, `t5x-lite infer`, `eval`, `convert`, and as
        INITIAL_CHECKPOINT_PATH of `train`.

        It is there when it is whole. The optimizer's state is not part of it.

        Raises:
          UserError: there is something at `path`, or nothing can be written there.
        """
        folder = run_folder.unwritten(path)
        try:
            if buckets.is_remote(folder):
                self._write(folder)
                return
            with run_folder.made_beside(folder) as unfinished:
                self._write(unfinished)
        except OSError as e:
            raise UserError(f"{path} cannot be written ({e.strerror or e}): mend that, or name another folder") from e

    def _write(self, folder: epath.Path) -> None:
        step = place(np.int32(self.step), self.answerer.partitioner.replicated)
        meta = {"model": self.config.to_dict(), "vocabulary": self.vocabulary.to_dict()}
        with checkpoints.Checkpointer(folder, asynchronous=False) as checkpointer:
            checkpointer.save(TrainState(step, self.params, {}), {}, meta)

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return f"Model({count:,} parameters, step {self.step}, {self.vocabulary!r})"

    def _read_texts(self, texts: Sequence[str], **asked) -> list[Row]:
        rows = []
        for i, text in enumerate(_listed("texts", texts)):
            rows.append(self._read(f"texts[{i}]", text, row_id=i, **asked))
        return rows

    def _read_pairs(self, pairs: Sequence[Pair]) -> list[Row]:
        rows = []
        for i, pair in enumerate(_listed("pairs", pairs)):
            if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
                raise UserError(f"pairs[{i}] must be (input, target), two texts, not {pair!r}")
            rows.append(self._read(f"pairs[{i}]", pair[0], (pair[1],)))
        return rows

    def _read(self, name: str, text: str, targets: tuple[str, ...] = (), **asked) -> Row:
        for given in (text, *targets):
            if not isinstance(given, str):
                raise UserError(f"{name} must be text, not {given!r}")
        try:
            row = self.answerer.read(text, targets, **asked)
        except Unusable as e:
            raise UserError(f"{name} has {e}: give Unicode text") from e
        if row.truncated:
            a = self.answerer
            most = f"max_input_length={a.max_input_length}" + (
                f" or max_target_length={a.max_target_length}" if targets else ""
            )
            if not self._cut:
                raise UserError(f"{name} has more tokens than {most}: shorten it, or raise that in Model.load")
            warnings.warn(f"{name} was cut: it has more tokens than {most} of Model.load", TextCut, stacklevel=4)
        return row


def _vocabulary_of(path: epath.PathLike, meta: dict[str, Any]) -> vocabularies.Vocabulary:
    if meta.get("vocabulary"):
        return vocabularies.from_dict(meta["vocabulary"])
    folder = epath.Path(path)
    also = ""
    if (folder / "config.json").exists():
        also = " (a Hugging Face folder has spiece.model beside config.json; tokenizer.json alone is not read)"
    raise UserError(
        f"{path} carries no vocabulary{also}: give one, "
        'Model.load(…, vocabulary=vocabularies.SentencePieceVocabulary.from_path("spiece.model"))'
    )


def _adafactor(learning_rate: float | optimizers.Schedule) -> optimizers.Optimizer:
    if callable(learning_rate):
        return optimizers.adafactor(learning_rate)
    if not isinstance(learning_rate, (int, float)) or not 0 < learning_rate < float("inf"):
        raise UserError(f"learning_rate must be a number above 0, or a schedule, not {learning_rate!r}")
    return _constant_adafactor(float(learning_rate))


# Kept, so that a second `finetune` of the same settings compiles nothing again: an optimizer equals only itself.
@functools.lru_cache(maxsize=8)
def _constant_adafactor(learning_rate: float) -> optimizers.Optimizer:
    return optimizers.adafactor(optimizers.constant_rate(learning_rate))


@functools.lru_cache(maxsize=4)
def _trainer(
    model: PureModel,
    optimizer: optimizers.Optimizer,
    loss: Loss,
    partitioner: Partitioner,
    seed: int,
    trainable: Trainable,
) -> Trainer:
    return Trainer(model, optimizer, loss, partitioner, seed, trainable=trainable)


def _sound(answers: list[Answer]) -> list[Answer]:
    for answer in answers:
        if answer.error is not None:
            raise UserError(answer.error)
    return answers


def _listed(name: str, values: Sequence[Any]) -> Sequence[Any]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise UserError(f"{name} must be a list, not {type(values).__name__}: write [{name[:-1]}]")
    return values


def _check_whole(name: str, value: int, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return value
