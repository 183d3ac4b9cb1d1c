"""Names of tasks, files and mixtures: what they stand for, and what is said where they stand for nothing."""

import dataclasses
import itertools

import numpy as np
import pytest
import seqio

from t5x_lite import data, seqio_names, vocabularies
from t5x_lite.errors import UserError
from t5x_lite.text_files import TextFiles

BYTES = vocabularies.ByteVocabulary()
LENGTHS = {"inputs": 64, "targets": 32}


@pytest.fixture(autouse=True)
def corpus(corpus_dir):
    return corpus_dir


@pytest.fixture
def files(tmp_path):
    for name, n in (("few", 40), ("many", 400)):
        (tmp_path / f"{name}.tsv").write_text("".join(f"{name} question {i}\tanswer {i}\n" for i in range(n)))
    (tmp_path / "text.txt").write_text("".join(f"text {i} " + "and so on " * 20 + "\n" for i in range(100)))
    return tmp_path


def source(name, **others):
    options = {
        "vocabulary": BYTES,
        "text_files": TextFiles(index_folder=None, held_out=0),
        "num_streams": 2,
        "block_records": 16,
        "packing": False,
        **others,
    }
    return data.SeqioSource(name, LENGTHS, **options)


def rows(blocks, stream=0, k=0):
    return list(blocks.block(stream, k))


def read(row, name="encoder_input_tokens"):
    return BYTES.decode(row[name])


def test_pairs_become_rows(files):
    blocks = source(f"tsv:{files}/few.tsv", block_records=20).open()
    for epoch in range(2):
        seen = [(read(row), read(row, "decoder_target_tokens")) for i in range(2) for row in rows(blocks, i, epoch)]
        assert sorted(seen) == sorted((f"few question {i}", f"answer {i}") for i in range(40))
    assert blocks.seekable and blocks.vocabulary == BYTES


def test_files_that_have_changed_are_read_anew(files):
    few = f"tsv:{files}/few.tsv"
    for name in (few, {few: 1.0}):
        (files / "few.tsv").write_text("before\tchange\n")
        assert {read(row) for row in rows(source(name).open())} == {"before"}
        (files / "few.tsv").write_text("one more\tline\nafterwards\tchange\n")
        assert {read(row) for row in rows(source(name).open())} == {"one more", "afterwards"}


def test_text_goes_through_the_objective(files):
    blocks = source(f"text:{files}/text.txt", packing=True).open()
    sentinel = BYTES.vocab_size - 1
    for row in rows(blocks):
        assert sentinel in row["encoder_input_tokens"] and sentinel in row["decoder_target_tokens"]


def language_model_rows(files, objective):
    options = TextFiles(index_folder=None, held_out=0, objective=objective)
    a_source = source(f"text:{files}/text.txt", text_files=options)
    blocks = dataclasses.replace(a_source, feature_lengths={"targets": 32}).open("causal_lm")
    return [row["decoder_target_tokens"].tolist() for row in rows(blocks)]


def test_a_language_model_reads_text_without_inputs(files):
    whole = [row for row in language_model_rows(files, "lm_segments") if row[-1]]
    assert whole and all(row.index(BYTES.eos_id) == 31 for row in whole), "segments end with EOS"
    whole = [row for row in language_model_rows(files, "full_lm") if row[-1]]
    assert any(BYTES.eos_id in row[:-1] for row in whole), "documents end with EOS"
    assert any(row[-1] != BYTES.eos_id for row in whole), "segments do not"


def test_a_file_is_the_same_data_wherever_it_lies(files, tmp_path):
    other = tmp_path / "elsewhere"
    other.mkdir()
    (files / "few.tsv").rename(other / "few.tsv")
    (files / "few.tsv").symlink_to(other / "few.tsv")
    here, there = (source(f"tsv:{folder}/few.tsv").open() for folder in (files, other))
    for a, b in zip(rows(here, 1, 1), rows(there, 1, 1), strict=True):
        assert all((a[name] == b[name]).all() for name in a)


def kinds(blocks, k=0):
    return [read(row).split()[0] for stream in range(2) for row in rows(blocks, stream, k)]


def test_rates_are_one_binding(files):
    few, many = f"tsv:{files}/few.tsv", f"tsv:{files}/many.tsv"
    for rates, count in (({few: 1, many: 1}, 16), ({few: 3.0, many: 1.0}, 24), ({few: 1, many: 15}, 2)):
        seen = kinds(source(rates).open())
        assert seen.count("few") == count and seen.count("many") == 32 - count


def test_files_mix_with_registered_tasks_and_take_their_vocabulary(files, tmp_path):
    blocks = source({f"tsv:{files}/few.tsv": 1.0, "pydocs_library_and_summarize": 1.0}, vocabulary=None).open()
    texts = [blocks.vocabulary.decode(row["encoder_input_tokens"].tolist()) for row in rows(blocks)]
    assert {text.split()[0] for text in texts} == {"few", "library:", "summarize:"}
    with_bytes = source({f"tsv:{files}/few.tsv": 1.0, "pydocs_library": 1.0}).open()
    assert set(kinds(with_bytes)) == {"few", "library:"} and with_bytes.vocabulary == BYTES


def test_files_with_options_of_their_own(files):
    named = {"shouted": TextFiles(train=f"tsv:{files}/few.tsv", template="SHOUT: {0}", index_folder=None, held_out=0)}
    blocks = source({"shouted": 1.0, f"tsv:{files}/many.tsv": 1.0}, named_files=named).open()
    assert set(kinds(blocks)) == {"SHOUT:", "many"}
    provider = seqio_names.find(source("shouted", named_files=named))
    assert seqio_names.plain_name(provider.name) == "shouted"


