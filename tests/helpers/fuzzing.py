"""What the fuzzed tests share: how many cases, in which order, and what ends one that hangs."""

import contextlib
import faulthandler
import os

import hypothesis
import pytest

SECONDS = 300  # after which a case hangs


def cases(few: int, many: int):
    """Parametrizes a test by `n`, the number of cases: few of them always, many behind the marker `slow`."""
    return pytest.mark.parametrize("n", [pytest.param(few, id="few"), pytest.param(many, id="many",
                                                                                  marks=pytest.mark.slow)])


def check(n: int, strategy, property) -> None:
    """Calls `property` with n cases that `strategy` draws: the same ones in every run.

    A case that hangs ends the process, with every thread's stack. Those before it are counted on stdout.
    """
    done = []

    @hypothesis.settings(max_examples=n, deadline=None, database=None, derandomize=True,
                         phases=[hypothesis.Phase.generate],  # shrinking what fails would take hours
                         suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(strategy)
    def run(case):
        with ends_in_time():
            property(case)
        done.append(1)

    try:
        run()
    finally:
        print(f"{len(done):,} cases ran")


@contextlib.contextmanager
def ends_in_time():
    faulthandler.dump_traceback_later(SECONDS, exit=True, file=os.sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
