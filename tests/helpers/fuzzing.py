"""What the fuzzed tests share: how many cases, in which order, and what ends one that hangs."""

import contextlib
import faulthandler
import sys

import hypothesis
import pytest

SECONDS = 600  # after which a case hangs


def cases(few: int, many: int):
    """Parametrizes a test by `n`, the number of cases: few of them always, many behind the marker `slow`."""
    return pytest.mark.parametrize(
        "n", [pytest.param(few, id="few"), pytest.param(many, id="many", marks=pytest.mark.slow)]
    )


def check(n: int, strategy, property) -> None:
    """Calls `property` with n cases that `strategy` draws: the same ones in every run.

    A case that hangs ends the process, with every thread's stack. One that fails does not keep the others from running.
    """
    ran, failed = 0, []

    @hypothesis.settings(
        max_examples=n,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def run(case):
        nonlocal ran
        ran += 1
        try:
            with ends_in_time():
                property(case)
        except Exception as e:
            failed.append((case, e))
            print(f"case {ran} failed: {case!r}: {type(e).__name__}: {e}", file=sys.__stderr__, flush=True)

    run()
    print(f"{ran:,} cases ran", file=sys.__stderr__, flush=True)
    if failed:
        raise AssertionError(f"{len(failed)} of {ran} cases failed, the first: {failed[0][0]!r}") from failed[0][1]


@contextlib.contextmanager
def ends_in_time():
    faulthandler.dump_traceback_later(SECONDS, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
