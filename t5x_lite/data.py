"""Training data as a deterministic stream of global batches.

    source ── block (stream, k) ── rows ── streams ── global batch ── devices

A run has S streams, whatever the number of hosts: row i of a global batch of B rows comes from stream ⌊i·S/B⌋. A stream
is a sequence of blocks, and a block is a function of (seed, stream, k) alone, so that where a stream stands is two
integers: the block and the rows taken from it. They are saved with each checkpoint; going on costs the replay of one
block. Nothing here needs TensorFlow; `SeqioSource` imports it when it is opened (`seqio_blocks.py`).
"""

import dataclasses
import hashlib
import itertools
import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath

import gin
from t5x_lite import buckets, together
from t5x_lite.errors import UserError, first_line
from t5x_lite.text_files import TextFiles
from t5x_lite.vocabularies import Vocabulary

Row = dict[str, np.ndarray]
# A checkpoint's vocabulary, which is read only where it is needed.
FallbackVocabulary = Callable[[], Any | None] | None
# What a row must have, by architecture (a language model's row is inputs and targets in one), and what it may have.
LANGUAGE_MODEL_FEATURES = ("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights")
FEATURES = ("encoder_input_tokens", *LANGUAGE_MODEL_FEATURES)
OPTIONAL_FEATURES = ("encoder_segment_ids", "decoder_segment_ids", "decoder_causal_attention")
# Streams give up after so many blocks without a row: the task filters everything away.
EMPTY_BLOCKS = 100
# Rows of a stream's first block after which its second one is opened ahead.
ROWS_BEFORE_AHEAD = 32


class Blocks(Protocol):
    """An opened source."""

    @property
    def vocabulary(self) -> Vocabulary | None:
        """None where the source does not know it."""

    def block(self, stream: int, k: int) -> Iterator[Row]:
        """Rows of block k of one stream: int32 arrays of fixed lengths named as in FEATURES (and OPTIONAL_FEATURES)."""


