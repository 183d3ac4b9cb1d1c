"""Text to ids and back, without TensorFlow: sentencepiece and bytes, equal to seqio's vocabularies of the same names.

A checkpoint carries its vocabulary as a JSON dictionary (`to_dict`), so that nothing but the checkpoint is needed to
read text in and write text out. Id 0 is padding everywhere; sentinels (`<extra_id_0>` …) are the last ids of a
sentencepiece vocabulary, counted downwards.
"""

import base64
import binascii
import hashlib
import logging
import struct
from collections.abc import Iterable

import sentencepiece
from etils import epath

import gin
from t5x_lite.errors import UserError

PAD_ID = 0


class SentencePieceVocabulary:
    """A sentencepiece model and `extra_ids` sentinels after its own pieces (`seqio.SentencePieceVocabulary`).

    Sentinels are user-defined pieces of the model itself, so the text `<extra_id_0>` at the start of a word encodes to
    one id and decodes back. With `reverse_extra_ids` (T5's order) `<extra_id_0>` has the highest id.

    Attributes:
      model_proto: the serialized model, sentinels included.

    Raises:
      UserError: `model_proto` is not a sentencepiece model, or has some sentinels but not `extra_ids` of them.
    """

    def __init__(self, model_proto: bytes, extra_ids: int = 100, reverse_extra_ids: bool = True):
        base = _processor(model_proto)
        sentinels = [f"▁<extra_id_{i}>" for i in range(extra_ids)]
        present = [base.id_to_piece(base.piece_to_id(piece)) == piece for piece in sentinels]
        if all(present):  # a model that came out of a checkpoint or of seqio, or extra_ids=0
            self._sp = base
        elif any(present):
            raise UserError(
                f"The sentencepiece model has {sum(present)} of the {extra_ids} sentinels "
                f"<extra_id_0> ... asked for: set extra_ids={sum(present)}."
            )
        else:
            self._sp = _processor(
                model_proto
                + b"".join(
                    _user_defined_piece(piece) for piece in (reversed(sentinels) if reverse_extra_ids else sentinels)
                )
            )
        self.extra_ids = extra_ids
        # Written out again by the library, so that equal models are equal bytes whoever put the sentinels in.
        self.model_proto = self._sp.serialized_model_proto()
        if self._sp.pad_id() != PAD_ID:
            logging.getLogger(__name__).warning(
                "The sentencepiece model has pad id %d, but id 0 is treated as padding: train it with pad_id=0.",
                self._sp.pad_id(),
            )

    @classmethod
    def from_path(
        cls, path: epath.PathLike, extra_ids: int = 100, reverse_extra_ids: bool = True
    ) -> "SentencePieceVocabulary":
        """Reads a `.model` file (local or remote). Raises UserError where it is missing or not a model."""
        try:
            model_proto = epath.Path(path).read_bytes()
        except OSError as e:
            raise UserError(
                f"Cannot read the sentencepiece model {path} ({type(e).__name__}): check SentencePieceVocabulary.path."
            ) from e
        try:
            return cls(model_proto, extra_ids, reverse_extra_ids)
        except UserError as e:
            raise UserError(f"{path}: {e}") from e

    @property
    def processor(self) -> sentencepiece.SentencePieceProcessor:
        """The library's own object on `model_proto`."""
        return self._sp

    @property
    def vocab_size(self) -> int:
        """Number of ids, sentinels included."""
        return self._sp.get_piece_size()

    @property
    def pad_id(self) -> int:
        return PAD_ID

    @property
    def eos_id(self) -> int:
        return self._sp.eos_id()

    @property
    def unk_id(self) -> int:
        return self._sp.unk_id()

    @property
    def bos_id(self) -> int:
        return self._sp.bos_id()

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without EOS."""
        return self._sp.encode_as_ids(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` up to the first EOS; ids beyond the vocabulary (padded embedding rows) read as unknown."""
        size, unk_id = self.vocab_size, self.unk_id
        return self._sp.decode_ids(_up_to_eos([int(i) if i < size else unk_id for i in ids], self.eos_id))

    def without_sentinels(self) -> bytes:
        """The serialized model of its own pieces alone, for readers that add the sentinels themselves."""
        sentinels = {f"▁<extra_id_{i}>" for i in range(self.extra_ids)}
        proto, at, kept = self.model_proto, 0, []
        while at < len(proto):  # the fields of ModelProto; pieces are field 1, each with its text as field 1
            start = at
            key, at = _read_varint(proto, at)
            if key & 7 != _LENGTH_DELIMITED:
                raise UserError("The sentencepiece model has fields of an unknown kind: give it as it was trained.")
            length, at = _read_varint(proto, at)
            body, at = proto[at : at + length], at + length
            if not (key >> 3 == 1 and _piece_text(body) in sentinels):
                kept.append(proto[start:at])
        return b"".join(kept)

    def to_dict(self) -> dict:
        """JSON-able: {"kind", "model_proto" (base64, sentinels included), "extra_ids"}."""
        return {
            "kind": "sentencepiece",
            "model_proto": base64.b64encode(self.model_proto).decode("ascii"),
            "extra_ids": self.extra_ids,
        }

    def __eq__(self, other) -> bool:
        return isinstance(other, SentencePieceVocabulary) and self.model_proto == other.model_proto

    def __hash__(self) -> int:
        return hash(self.model_proto)

    def __reduce__(self):  # the native processor cannot be copied, and gin copies what it binds
        return type(self), (self.model_proto, self.extra_ids)

    def __repr__(self) -> str:
        return (
            f"SentencePieceVocabulary({self.vocab_size} ids, {self.extra_ids} of them sentinels, "
            f"sha256 {hashlib.sha256(self.model_proto).hexdigest()[:12]})"
        )


