"""The queue of rows, with something quicker than a model behind it."""

import asyncio
import threading

import pytest

from t5x_lite.decoding import Decoder
from t5x_lite.inference import Answer, Row
from t5x_lite.serving.batching import Batcher, Full

GREEDY, BEAM = Decoder(4), Decoder(4, "beam")


class Echo:
    """Answers a row with its first id; holds the first batch until `go`."""

    def __init__(self, held=True):
        self.go, self.batches = threading.Event(), []
        if not held:
            self.go.set()

    def __call__(self, rows):
        self.batches.append([row.inputs[0] for row in rows])
        assert self.go.wait(30)
        if 13 in self.batches[-1]:
            raise MemoryError("too large")
        return [Answer((str(row.inputs[0]),), (0.0,)) for row in rows]


def rows(*ids, decoder=GREEDY):
    return [Row([i], decoder=decoder) for i in ids]


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def asked(echo, batcher, first, *others):
    """Tasks that wait for the answers of these requests; the first is on its way through the model."""
    tasks = [asyncio.create_task(batcher.answer(first))]
    await until(lambda: echo.batches)
    for number, request in enumerate(others, start=1):
        tasks.append(asyncio.create_task(batcher.answer(request)))
        await until(lambda: batcher.waiting == sum(map(len, others[:number])))  # noqa: B023
    return tasks


def test_rows_that_gather_share_batches_and_are_given_back_in_order():
    async def main():
        echo = Echo()
        batcher = Batcher(echo, batch_size=3, queue_limit=100)
        tasks = await asked(echo, batcher, rows(1), rows(2, 3), rows(4), rows(5, 6, 7))
        echo.go.set()
        found = [[answer.texts[0] for answer in await task] for task in tasks]
        assert found == [["1"], ["2", "3"], ["4"], ["5", "6", "7"]]
        assert echo.batches == [[1], [2, 3, 4], [5, 6, 7]]
        assert (batcher.batches, batcher.rows, batcher.waiting) == (3, 7, 0)
        await batcher.close()

    asyncio.run(main())


def test_a_batch_is_of_one_kind_and_the_longest_waiting_comes_first():
    async def main():
        echo = Echo()
        batcher = Batcher(echo, batch_size=8, queue_limit=100)
        longer = Decoder(9, "greedy", temperature=3.0)  # the same program
        tasks = await asked(
            echo, batcher, rows(1), rows(2, decoder=BEAM), rows(3), rows(4, decoder=BEAM), rows(5, decoder=longer)
        )
        echo.go.set()
        await asyncio.gather(*tasks)
        assert echo.batches == [[1], [2, 4], [3, 5]]
        await batcher.close()

    asyncio.run(main())


def test_the_first_row_waits_for_others():
    async def main():
        echo = Echo(held=False)
        batcher = Batcher(echo, batch_size=3, queue_limit=100, gather_seconds=0.5)
        first = asyncio.create_task(batcher.answer(rows(1)))
        for _ in range(10):
            await asyncio.sleep(0)  # time enough to be taken alone
        await asyncio.gather(first, batcher.answer(rows(2)))
        assert echo.batches == [[1, 2]]
        await batcher.close()

    asyncio.run(main())


def test_a_full_queue_takes_all_of_a_request_or_nothing():
    async def main():
        echo = Echo()
        batcher = Batcher(echo, batch_size=2, queue_limit=3)
        tasks = await asked(echo, batcher, rows(1), rows(2, 3))
        with pytest.raises(Full, match="2 texts are waiting, of at most 3"):
            await batcher.answer(rows(4, 5))
        assert batcher.waiting == 2
        last = asyncio.create_task(batcher.answer(rows(6)))
        echo.go.set()
        await asyncio.gather(*tasks, last)
        assert echo.batches == [[1], [2, 3], [6]]
        await batcher.close()

    asyncio.run(main())


def test_who_no_longer_waits_is_left_out():
    async def main():
        echo = Echo()
        batcher = Batcher(echo, batch_size=8, queue_limit=4)
        first, gone, last = await asked(echo, batcher, rows(1), rows(2, 3, 4), rows(5))
        gone.cancel()
        await until(lambda: batcher.waiting == 1)
        more = asyncio.create_task(batcher.answer(rows(6, 7)))  # there is room again
        first.cancel()  # its batch is under way
        echo.go.set()
        assert [answer.texts for answer in await last + await more] == [("5",), ("6",), ("7",)]
        assert echo.batches == [[1], [5, 6, 7]]
        await batcher.close()

    asyncio.run(main())


def test_a_batch_that_fails_is_the_only_one():
    async def main():
        echo = Echo()
        batcher = Batcher(echo, batch_size=2, queue_limit=100)
        one, two, three = await asked(echo, batcher, rows(1), rows(2, 13), rows(4))
        echo.go.set()
        with pytest.raises(MemoryError):
            await two
        assert (await one)[0].texts == ("1",) and (await three)[0].texts == ("4",)
        await batcher.close()

    asyncio.run(main())
