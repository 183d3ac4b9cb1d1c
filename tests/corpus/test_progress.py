"""Lines on how far a corpus is, and which runner makes it."""

import sys
import time

import pytest

from t5x_lite.corpus import progress, runners
from t5x_lite.errors import UserError


def test_parts_that_are_done_are_told_in_the_order_of_the_steps(tmp_path, capsys):
    with progress.Progress(str(tmp_path), {"files read": 3, "cleaned": 64, "written": 64}, 0.01, 0.01) as watched:
        assert watched.line() == ""
        progress.mark(str(tmp_path), "cleaned", 5)
        progress.mark(str(tmp_path), "files read", "a")
        progress.mark(str(tmp_path), "files read", "b")
        progress.mark(str(tmp_path), "files read", "b")  # once more after a failure
        assert watched.line() == "files read 2 of 3, cleaned 1 of 64"
        for _ in range(500):
            time.sleep(0.01)
            if "corpus: files read 2 of 3, cleaned 1 of 64" in (said := capsys.readouterr().err):
                break
    assert "corpus: files read 2 of 3, cleaned 1 of 64" in said
    progress.mark(None, "cleaned", 6)  # where no one looks


def test_beam_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    with pytest.raises(UserError, match=r"corpus needs Apache Beam .*: install the extra with pip install 't5x-lite\["):
        runners.choose("", 1, "log")


def test_runners():
    pytest.importorskip("apache_beam", reason="needs the extra `corpus`")
    from apache_beam.options.pipeline_options import DirectOptions, StandardOptions

    one, two = runners.choose("", 1, "log"), runners.choose("--job_name=mine", 2, "log")
    assert one.here and two.here and two.options.view_as(DirectOptions).direct_num_workers == 2
    other = runners.choose("--runner=PortableRunner --job_endpoint=localhost:1", None, "log")
    assert not other.here and other.options.view_as(StandardOptions).runner == "PortableRunner"
    with pytest.raises(UserError, match="corpus.workers must be a whole number of at least 1, not 0"):
        runners.choose("", 0, "log")
