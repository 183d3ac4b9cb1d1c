"""What hangs shows where."""

import threading
import time

from t5x_lite import monitor


def text_after(path, condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition(path.read_text()) and time.monotonic() < end:
        time.sleep(0.01)
    return path.read_text()


def test_the_stack_of_every_thread_is_printed_when_nothing_happens(tmp_path):
    over = threading.Event()

    def hangs_in_the_data_pipeline():
        over.wait()

    thread = threading.Thread(target=hangs_in_the_data_pipeline)
    thread.start()
    try:
        with open(tmp_path / "stderr", "w+") as file, monitor.Watchdog(0.2, file):
            found = text_after(tmp_path / "stderr", lambda text: text.count("Timeout") >= 2)
    finally:
        over.set()
        thread.join()
    assert found.count("Timeout") >= 2, "again and again"
    assert "hangs_in_the_data_pipeline" in found and "text_after" in found


def test_signs_of_life_keep_it_quiet(tmp_path):
    with open(tmp_path / "stderr", "w+") as file:
        with monitor.Watchdog(30.0, file) as watchdog:
            for _ in range(100):
                watchdog.alive()
        with monitor.Watchdog(0.05, file):
            pass
        with monitor.Watchdog(None, file) as off:
            off.alive()
        time.sleep(0.2)
    assert (tmp_path / "stderr").read_text() == ""
