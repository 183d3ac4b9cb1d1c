"""Empty folders for gin files, of the user and shipped ones."""

import pytest

from t5x_lite import configuration, gin_files


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every test runs in an empty folder, so that nothing is found by luck, and ends with nothing parsed."""
    monkeypatch.chdir(tmp_path)
    yield
    configuration.clear()


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder of shipped files of the test's own: ranks and origins are told by it."""
    folder = tmp_path / "installed" / "gin"
    (folder / "models").mkdir(parents=True)
    monkeypatch.setattr(gin_files, "shipped_folder", lambda: folder)
    return folder