class ByteVocabulary:
    """UTF-8 bytes as ids 3 … 258 after pad, EOS and unknown (`seqio.ByteVocabulary`; ByT5, arXiv:2105.13626).

    The default of 125 sentinels is ByT5's: 384 ids. As in seqio, sentinels have no text: decoding drops them.
    """

    _SPECIAL_IDS = 3
    _BASE_SIZE = 256 + _SPECIAL_IDS

    pad_id = PAD_ID
    eos_id = 1
    unk_id = 2
    bos_id = None

    def __init__(self, extra_ids: int = 125):
        self.extra_ids = extra_ids

    @property
    def vocab_size(self) -> int:
        """Number of ids, sentinels included."""
        return self._BASE_SIZE + self.extra_ids

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without EOS. Raises UnicodeEncodeError for a lone surrogate, which UTF-8 cannot write."""
        return [byte + self._SPECIAL_IDS for byte in text.encode("utf-8")]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` up to the first EOS; special ids, sentinels and bytes that are not UTF-8 are left out."""
        ids = _up_to_eos([int(i) for i in ids], self.eos_id)
        return bytes(i - self._SPECIAL_IDS for i in ids if self._SPECIAL_IDS <= i < self._BASE_SIZE).decode(
            "utf-8", errors="ignore"
        )

    def to_dict(self) -> dict:
        """JSON-able: {"kind", "extra_ids"}."""
        return {"kind": "bytes", "extra_ids": self.extra_ids}

    def __eq__(self, other) -> bool:
        return isinstance(other, ByteVocabulary) and self.extra_ids == other.extra_ids

    def __hash__(self) -> int:
        return hash((type(self), self.extra_ids))

    def __repr__(self) -> str:
        return f"ByteVocabulary({self.vocab_size} ids, {self.extra_ids} of them sentinels)"


Vocabulary = SentencePieceVocabulary | ByteVocabulary