def derive_seed(*parts) -> int:
    """A seed in [0, 2^31) from anything printable: near inputs give far seeds, the same in every process."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little") & 0x7FFFFFFF


def permute(indices: np.ndarray, size: int, seed: int) -> np.ndarray:
    """A seeded bijection of [0, size), applied to int64 indices, without a table.

    A four-round Feistel network on the next power of four, walked until it is back in range (Black & Rogaway 2002,
    "Ciphers with arbitrary finite domains").
    """
    bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << bits) - 1)
    keys = [np.uint64(derive_seed(seed, i)) for i in range(4)]

    def encrypt(x):
        left, right = x >> np.uint64(bits), x & mask
        for key in keys:
            mixed = (right + key) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
            mixed *= np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        return (left << np.uint64(bits)) | right

    out = encrypt(np.asarray(indices, np.uint64))
    while (outside := out >= size).any():
        out[outside] = encrypt(out[outside])
    return out.astype(np.int64)


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class SeqioSource:
    """A seqio task or mixture: registered, made of files, or mixed from any of them.

    Attributes:
      mixture_or_task_name: as registered; a name of files such as `tsv:/data/train.tsv` (see TextFiles); or several
        of either with their rates, `{"tsv:/data/train.tsv": 1.0, "pydocs_library": 0.5}`.
      feature_lengths: `{"inputs": 512, "targets": 114}`.
      split: of the data set.
      packing: several examples to a row, which never attend to each other.
      loss_on_targets_only: whether a language model learns from its inputs, too, or from the targets alone.
      seed: of order and of every random preprocessing.
      num_streams: fixed for the life of a run; divides the batch size.
      block_records: records in a block, where the source can be read at any place.
      shuffle_buffer: examples among which a block is shuffled after preprocessing.
      task_modules: modules that register tasks, imported when the source is opened.
      vocabulary: used by every feature instead of the task's own (`@ByteVocabulary()`).
      text_files: options of the files that `mixture_or_task_name` names.
      named_files: files with options of their own, by the name that they have in `mixture_or_task_name`.
      cache_dir: where `t5x-lite cache` wrote the tasks on this vocabulary: their tokens are read, and not their data.
    """

    mixture_or_task_name: str | Mapping[str, float]
    feature_lengths: Mapping[str, int]
    split: str = "train"
    packing: bool = True
    loss_on_targets_only: bool = True
    seed: int = 0
    num_streams: int = 4
    block_records: int = 2048
    shuffle_buffer: int = 1000
    task_modules: Sequence[str] = ("t5x_lite.tasks",)
    vocabulary: Vocabulary | None = None
    text_files: TextFiles | None = None
    named_files: Mapping[str, TextFiles] = dataclasses.field(default_factory=dict)
    cache_dir: str | None = None

    def open(self, architecture: str = "encoder_decoder", fallback_vocabulary: FallbackVocabulary = None) -> Blocks:
        """Rows as `T5Config.architecture` takes them.

        Args:
          fallback_vocabulary: called for the vocabulary of data that have none of their own.

        Raises:
          UserError: an unknown task or split, too short feature lengths, or a task without inputs for an encoder.
        """
        from t5x_lite import seqio_blocks  # TensorFlow: seconds, and absent on some machines

        return seqio_blocks.SeqioBlocks(self, architecture, fallback_vocabulary)


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class NpzSource:
    """Tokenized rows in .npz files: arrays [n, length] named as in FEATURES, needing neither seqio nor TensorFlow.

    For a language model, arrays named as in LANGUAGE_MODEL_FEATURES serve as well.

    Attributes:
      pattern: one file or a glob, local or remote.
      vocabulary: kept in the checkpoints, so that text can be given to the model later.
    """

    pattern: str
    seed: int = 0
    num_streams: int = 4
    vocabulary: Vocabulary | None = None

    def open(
        self, architecture: str = "encoder_decoder", fallback_vocabulary: FallbackVocabulary = None
    ) -> "NpzBlocks":
        """As `SeqioSource.open`."""
        return NpzBlocks(self, architecture, fallback_vocabulary)


class ColumnBlocks:
    """Rows that are in memory: a block is one stream's share of one epoch, in an order of its own.

    Args:
      columns: arrays [n, length] named as in FEATURES.
    """

    def __init__(
        self, columns: Mapping[str, np.ndarray], seed: int, num_streams: int = 1, vocabulary: Vocabulary | None = None
    ):
        self.vocabulary = vocabulary
        self._columns, self._seed, self._num_streams = columns, seed, num_streams
        self._size = len(next(iter(columns.values())))

    def block(self, stream: int, k: int) -> Iterator[Row]:
        places = np.arange(stream, self._size, self._num_streams)
        for i in permute(places, self._size, derive_seed(self._seed, "epoch", k)):
            yield {name: column[i] for name, column in self._columns.items()}


class NpzBlocks(ColumnBlocks):
    """The rows of a source's files.

    Attributes:
      largest_id: of all tokens.
    """

    def __init__(self, source: NpzSource, architecture: str, fallback_vocabulary: FallbackVocabulary = None):
        required = FEATURES if architecture == "encoder_decoder" else LANGUAGE_MODEL_FEATURES
        vocabulary = source.vocabulary or (fallback_vocabulary() if fallback_vocabulary else None)
        files = buckets.glob(source.pattern)
        if not files:
            raise UserError(f"NpzSource.pattern = {source.pattern!r}: no such file; give a .npz file or a glob")
        parts = [_read_rows(file, required) for file in files]
        if len({tuple((n, a.shape[1:]) for n, a in part.items()) for part in parts}) != 1:
            raise UserError(f"the files of {source.pattern!r} differ in their arrays or lengths; give one kind")
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        super().__init__(columns, source.seed, source.num_streams, vocabulary)
        self.largest_id = max(int(column.max(initial=0)) for n, column in columns.items() if n.endswith("tokens"))
        if any(len(column) != self._size for column in columns.values()):
            raise UserError(f"the arrays of {source.pattern!r} differ in their number of rows")
        if self._size < source.num_streams:
            raise UserError(
                f"{source.pattern!r} has {self._size} rows for {source.num_streams} streams; lower num_streams"
            )


def _read_rows(file: str, required: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of one .npz file, int32 [n, length] each. Raises UserError that names the file."""
    try:
        with epath.Path(file).open("rb") as opened:
            if opened.read(2) != b"PK":  # a zip file's, however much of it is left
                raise UserError(
                    f"{file} is no .npz file: give what numpy.savez wrote, or text as tsv:, jsonl: or text:"
                )
            opened.seek(0)
            arrays = np.load(opened, allow_pickle=False)
            missing = [name for name in required if name not in arrays]
            if missing:
                raise UserError(f"{file} lacks the array(s) {', '.join(missing)}; it has {', '.join(arrays)}")
            found = {name: arrays[name] for name in (*FEATURES, *OPTIONAL_FEATURES) if name in arrays}
    except UserError:
        raise
    except Exception as e:  # of every kind: zipfile and NumPy trust what a file says of itself
        raise UserError(f"{file} cannot be read as .npz ({first_line(e)}): is it cut short or damaged?") from e
    rows = {}
    for name, array in found.items():
        with np.errstate(invalid="ignore"):
            rows[name] = array.astype(np.int32) if array.dtype.kind in "iubf" else None
        if array.ndim != 2 or rows[name] is None or (rows[name] != array).any():
            raise UserError(f"{file}: {name} is {array.dtype} {list(array.shape)}; give whole numbers, [rows, length]")
    return rows


