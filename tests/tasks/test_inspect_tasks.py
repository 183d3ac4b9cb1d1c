"""What `inspect` shows of tasks and mixtures: the data that a run reads, stage by stage, and shares that add up."""

import json

import numpy as np
import pytest
import seqio
import tensorflow as tf

from t5x_lite import seqio_stages, vocabularies
from t5x_lite.errors import UserError
from t5x_lite.jobs.inspect import inspect
from t5x_lite.tasks import preprocessors
from t5x_lite.text_files import TextFiles

BYTES = vocabularies.ByteVocabulary()
LENGTHS = {"inputs": 40, "targets": 24}


@pytest.fixture(params=[False, True], ids=["plain", "cacheable"])
def task(request):
    """Text with words put in another order at random, then masked at random; its source is read in order alone."""
    texts = [f"text {i} has some words of which a few are masked" for i in range(20)]

    def source(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensor_slices({"text": texts})

    @seqio.map_over_dataset(num_seeds=1)
    def turned(example, seed):
        words = tf.strings.split([example["text"]]).values
        order = tf.argsort(tf.random.stateless_uniform(tf.shape(words), seed))
        return {"text": tf.strings.reduce_join(tf.gather(words, order), separator=" ")}

    seqio.TaskRegistry.add(
        "turned",
        seqio.FunctionDataSource(source, splits=("train",), num_input_examples={"train": len(texts)}),
        preprocessors=[
            turned,
            lambda dataset: preprocessors.rekey(dataset, key_map={"inputs": None, "targets": "text"}),
            seqio.preprocessors.tokenize,
            *([seqio.CacheDatasetPlaceholder()] if request.param else []),
            preprocessors.span_corruption,
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features={name: seqio.Feature(seqio.ByteVocabulary(125)) for name in LENGTHS},
    )
    return seqio.TaskRegistry.get("turned")


def shown(capsys, *arguments, **more):
    assert inspect(*arguments, json_file="-", **more) == 0
    return json.loads(capsys.readouterr().out)


def test_the_last_stage_is_what_a_run_reads(task, capsys):
    found = shown(capsys, "turned", feature_lengths=LENGTHS, records=5, first=3, examples=9, seed=7)
    records = list(task.source.get_dataset(split="train", shuffle=False).skip(3).take(5).as_numpy_iterator())
    expected = [
        {name: example[name].tolist() for name in LENGTHS}
        for example in task.replace(source=seqio_stages.seqio_blocks.Records(records))
        .get_dataset(LENGTHS, split="train", shuffle=False, seed=7, try_in_mem_cache=False)
        .as_numpy_iterator()
    ]
    first, *others, last = found["stages"]
    assert [e["text"]["values"] for e in first["examples"]] == [r["text"].decode() for r in records]
    assert [{n: e[n]["values"] for n in LENGTHS} for e in last["examples"]] == expected and last["count"] > 1
    assert others[0]["name"] == "turned" and others[-1]["name"] == "append_eos_after_trim"
    # Each stage stands on the one before it: what was turned is what was cut into tokens.
    turned, rekeyed, tokens = others[:3]
    assert turned["examples"] != first["examples"]
    assert [e["targets"]["values"] for e in rekeyed["examples"]] == [e["text"]["values"] for e in turned["examples"]]
    assert [e["targets"]["text"] for e in tokens["examples"]] == [e["text"]["values"] for e in turned["examples"]]
    assert last["examples"][0]["targets"]["text"].startswith("<extra_id_0>")


def test_the_text_names_every_stage(task, capsys):
    assert inspect("turned", examples=1, records=3) == 0
    out = capsys.readouterr().out
    assert out.startswith("turned: train of FunctionDataSource, which has train\n")
    assert "0. 3 record(s) from 0 on: 3 example(s)\n   - text  text  'text 0 has some words" in out
    assert "\n1. turned: 3 example(s)\n" in out and "span_corruption: 1 example(s)\n" in out


def test_shares_of_a_mixture(tmp_path, capsys):
    """Of every task all examples are equally long, so that what is counted on some is so of all."""
    for name, inputs, targets in (("short", 3, 1), ("long", 90, 7)):
        (tmp_path / f"{name}.tsv").write_text(f"{'x' * inputs}\t{'y' * targets}\n" * 30)
    short, long = (f"tsv:{tmp_path}/{name}.tsv" for name in ("short", "long"))
    options = dict(vocabulary=BYTES, text_files=TextFiles(index_folder=None, held_out=0), feature_lengths=LENGTHS)
    found = {share["task"]: share for share in shown(capsys, {short: 3.0, long: 1.0}, sample=7, **options)["tasks"]}
    assert found["short"] == {
        "task": "short",
        "rate": 3.0,
        "examples": 0.75,
        "records": 30,
        "tokens": {"inputs": 4.0, "targets": 2.0},
        "share": pytest.approx(3 * 6 / (3 * 6 + 48)),
    }
    assert found["long"]["tokens"] == {"inputs": 40.0, "targets": 8.0}, "cut to 40, with EOS"
    assert sum(share["share"] for share in found.values()) == pytest.approx(1)
    assert inspect({short: 3.0, long: 1.0}, **options) == 0
    assert "  75" in capsys.readouterr().out


def test_a_mixture_whose_data_are_not_here_has_its_rates(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(seqio_stages.seqio_sources.tfds.core.constants, "DATA_DIR", str(tmp_path))
    found = shown(capsys, "glue_v002_proportional")
    rates = {share["task"]: share["rate"] for share in found["tasks"]}
    assert rates["glue_cola_v002"] == 8551 and all(share["share"] is None for share in found["tasks"])
    assert len(found["problems"]) >= len(rates) > 5 and "TFDS_DATA_DIR" in found["problems"][0]
    assert sum(share["examples"] for share in found["tasks"]) == pytest.approx(1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(task="turned", split="test"), "turned has no split 'test'; it has train"),
        (dict(task="turned", first=20), "turned has no record 20 in train: lower inspect.first"),
        (dict(task="turned", feature_lengths={"inputs": 9}), "TASK_FEATURE_LENGTHS lacks targets"),
        (dict(task="turned", records=0), "inspect.records must be at least 1"),
        (dict(task="turmed"), "'turmed' is not registered .*did you mean turned"),
    ],
)
def test_what_is_wrong(task, arguments, message):
    with pytest.raises(UserError, match=message):
        inspect(**arguments)


def test_fields_of_all_kinds():
    assert seqio_stages.shown(np.array([4, 1]), BYTES) == {"kind": "int64 [2]", "values": [4, 1], "text": "\x01</s>"}
    assert seqio_stages.shown(np.float32(0.5), BYTES) == {"kind": "float32", "values": 0.5}
    assert seqio_stages.shown(b"\xff", None) == {"kind": "text", "values": "\ufffd"}
    assert seqio_stages.shown(np.array([b"a", b"b"], object), None) == {"kind": "text [2]", "values": ["a", "b"]}
    ragged = tf.ragged.constant([[1], [2, 3]])
    assert seqio_stages.shown(ragged, BYTES) == {"kind": "ragged", "values": [[1], [2, 3]]}
