"""The objective files: read by the project's configuration, run on a small corpus, within their own lengths."""

import importlib

import numpy as np
import pytest
import seqio
import tensorflow as tf

import gin
from t5x_lite import configuration, data, gin_files, jobs
from t5x_lite.errors import UserError
from t5x_lite.tasks import c4, preprocessors, unsupervised

pytestmark = pytest.mark.slow  # whole runs and pipelines: minutes

# Of the study, under the names that T5 gave them, and ours.
STUDY = (
    "iid_15_u_u iid_10_u_u iid_25_u_u iid_50_u_u iid_15_d_d iid_15_m_f iid_15_r10s90_f all_permute prefix_lm lm "
    "span_2_15_u_u span_3_15_u_u span_5_15_u_u span_10_15_u_u"
).split()
OURS = "iid_15_u_u_aligned iid_15_s80r10k10_f ul2".split()
BYTES = seqio.ByteVocabulary(extra_ids=100)


@pytest.fixture(autouse=True)
def nothing_parsed_before_and_after():
    configuration.clear()
    yield
    configuration.clear()


def test_there_is_a_file_for_each():
    files = {name for name in gin_files.shipped_names() if name.startswith("objectives/")}
    assert files == {f"objectives/{name}.gin" for name in STUDY + OURS}


def text() -> tf.data.Dataset:
    rng = np.random.default_rng(0)
    lengths = tf.constant(rng.integers(100, 900, 130), tf.int32)
    tokens = tf.constant(rng.integers(3, 259, int(lengths.numpy().sum())), tf.int32)
    rows = tf.RaggedTensor.from_row_lengths(tokens, lengths)
    return tf.data.Dataset.from_tensor_slices({"targets": rows}).map(lambda x: x)


@pytest.mark.parametrize("name", STUDY + OURS)
def test_an_objective_fills_its_own_lengths(name):
    configuration.parse([f"objectives/{name}.gin"])
    lengths = gin.query_parameter("TASK_FEATURE_LENGTHS/gin.macro.value")
    with seqio.map_seed_manager(1):
        made = preprocessors.unsupervised(text(), output_features=unsupervised.features(BYTES), sequence_length=lengths)
        sizes = [{k: len(v) + 1 for k, v in e.items()} for e in made.take(60).as_numpy_iterator()]
    assert set(sizes[0]) == set(lengths)
    for key, length in lengths.items():
        longest, middle = max(s[key] for s in sizes), np.median([s[key] for s in sizes])
        assert middle <= length, "most examples fit"
        if not (name.startswith("iid") and key == "targets" and "_f" not in name):  # whose number of tokens is random
            assert longest <= length
        if name.startswith("span") or name in ("lm", "iid_15_m_f", "iid_15_r10s90_f", "iid_15_s80r10k10_f"):
            assert middle == length, "no room is left"


def test_lengths_of_an_objective_beat_those_of_the_run():
    for module in ("t5x_lite.jobs.train", *jobs.MODULES):
        importlib.import_module(module)
    for files in (
        ["objectives/iid_15_u_u.gin", "runs/pretrain.gin"],
        ["runs/pretrain.gin", "objectives/iid_15_u_u.gin"],
    ):
        configuration.parse(files, ["MIXTURE_OR_TASK_NAME=pydocs_unsupervised", "MODEL_DIR=x"])
        assert gin.query_parameter("TASK_FEATURE_LENGTHS/gin.macro.value") == {"inputs": 512, "targets": 192}


def test_bindings_of_the_user_reach_the_pipeline_and_are_counted_as_read(corpus_dir):
    lengths = {"inputs": 64, "targets": 64}

    def rows(density):
        configuration.parse(["objectives/iid_15_u_u.gin"], [f"iid_denoising.noise_density={density}"])
        source = data.SeqioSource("pydocs_unsupervised", lengths, num_streams=1, block_records=8, packing=False)
        blocks = source.open()
        configuration.check_all_read()
        assert "iid_denoising.noise_density" in configuration.operative_config()
        return [row["decoder_loss_weights"].sum() for row in blocks.block(0, 0)]

    assert np.mean(rows(0.3)) > 1.5 * np.mean(rows(0.1))


def test_without_an_objective_the_task_says_how_to_choose_one(corpus_dir):
    with pytest.raises(UserError, match="--gin_file=objectives/"):
        data.SeqioSource("pydocs_unsupervised", {"inputs": 64, "targets": 64}).open()


def test_targets_alone_are_for_language_models(corpus_dir):
    configuration.parse(["objectives/lm.gin"])
    source = data.SeqioSource("pydocs_unsupervised", {"targets": 32}, num_streams=1, block_records=8)
    with pytest.raises(UserError, match="makes no inputs for an encoder"):
        source.open()
    row = next(source.open("causal_lm").block(0, 0))
    assert row["decoder_target_tokens"].shape == (32,) and row["decoder_target_tokens"][-1] == 1


def test_tasks_have_the_names_of_t5():
    names = set(seqio.TaskRegistry.names())
    assert {f"c4_v220_{x}" for x in ("span_corruption", "iid_denoising", "prefix_lm", "full_lm")} <= names
    assert {f"c4{x}_v020_unsupervised" for x in ("", "_noclean", "_realnewslike", "_webtextlike")} <= names
    assert {f"c4_prefix_lm_objective_{x}_architecture" for x in ("encoder_decoder", "decoder")} <= names
    assert {"wikipedia_20190301.en_v003_unsupervised", "mc4.en", "mc4.zh_Latn"} <= names
    assert len(c4.MC4_LANGUAGES) == len(set(c4.MC4_LANGUAGES)) == len(seqio.MixtureRegistry.get("mc4").tasks) == 107


def test_ready_rows_of_a_prefix_lm_are_taken_as_they_are():
    """The two tasks that make the model's rows themselves, on a source and a vocabulary that are here."""
    from t5x_lite import seqio_blocks

    for architecture, name in (("encoder_decoder", "encoder_decoder"), ("prefix_lm", "decoder")):
        task = seqio.TaskRegistry.get(f"c4_prefix_lm_objective_{name}_architecture")
        features = {k: type(f)(**{**vars(f), "vocabulary": BYTES}) for k, f in task.output_features.items()}
        source = seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices({"text": ["some words"] * 300}),
            splits=("train",),
        )
        lengths = {"inputs": 32, "targets": 32} if name == "encoder_decoder" else {"targets": 32}
        ds = task.replace(source=source, output_features=features).get_dataset(lengths, "train", shuffle=False, seed=1)
        rows = seqio_blocks.convert(ds, lengths, packing=True, architecture=architecture)
        row = next(rows.as_numpy_iterator())
        assert row["decoder_target_tokens"].shape == (32,) and 0 not in row["decoder_target_tokens"]
