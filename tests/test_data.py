"""Batches are a function of (source, seed, step), whatever came before; positions say where to go on."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_lite import data
from t5x_lite.errors import UserError
from t5x_lite.partitioning import MeshConfig


def write_rows(path, n=100, s=6, t=4, start=0):
    rows = np.arange(start, start + n)[:, None]
    targets = np.full((n, t), 3) + rows % 50
    np.savez(
        path,
        encoder_input_tokens=rows + np.arange(1, s + 1),
        decoder_input_tokens=targets,
        decoder_target_tokens=targets,
        decoder_loss_weights=np.ones((n, t), int),
    )


@pytest.fixture
def source(tmp_path):
    write_rows(tmp_path / "a.npz", 60)
    write_rows(tmp_path / "b.npz", 40, start=60)
    return data.NpzSource(str(tmp_path / "*.npz"), num_streams=4)


def take(source, steps, batch_size=8, positions=None, devices=8):
    sharding = MeshConfig().build(jax.devices()[:devices]).batch
    with data.Batches(source.open(), source.num_streams, batch_size, sharding, positions) as batches:
        return [
            ({k: np.asarray(v) for k, v in batch.items()}, where)
            for batch, where in (next(batches) for _ in range(steps))
        ]


def rows_of(taken):
    return [int(row[0]) - 1 for batch, _ in taken for row in batch["encoder_input_tokens"]]


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 5000), seed=st.integers(0, 2**31))
def test_permute_is_a_bijection(size, seed):
    assert sorted(data.permute(np.arange(size), size, seed)) == list(range(size))


def test_permute_mixes():
    a, b = (data.permute(np.arange(1000), 1000, seed) for seed in (1, 2))
    assert (a != b).mean() > 0.98 and abs(np.corrcoef(np.arange(1000), a)[0, 1]) < 0.1


def test_an_epoch_has_every_row_once_and_the_next_another_order(source):
    rows = rows_of(take(source, 50, batch_size=4, devices=4))
    assert sorted(rows[:100]) == list(range(100))
    assert rows[100:] != rows[:100] and sorted(rows[100:]) == list(range(100))


def test_batches_do_not_depend_on_the_devices(source):
    one, eight = take(source, 5, devices=1), take(source, 5, devices=8)
    assert rows_of(one) == rows_of(eight)


@pytest.mark.parametrize("stopped", [1, 9, 12, 13, 20])
def test_going_on_from_a_position_gives_the_same_batches(source, stopped):
    whole = take(source, 30)
    again = take(source, 30 - stopped, positions=whole[stopped - 1][1])
    for (a, where_a), (b, where_b) in zip(whole[stopped:], again, strict=True):
        assert (where_a == where_b).all() and all((a[name] == b[name]).all() for name in a)


class Watched:
    """Blocks that note which of them were opened, by which thread, and how many rows were read."""

    def __init__(self, blocks):
        self._blocks, self.opened, self.rows = blocks, {}, 0

    def block(self, stream, k):
        self.opened[stream, k] = threading.current_thread().name
        for row in self._blocks.block(stream, k):
            self.rows += 1
            yield row


def read(stream, n):
    return [(int(row["encoder_input_tokens"][0]), stream.position) for _ in range(n) for row in stream.take(1)]


def test_the_next_block_is_opened_ahead_and_nothing_else_changes(tmp_path):
    write_rows(tmp_path / "rows.npz", 200)
    source = data.NpzSource(str(tmp_path / "rows.npz"), num_streams=4)  # blocks of 50 rows
    plain = read(data.Stream(source.open(), 1), 170)
    with ThreadPoolExecutor(1, thread_name_prefix="opener") as opener:
        watched = Watched(source.open())
        stream = data.Stream(watched, 1, opener=opener)
        assert read(stream, 31) == plain[:31] and set(watched.opened) == {(1, 0)}, "a short run opens no second block"
        assert read(stream, 1) == plain[31:32]
        opener.submit(lambda: None).result()
        assert watched.opened[1, 1].startswith("opener"), "as soon as 32 rows of the first were read"
        assert read(stream, 43) == plain[32:75]
        opener.submit(lambda: None).result()
        assert (1, 2) in watched.opened, "later, after half of one"
        assert read(stream, 95) == plain[75:]
        for position in ((0, 40), (1, 3), (2, 49)):
            at = position[0] * 50 + position[1]
            assert read(data.Stream(source.open(), 1, position, opener), 20) == plain[at : at + 20]


def test_what_goes_wrong_ahead_is_said_when_its_turn_comes(source):
    class BreaksLater(Watched):
        def block(self, stream, k):
            if k == 2:
                raise OSError("the disk is gone")
            yield from super().block(stream, k)

    with ThreadPoolExecutor(1) as opener:
        stream = data.Stream(BreaksLater(source.open()), 0, opener=opener)
        assert len(stream.take(50)) == 50
        with pytest.raises(OSError, match="the disk is gone"):
            stream.take(1)


@pytest.mark.parametrize("offset", [0, 13])
def test_going_on_costs_the_same_at_any_step(source, offset):
    """Rows read for the next four: those skipped within the block, whichever block it is."""
    costs = []
    for k in (4, 40_000_000):  # steps 100 and a thousand million, at one row a stream and step
        watched = Watched(source.open())
        taken = data.Stream(watched, 2, (k, offset)).take(4)
        assert len(taken) == 4
        costs.append((watched.rows, len(watched.opened)))
    assert costs == [(offset + 4, 1)] * 2


def test_a_row_of_the_batch_comes_from_its_stream(source):
    ((batch, _),) = take(source, 1)
    streams = [(int(row[0]) - 1) for row in batch["encoder_input_tokens"]]
    blocks = source.open()
    expected = [
        int(next(it)["encoder_input_tokens"][0]) - 1 for i in range(4) for it in [blocks.block(i, 0)] for _ in range(2)
    ]
    assert streams == expected


def test_seeds_are_spread():
    seeds = {data.derive_seed(0, stream, k) for stream in range(40) for k in range(40)}
    assert len(seeds) == 1600 and np.ptp(list(seeds)) > 2**30


def test_what_is_wrong_is_said(source, tmp_path):
    with pytest.raises(UserError, match="num_streams = 4 must divide BATCH_SIZE = 6"):
        take(source, 1, batch_size=6, devices=1)
    with pytest.raises(UserError, match="begun with 2 data streams, not 4"):
        take(source, 1, positions=np.zeros((2, 2), np.int64))
    with pytest.raises(UserError, match="no such file"):
        data.NpzSource(str(tmp_path / "c*.npz")).open()
    np.savez(tmp_path / "c.npz", encoder_input_tokens=np.ones((2, 2)))
    with pytest.raises(UserError, match="c.npz lacks the array"):
        data.NpzSource(str(tmp_path / "c.npz")).open()


@pytest.mark.parametrize(
    "array, says",
    [
        (np.ones(8), r"decoder_loss_weights is float64 \[8\]; give whole numbers, \[rows, length\]"),
        (np.full((8, 4), 0.5), "give whole numbers"),
        (np.full((8, 4), np.nan), "give whole numbers"),
        (np.full((8, 4), 2**40), "give whole numbers"),
        (np.full((8, 4), "a"), "give whole numbers"),
        (np.full((8, 4), None), "cannot be read as .npz .*allow_pickle"),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path, array, says):
    rows = np.ones((8, 4))
    np.savez(
        tmp_path / "a.npz",
        encoder_input_tokens=rows,
        decoder_input_tokens=rows,
        decoder_target_tokens=rows,
        decoder_loss_weights=array,
    )
    with pytest.raises(UserError, match=f"a.npz.*{says}"):
        data.NpzSource(str(tmp_path / "a.npz")).open()


def test_a_source_that_fails_or_runs_dry_ends_the_run(source):
    class Empty:
        vocabulary = None

        def block(self, stream, k):
            return iter(())

    class Broken(Empty):
        def block(self, stream, k):
            raise OSError("the disk is gone")

    sharding = MeshConfig().build(jax.devices()[:1]).batch
    for blocks, error, message in ((Empty(), UserError, "filters out"), (Broken(), OSError, "disk is gone")):
        with data.Batches(blocks, 1, 4, sharding) as batches, pytest.raises(error, match=message):
            next(batches)
