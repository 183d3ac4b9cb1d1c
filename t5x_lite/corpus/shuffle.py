"""Grouping by key, without holding in memory what is grouped.

Beam's runner for one machine keeps all that it groups in memory. So on one machine records go to files instead: each
worker sorts what it has in memory by partition and key, and writes it as a run; a partition is then merged from its
part of every run. Elsewhere the runner's own GroupByKey does it.
"""

import heapq
import itertools
import marshal
import struct
import uuid
import zlib
from collections.abc import Iterator
from operator import itemgetter
from typing import NamedTuple

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue
from etils import epath

from t5x_lite.corpus import progress

PARTITIONS = 64
RUN_BYTES = 64 << 20  # of memory for records before a run is written
_RECORD_OVERHEAD = 200  # bytes that Python needs for a record beside its own
_BLOCK_BYTES = 1 << 16  # records are packed and read by so many bytes
_LENGTH = struct.Struct("<I")


class Grouping(beam.DoFn):
    """A DoFn of groups: `group(key, values)` gets each key once, with all of its values in any order."""

    def group(self, key: bytes, values) -> Iterator:
        raise NotImplementedError

    def process(self, key_and_values):
        yield from self.group(*key_and_values)


class Place(NamedTuple):
    """Where records are grouped on disk: folders that all workers see.

    Attributes:
      runs: for the records.
      marks: for the partitions that are done (see progress.py).
    """

    runs: str
    marks: str


class GroupInto(beam.PTransform):
    """Groups (bytes, value) of one or several collections by key into a Grouping.

    Args:
      grouping: what gets the groups.
      step: what it is called in lines of progress.
      place: None to let the runner group.
      outputs: names of the grouping's side outputs.

    Values are made of bytes, str, int, float and tuples of them.
    """

    def __init__(self, grouping: Grouping, step: str, place: Place | None, outputs: tuple[str, ...] = ()):
        super().__init__()
        self._grouping, self._step, self._place, self._outputs = grouping, step, place, outputs

    def expand(self, collections):
        collections = collections if isinstance(collections, tuple) else (collections,)
        if self._place is None:
            groups = collections | beam.Flatten() | beam.GroupByKey()
            return groups | beam.ParDo(self._grouping).with_outputs(*self._outputs, main="main")
        # Only names of files pass through the runner, and they are few.
        runs = tuple(c | f"Spill{i}" >> beam.ParDo(_Spill(self._place.runs)) for i, c in enumerate(collections))
        return (
            runs
            | beam.Flatten()
            | beam.Map(lambda run: (b"", run))
            | beam.GroupByKey()
            | beam.FlatMap(_by_partition)
            | beam.Reshuffle()
            | "Merge"
            >> beam.ParDo(_Merge(self._grouping, self._step, self._place.marks)).with_outputs(
                *self._outputs, main="main"
            )
        )


def _by_partition(key_and_runs):
    """(partition, [(file, start, end)]) of each partition that has records."""
    parts = {}
    for file, places in sorted(key_and_runs[1]):
        for partition, start, end in places:
            parts.setdefault(partition, []).append((file, start, end))
    yield from sorted(parts.items())


class _Spill(beam.DoFn):
    """(key, value) -> (file, [(partition, start, end)]) of the runs written."""

    def __init__(self, folder: str):
        self._folder = folder

    def start_bundle(self):
        self._records, self._bytes = [], 0

    def process(self, key_and_value):
        packed = marshal.dumps(key_and_value)
        self._records.append((zlib.crc32(key_and_value[0]) % PARTITIONS, key_and_value[0], packed))
        self._bytes += len(packed) + _RECORD_OVERHEAD
        if self._bytes >= RUN_BYTES:
            yield self._write()

    def finish_bundle(self):
        if self._records:
            yield WindowedValue(self._write(), GlobalWindow().max_timestamp(), (GlobalWindow(),))

    def _write(self):
        self._records.sort()
        path = epath.Path(self._folder) / f"{uuid.uuid4().hex}.run"
        path.parent.mkdir(parents=True, exist_ok=True)
        places = []
        with path.open("wb") as file:
            for partition, records in itertools.groupby(self._records, key=itemgetter(0)):
                start = file.tell()
                _pack(file, map(itemgetter(2), records))
                places.append((partition, start, file.tell()))
        self._records, self._bytes = [], 0
        return str(path), tuple(places)


class _Merge(beam.DoFn):
    """(partition, [(file, start, end)]) -> what the grouping makes of the partition's groups."""

    def __init__(self, grouping: Grouping, step: str, marks: str):
        self._grouping, self._step, self._marks = grouping, step, marks

    def setup(self):
        self._grouping.setup()

    def start_bundle(self):
        self._grouping.start_bundle()

    def process(self, partition_and_runs):
        runs = [_unpack(*place) for place in partition_and_runs[1]]
        for key, records in itertools.groupby(heapq.merge(*runs, key=itemgetter(0)), key=itemgetter(0)):
            yield from self._grouping.group(key, map(itemgetter(1), records))
        progress.mark(self._marks, self._step, partition_and_runs[0])

    def finish_bundle(self):
        return self._grouping.finish_bundle()


def _pack(file, records: Iterator[bytes]) -> None:
    block, size = [], 0
    for record in records:
        block.append(_LENGTH.pack(len(record)) + record)
        size += len(record)
        if size >= _BLOCK_BYTES:
            _write_block(file, block)
            block, size = [], 0
    if block:
        _write_block(file, block)


def _write_block(file, block: list[bytes]) -> None:
    packed = zlib.compress(b"".join(block), 1)
    file.write(_LENGTH.pack(len(packed)) + packed)


def _unpack(path: str, start: int, end: int) -> Iterator[tuple[bytes, object]]:
    with epath.Path(path).open("rb") as file:
        file.seek(start)
        while start < end:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            block = zlib.decompress(file.read(length))
            start += _LENGTH.size + length
            place = 0
            while place < len(block):
                (size,) = _LENGTH.unpack_from(block, place)
                place += _LENGTH.size + size
                yield marshal.loads(block[place - size : place])