def from_dict(d: dict) -> Vocabulary:
    """The vocabulary that `to_dict` described. Raises UserError for anything else."""
    try:
        if d["kind"] == "sentencepiece":
            return SentencePieceVocabulary(base64.b64decode(d["model_proto"], validate=True), d["extra_ids"])
        if d["kind"] == "bytes":
            return ByteVocabulary(d["extra_ids"])
    except (KeyError, TypeError, binascii.Error) as e:
        raise UserError(
            f"The description of the vocabulary is damaged ({type(e).__name__}: {e}): "
            "bind a vocabulary, e.g. @SentencePieceVocabulary()."
        ) from e
    raise UserError(f"Unknown kind of vocabulary {d['kind']!r}: known are 'sentencepiece' and 'bytes'.")


def from_seqio(vocabulary) -> Vocabulary:
    """This module's equal of a seqio vocabulary, found by its shape so that seqio is not imported.

    Raises:
      UserError: a kind that has no equal here (pass-through, code points, word pieces).
    """
    if isinstance(vocabulary, Vocabulary):
        return vocabulary
    if isinstance(getattr(vocabulary, "sp_model", None), bytes):  # sentinels and normalizer overrides included
        return SentencePieceVocabulary(vocabulary.sp_model, vocabulary.extra_ids)
    if any(cls.__name__ == "ByteVocabulary" for cls in type(vocabulary).__mro__):
        return ByteVocabulary(vocabulary.extra_ids)
    raise UserError(
        f"{type(vocabulary).__name__} cannot be stored in a checkpoint: "
        "use a seqio.SentencePieceVocabulary or seqio.ByteVocabulary."
    )


# gin gets functions, not the classes: bindings apply to every call of a configurable, so a bound path would otherwise
# also reach the vocabularies that are rebuilt from checkpoints.


@gin.configurable("SentencePieceVocabulary", module="t5x_lite")
def _sentencepiece_from_gin(
    path: str = gin.REQUIRED, extra_ids: int = 100, reverse_extra_ids: bool = True
) -> SentencePieceVocabulary:
    return SentencePieceVocabulary.from_path(path, extra_ids, reverse_extra_ids)


@gin.configurable("ByteVocabulary", module="t5x_lite")
def _bytes_from_gin(extra_ids: int = 125) -> ByteVocabulary:
    return ByteVocabulary(extra_ids)


def _up_to_eos(ids: list[int], eos_id: int) -> list[int]:
    return ids[: ids.index(eos_id) + 1] if eos_id in ids else ids


def _processor(model_proto: bytes) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        if model_proto and processor.LoadFromSerializedProto(model_proto) and processor.get_piece_size():
            return processor
    except (RuntimeError, ValueError) as e:
        raise UserError(f"Not a sentencepiece model ({e}): give the .model file.") from e
    raise UserError("Not a sentencepiece model: give the .model file.")


def _user_defined_piece(piece: str) -> bytes:
    """A `pieces` entry of sentencepiece's ModelProto: appended to a serialized model, it is the model's next piece.

    Written by hand (three fields) because the generated protobuf module pins a protobuf runtime.
    https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
    """
    text = piece.encode("utf-8")
    user_defined = 4
    body = (
        b"\x0a"
        + _varint(len(text))
        + text  # 1: piece
        + b"\x15"
        + struct.pack("<f", 0.0)  # 2: score
        + b"\x18"
        + _varint(user_defined)
    )  # 3: type
    return b"\x0a" + _varint(len(body)) + body


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes(out + bytes([n]))


_LENGTH_DELIMITED = 2  # wire type: https://protobuf.dev/programming-guides/encoding


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that starts at `at`, and where it ends."""
    n = shift = 0
    while True:
        byte = data[at]
        n |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return n, at


def _piece_text(body: bytes) -> str:
    """Text of a piece, whose first field it is."""
    key, at = _read_varint(body, 0)
    if key != 1 << 3 | _LENGTH_DELIMITED:
        return ""
    length, at = _read_varint(body, at)
    return body[at : at + length].decode("utf-8")
