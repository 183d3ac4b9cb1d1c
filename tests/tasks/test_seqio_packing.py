"""Packing by whole batches makes the rows that seqio's own makes."""

import numpy as np
import pytest
import seqio
import tensorflow as tf

from t5x_lite import seqio_packing


def dataset(sizes, seed=0) -> tf.data.Dataset:
    rng = np.random.default_rng(seed)
    names = ("inputs", "targets")
    draws = [{k: rng.integers(1, 90, n).astype(np.int32) for k, n in zip(names, pair, strict=True)} for pair in sizes]
    spec = tf.TensorSpec([None], tf.int32)
    return tf.data.Dataset.from_generator(lambda: iter(draws), output_signature={"inputs": spec, "targets": spec})


def same(ours, theirs) -> None:
    ours, theirs = list(ours.as_numpy_iterator()), list(theirs.as_numpy_iterator())
    assert len(ours) == len(theirs) > 0
    for row, other in zip(ours, theirs, strict=True):
        assert set(row) == set(other)
        for name in row:
            np.testing.assert_array_equal(row[name], other[name], err_msg=name)
            assert row[name].dtype == other[name].dtype


@pytest.mark.parametrize("examples", [1, 16, 60])
def test_rows_are_those_of_seqio(examples):
    """Fewer examples than are packed at once, as many, and more; some longer than a row."""
    lengths = {"inputs": 16, "targets": 7}
    for seed in range(2):
        ds = dataset(np.random.default_rng(seed).integers(1, (20, 9), (examples, 2)), seed)
        same(seqio_packing.pack(ds, lengths), seqio.utils.trim_and_pack_dataset(ds, lengths))


@pytest.mark.parametrize(
    "ours, theirs, lengths",
    [
        (seqio_packing.EncDecFeatureConverter, seqio.EncDecFeatureConverter, {"inputs": 32, "targets": 16}),
        (seqio_packing.LMFeatureConverter, seqio.LMFeatureConverter, {"targets": 16}),
        (seqio_packing.PrefixLMFeatureConverter, seqio.PrefixLMFeatureConverter, {"inputs": 32, "targets": 16}),
    ],
)
@pytest.mark.parametrize("packing", [True, False])
def test_converters_make_the_rows_of_seqio(ours, theirs, lengths, packing):
    ds = dataset(np.random.default_rng(1).integers(1, 16, (70, 2)))
    same(ours(pack=packing)(ds, lengths), theirs(pack=packing)(ds, lengths))
