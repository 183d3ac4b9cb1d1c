"""A vocabulary of a task's texts: T5's form, the same each time, and what is said where there can be none."""

import random

import pytest

from t5x_lite.errors import UserError
from t5x_lite.jobs.vocabulary import vocabulary
from t5x_lite.text_files import TextFiles
from t5x_lite.vocabularies import SentencePieceVocabulary

OPTIONS = TextFiles(held_out=0.1, index_folder=None)


@pytest.fixture(scope="module")
def name(tmp_path_factory):
    rng, path = random.Random(0), tmp_path_factory.mktemp("texts") / "tales.txt"
    words = ["once", "upon", "time", "there", "lived", "seven", "giants", "beyond", "the", "hills", "and", "rivers"]
    path.write_text("".join(f"{' '.join(rng.choices(words, k=20))}.\n" for _ in range(300)))
    return f"text:{path}"


def test_pieces_of_the_texts(name, tmp_path, capsys):
    path = tmp_path / "deep" / "pieces.model"
    assert vocabulary(name, str(path), size=33, text_files=OPTIONS) == 0
    assert f"{path}: 33 pieces, of " in capsys.readouterr().err
    made = SentencePieceVocabulary.from_path(path)
    assert made.vocab_size == 133 and made.extra_ids == 100
    pieces = [made.processor.id_to_piece(i) for i in range(33)]
    assert pieces[:3] == ["<pad>", "</s>", "<unk>"] and "▁" in pieces
    assert made.decode(made.encode("seven giants lived beyond the hills.")) == "seven giants lived beyond the hills."
    vocabulary(name, str(tmp_path / "again.model"), size=33, text_files=OPTIONS)
    assert (tmp_path / "again.model").read_bytes() == path.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["pieces.model"]


def test_only_so_many_characters_are_read(name, tmp_path, capsys):
    vocabulary(name, str(tmp_path / "pieces.model"), size=30, characters=500, text_files=OPTIONS)
    said = capsys.readouterr().err
    assert 500 <= int(said.split(" characters")[0].split()[-1].replace(",", "")) < 700


def test_what_cannot_be_is_said(name, tmp_path):
    (tmp_path / "there").touch()
    with pytest.raises(UserError, match="there exists: name a new file"):
        vocabulary(name, str(tmp_path / "there"))
    with pytest.raises(UserError, match=r"vocabulary.field = 'txt' \(did you mean text\?\): the records have text"):
        vocabulary(name, str(tmp_path / "a"), field="txt", text_files=OPTIONS)
    with pytest.raises(UserError, match="no vocabulary of .* characters of text:.*; set vocabulary.size"):
        vocabulary(name, str(tmp_path / "a"), size=3, text_files=OPTIONS)
    assert not (tmp_path / "a").exists()
