"""SIGTERM: noted while the state is held, an exception where a run only waits; real signals to this process."""

import os
import queue
import signal
import threading

import pytest

from t5x_lite import preemption
from t5x_lite.errors import Preempted


def tell():
    os.kill(os.getpid(), signal.SIGTERM)


def test_it_ends_what_only_waits_and_leaves_the_signal_as_it_was():
    before = signal.getsignal(signal.SIGTERM)

    def wait():
        threading.Timer(0.1, tell).start()
        queue.Queue().get()  # as a run waits for a batch: for ever

    with pytest.raises(Preempted) as caught, preemption.listening():
        wait()
    assert caught.value.code == 75
    assert signal.getsignal(signal.SIGTERM) is before


def test_it_is_noted_while_the_state_is_held():
    with preemption.listening() as notice, notice.held():
        assert not notice.reached(1)
        with notice.interruptible():
            pass
        tell()
        assert notice.reached(2)
        with pytest.raises(Preempted), notice.interruptible():
            raise AssertionError("nothing more is begun")
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "the second signal kills"


def test_it_ends_what_is_interruptible_inside_what_is_held():
    def go_on():
        tell()
        raise AssertionError("not reached")

    with preemption.listening() as notice, notice.held():
        with pytest.raises(Preempted), notice.interruptible():
            go_on()


def test_in_another_thread_nothing_is_taken():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with preemption.listening() as notice:
            seen.append((signal.getsignal(signal.SIGTERM), notice.reached(1)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
