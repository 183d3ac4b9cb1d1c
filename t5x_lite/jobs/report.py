"""The job `report`: runs as one page of curves, tables and texts, to look at or to send."""

from collections.abc import Sequence

from etils import epath

import gin
from t5x_lite import configuration, console
from t5x_lite.errors import UserError
from t5x_lite.report import page, runs


@gin.configurable("report", module="t5x_lite")
def report(model_dirs: str | Sequence[str] = (), output: str = "report.html", title: str | None = None) -> int:
    """Writes one HTML file that needs no network and no other file.

    It has each run's losses, metrics and speed over its steps, beside those of the others; the best checkpoint by each
    metric; predictions beside targets; what went wrong and how often it was started; the configuration, and what
    differs; the parameters and how they are sharded. Runs that are still going can be shown, too.

    Args:
      model_dirs: a MODEL_DIR, or several.
      output: the file to write.
      title: above the page; the runs' names by default.

    Raises:
      UserError: a folder that is not there, or not a run's.
    """
    folders = [model_dirs] if isinstance(model_dirs, str) else list(model_dirs)
    if not folders:
        raise UserError("report: name a MODEL_DIR, or several, as in t5x-lite report runs/quickstart/pretrain")
    configuration.check_all_read()
    found = runs.read(folders)
    text = page.make(found, title or ", ".join(run.label for run in found))
    path = epath.Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    console.show(f"{path}: {len(found)} run(s), {len(text) / 1024:,.0f} KiB")
    return 0
