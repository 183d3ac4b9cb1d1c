"""The corpus' own SentencePiece vocabulary: trained once, on the train split, stored beside the data.

4,096 ids: 0 padding, 1 EOS, 2 unknown, 256 bytes, 3,737 pieces, and 100 sentinels counted down from the top
(`<extra_id_0>` is 4095). Text comes back from its ids unchanged but for byte-order marks, which go: blanks are kept one
by one (runs of them are pieces, as indentation carries meaning here), a newline is a piece of its own, and what no
piece covers is spelt in bytes.

Where pieces of equal likelihood can change places ("``" and "`"), tensorflow-text and sentencepiece may choose
different orders: the ids differ then, their number and the text do not.
"""

import io
import random
import tempfile
from collections.abc import Sequence

import sentencepiece
import seqio
from sentencepiece import sentencepiece_model_pb2

EXTRA_IDS = 100
SIZE = 4096
FILE_NAME = "vocabulary.model"
_TRAINING_CHARACTERS = 5_000_000  # more makes training slower and hardly changes the pieces


def train(texts: Sequence[str], size: int = SIZE) -> bytes:
    """A unigram model of `size` ids less the sentinels, as a serialized proto. The same texts give the same bytes.

    Where the texts are too few for that many pieces the model is smaller.
    """
    order = list(range(len(texts)))
    random.Random(0).shuffle(order)
    lines, characters = [], 0
    for i in order:
        if characters >= _TRAINING_CHARACTERS:
            break
        lines += [line for line in texts[i].split("\n") if line]
        characters += len(texts[i])
    model = io.BytesIO()
    # The one rule drops byte-order marks. On a model with no rule at all tensorflow-text remarks on stderr, once for
    # each tokenizer that it makes.
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        rules.write("FEFF\t\n")
        rules.flush()
        _train(lines, model, size, rules.name)
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())  # type: ignore[attr-defined]  # made at import
    proto.normalizer_spec.ClearField("normalization_rule_tsv")  # a temporary name, other in each build
    return proto.SerializeToString(deterministic=True)


def _train(lines: list[str], model: io.BytesIO, size: int, normalization_rules: str) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=size - EXTRA_IDS,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        byte_fallback=True,
        character_coverage=0.9995,
        normalization_rule_tsv=normalization_rules,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        user_defined_symbols=["\n"],
        max_sentence_length=16384,
        num_threads=2,  # the sums are taken thread by thread: another number, other last digits
        minloglevel=2,
    )


class PydocsVocabulary(seqio.SentencePieceVocabulary):
    """seqio's vocabulary on the model beside the corpus, found (and built, where it is not there yet) at first use."""

    def __init__(self):
        super().__init__("", extra_ids=EXTRA_IDS)

    # seqio keeps the path in this attribute and reads it when it loads the model. As a property it is asked for only
    # then, and stays out of the state by which vocabularies are compared and pickled.
    @property
    def _sentencepiece_model_file(self) -> str:
        from t5x_lite.tasks.pydocs import builder

        return str(builder.ensure_built() / FILE_NAME)

    @_sentencepiece_model_file.setter
    def _sentencepiece_model_file(self, path: str) -> None:
        del path