def test_a_sentencepiece_model_of_ones_own(files, corpus):
    (path,) = (corpus / "pydocs").rglob("vocabulary.model")
    own = vocabularies.SentencePieceVocabulary.from_path(path)
    blocks = source(f"tsv:{files}/few.tsv", vocabulary=own).open()
    assert blocks.vocabulary == own
    for row in rows(blocks):
        ids = row["encoder_input_tokens"]
        ids = ids[ids > 0]
        assert ids[:-1].tolist() == own.encode(own.decode(ids.tolist())) and ids[-1] == own.eos_id
    text = source(f"text:{files}/text.txt", vocabulary=own, packing=True).open()
    assert all("<extra_id_0>" in own.decode(row["encoder_input_tokens"].tolist()) for row in rows(text))


def test_a_checkpoints_vocabulary_is_taken_only_where_there_is_no_other(files):
    few = f"tsv:{files}/few.tsv"
    asked = []

    def fallback():
        asked.append(1)
        return vocabularies.ByteVocabulary(extra_ids=7)

    assert source(few).open(fallback_vocabulary=fallback).vocabulary == BYTES and not asked
    assert source({few: 1, "pydocs_library": 1}, vocabulary=None).open(fallback_vocabulary=fallback) and not asked
    assert source(few, vocabulary=None).open(fallback_vocabulary=fallback).vocabulary.extra_ids == 7


def test_records_have_their_place(files):
    blocks = source({f"tsv:{files}/few.tsv": 1.0, "pydocs_library": 1.0}).open()
    origins = list(blocks.origins(1, 0))
    lines = (files / "few.tsv").read_text().splitlines()
    own = [(where, record) for where, record in origins if ".tsv:" in where]
    assert len(origins) == 16 and len(own) == 8
    for where, record in own:
        assert lines[int(where.rpartition(":")[2]) - 1] == f"{record['inputs'].decode()}\t{record['targets'].decode()}"


def test_an_evaluation_reads_files_whole_and_in_order(files):
    from t5x_lite.tasks.files import TextFilesSource

    files = TextFiles(train=f"tsv:{files}/many.tsv", held_out=0, index_folder=None)
    a_source = TextFilesSource(files)

    def read(**how):
        return [int(e["inputs"].split()[-1]) for e in a_source.get_dataset("train", **how).as_numpy_iterator()]

    assert read(shuffle=False) == list(range(400)) and a_source.num_input_examples("train") == 400
    assert sorted(read(shuffle=True, seed=1)) == list(range(400)) != read(shuffle=True, seed=1)
    parts = [read(shuffle=False, shard_info=seqio.ShardInfo(i, 3)) for i in range(3)]
    assert np.all(np.diff(parts[1]) == 3) and sorted(itertools.chain(*parts)) == list(range(400))


@pytest.mark.parametrize(
    "name, others, message",
    [
        ("tsv:{}/few.tsv", {"vocabulary": None}, "few.tsv: files have no vocabulary of their own; set VOCABULARY"),
        ("tsv:{}/none.tsv", {}, "none.tsv': no such file"),
        ("{}/few.tsv", {}, "for a file write tsv:"),
        ("tsv:{}/few.tsv", {"task_modules": ("no_such_module",)}, "'no_such_module', which cannot be imported"),
        ("tsv:{}/few.tsv", {"text_files": TextFiles(metrics=("acuracy",))}, "names 'acuracy' .did you mean accuracy"),
        (
            "text:{}/text.txt",
            {"text_files": TextFiles(objective="spans")},
            "TextFiles.objective = 'spans' is no function",
        ),
        (
            "tsv:{}/few.tsv",
            {"text_files": TextFiles(train="tsv:a")},
            "TextFiles.train = 'tsv:a', and MIXTURE_OR_TASK_NAME",
        ),
        ({}, {}, "MIXTURE_OR_TASK_NAME is empty"),
        ({"tsv:{}/few.tsv": 0}, {}, "few.tsv'. = 0: a rate is a number above 0"),
        ({"tsv:{}/few.tsv": "1"}, {}, "= '1': a rate is a number above 0"),
        ({"tsv:{}/few.tsv": 1, "jsonl:{}/few.jsonl": 1}, {}, "are both called few; give files a name of their own"),
        ({"tsv:{}/few.tsv": 1, "tsv:{}/many.tsv": 1}, {"text_files": TextFiles(validation="a")}, "that of each file"),
        ({"tsv:{}/few.tsv": 1, "pydocs_libary": 1}, {}, "did you mean pydocs_library"),
    ],
)
def test_what_is_wrong_is_said(files, name, others, message):
    if isinstance(name, dict):
        name = {key.format(files): rate for key, rate in name.items()}
    else:
        name = name.format(files)
    with pytest.raises(UserError, match=message):
        source(name, **others).open()


def test_tasks_of_two_vocabularies_do_not_mix(files):
    def no_rows(split, shuffle_files, seed=None):
        raise AssertionError("nothing is read of tasks that do not mix")

    seqio.TaskRegistry.add(
        "in_bytes",
        seqio.FunctionDataSource(no_rows, splits=["train"]),
        preprocessors=[],
        output_features={key: seqio.Feature(seqio.ByteVocabulary()) for key in LENGTHS},
    )
    with pytest.raises(UserError, match="in_bytes and pydocs_library cannot be mixed"):
        source({"in_bytes": 1.0, "pydocs_library": 1.0}, vocabulary=None).open()
