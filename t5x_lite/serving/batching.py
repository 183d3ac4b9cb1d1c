"""Rows of concurrent requests, answered together.

    requests ── rows, in a queue of bounded length ── batches of one kind ── one thread, which waits for the devices

While a batch is being answered, rows gather; so the more requests there are, the fuller the batches.
"""

import asyncio
import collections
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from t5x_lite.inference import Answer, Row

# Rows of one `Row.kind` -> their answers, in a thread.
Predict = Callable[[Sequence[Row]], list[Answer]]


class Full(Exception):
    """The queue has no room for the rows."""


class Batcher:
    """All methods belong to the event loop; only `predict` runs elsewhere, one batch after the other.

    Args:
      predict: answers a batch.
      batch_size: rows at a time.
      queue_limit: rows that may wait.
      gather_seconds: how long the first row that comes to an idle model waits for others.

    Attributes:
      batches, rows: answered so far.
    """

    def __init__(self, predict: Predict, batch_size: int, queue_limit: int, gather_seconds: float = 0.0):
        self._predict, self._batch_size = predict, batch_size
        self._limit, self._gather_seconds = queue_limit, gather_seconds
        self._queue: collections.deque[tuple[Row, asyncio.Future[Answer]]] = collections.deque()
        self._came = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._task = asyncio.get_running_loop().create_task(self._run())
        self.batches = self.rows = 0

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return sum(not answer.done() for _, answer in self._queue)

    async def answer(self, rows: Sequence[Row]) -> list[Answer]:
        """The answers to one request. Cancelled, its rows that still wait are left out.

        Raises:
          Full: at once; none of the rows is taken.
          Exception: what `predict` raised.
        """
        if self.waiting + len(rows) > self._limit:
            raise Full(f"{self.waiting} texts are waiting, of at most {self._limit}: ask again later")
        loop = asyncio.get_running_loop()
        answers = [loop.create_future() for _ in rows]
        self._queue.extend(zip(rows, answers, strict=True))
        self._came.set()
        # Cancels the others where the request is cancelled or one fails.
        return list(await asyncio.gather(*answers))

    async def close(self) -> None:
        """Ends when the batch on the devices is done. What still waits is cancelled."""
        self._task.cancel()
        for _, answer in self._queue:
            answer.cancel()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._queue:
                self._came.clear()
                await self._came.wait()
                if len(self._queue) < self._batch_size:
                    await asyncio.sleep(self._gather_seconds)
            batch = self._next_batch()
            if not batch:
                continue
            rows, answers = zip(*batch, strict=True)
            try:
                found: list[Any] = await loop.run_in_executor(self._thread, self._predict, rows)
            except Exception as problem:  # out of memory, say: the requests that follow may fit
                for answer in answers:
                    if not answer.done():
                        answer.set_exception(problem)
                continue
            self.batches, self.rows = self.batches + 1, self.rows + len(rows)
            for answer, one in zip(answers, found, strict=True):
                if not answer.done():
                    answer.set_result(one)

    def _next_batch(self) -> list[tuple[Row, asyncio.Future[Answer]]]:
        """The first row that waits and those of its kind, in their order; the others stay where they are."""
        waiting = [(row, answer) for row, answer in self._queue if not answer.done()]
        batch = [item for item in waiting if item[0].kind == waiting[0][0].kind][: self._batch_size]
        taken = {id(answer) for _, answer in batch}
        self._queue = collections.deque(item for item in waiting if id(item[1]) not in taken)
        return batch