class Stream:
    """Rows of one stream, without end.

    Args:
      opener: opens the next block while this one is read: building a block takes seconds. None opens each when it is
        its turn. Which rows come, and the position, are the same.
    """

    def __init__(self, blocks: Blocks, index: int, position: Sequence[int] = (0, 0), opener: Executor | None = None):
        self._blocks, self._index, self._opener = blocks, index, opener
        self._k, self._offset = int(position[0]), int(position[1])
        self._rows: Iterator[Row] | None = None
        self._ahead: Future[Iterator[Row]] | None = None  # of the block after this one
        # Half a block ahead is time enough, and shorter than that two blocks' buffers are in memory.
        self._rows_before_ahead = ROWS_BEFORE_AHEAD

    @property
    def position(self) -> tuple[int, int]:
        """(block, rows taken from it)."""
        return self._k, self._offset

    def take(self, n: int) -> list[Row]:
        rows: list[Row] = []
        empty = 0
        while len(rows) < n:
            if self._rows is None:
                ahead, self._ahead = self._ahead, None
                self._rows = self._open(self._k) if ahead is None else ahead.result()
                for _ in range(self._offset):
                    next(self._rows, None)
            row = next(self._rows, None)
            if row is not None:
                rows.append(row)
                self._offset += 1
                if self._opener and self._ahead is None and self._offset >= self._rows_before_ahead:
                    self._ahead = self._opener.submit(self._open, self._k + 1)
                continue
            empty = empty + 1 if self._offset == 0 else 0
            if empty == EMPTY_BLOCKS:
                raise UserError(f"{EMPTY_BLOCKS} blocks of data in a row are empty; the task filters out every example")
            self._rows_before_ahead = self._offset // 2
            self._rows, self._k, self._offset = None, self._k + 1, 0
        return rows

    def _open(self, k: int) -> Iterator[Row]:
        """Block k, built as far as its first row."""
        rows = self._blocks.block(self._index, k)
        return itertools.chain(list(itertools.islice(rows, 1)), rows)


class Batches:
    """Global batches on the devices, prepared ahead by a thread while steps run.

    Iterating gives (batch, positions): global `jax.Array`s, and where this process's streams stand after the batch
    (int64 [S, 2], zeros for streams of other processes).

    Raises:
      UserError: S does not divide the batch, or a process's devices hold only part of a stream's rows.
    """

    def __init__(
        self,
        blocks: Blocks,
        num_streams: int,
        batch_size: int,
        sharding: jax.sharding.NamedSharding,
        positions: np.ndarray | None = None,
        depth: int = 4,
    ):
        if num_streams < 1 or batch_size % num_streams:
            raise UserError(f"num_streams = {num_streams} must divide BATCH_SIZE = {batch_size}; use a power of two")
        self._rows_each = batch_size // num_streams
        self._batch_size, self._sharding = batch_size, sharding
        self._positions = np.zeros((num_streams, 2), np.int64) if positions is None else np.array(positions)
        if self._positions.shape != (num_streams, 2):
            raise UserError(
                f"this run was begun with {len(self._positions)} data streams, not {num_streams}; "
                "num_streams stays as it was"
            )
        slices = [s[0] for s in sharding.addressable_devices_indices_map((batch_size,)).values()]
        rows = sorted({i for s in slices for i in range(*s.indices(batch_size))})
        own = sorted({i // self._rows_each for i in rows})
        # One thread: pipelines are built in Python, which does one thing at a time.
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="blocks")
        self._streams = {i: Stream(blocks, i, self._positions[i], self._opener) for i in own}
        self._queue: queue.Queue = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="batches", daemon=True)
        self._thread.start()

    def __iter__(self):
        return self

    def __next__(self) -> tuple[dict[str, jax.Array], np.ndarray]:
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Stops the thread. What was prepared and not taken is lost, and its positions were never handed out."""
        self._stopped.set()
        self._opener.shutdown(wait=False, cancel_futures=True)
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.05)
        self._opener.shutdown()

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()

    def _produce(self) -> None:
        try:
            while not self._stopped.is_set():
                self._put(self._next_batch())
        except BaseException as problem:  # handed to the consumer, whose call failed
            self._put(problem)

    def _put(self, item) -> None:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def _next_batch(self):
        each = self._rows_each
        by_stream = {i: stream.take(each) for i, stream in self._streams.items()}
        positions = np.zeros_like(self._positions)
        for i, stream in self._streams.items():
            positions[i] = stream.position
        first = next(iter(by_stream.values()))[0]

        def array(name: str) -> jax.Array:
            def rows(index):
                start, stop, _ = index[0].indices(self._batch_size)
                return np.stack([by_stream[r // each][r % each][name] for r in range(start, stop)])

            shape = (self._batch_size, *first[name].shape)
            return jax.make_array_from_callback(shape, self._sharding, rows)

        names = [name for name in (*FEATURES, *OPTIONAL_FEATURES) if name in first]
        return {name: array(name) for name in names}, positions


def gather_positions(positions: np.ndarray) -> np.ndarray:
    """The positions of all streams on every process, int64 [S, 2]."""

    def whole(said: list[str]) -> str:
        return json.dumps(np.array([json.loads(text) for text in said], np.int64).max(axis=0).tolist())

    return np.array(json.loads(together.combined("positions", json.dumps(positions.tolist()), whole)), np.int64)
