"""What a run shows and leaves behind: meters, the progress bar, metrics.jsonl, TensorBoard events, text tables.

Nothing here needs TensorFlow. `writers.py` is what stays in files, `trackers.py` what goes elsewhere, `meters.py`
measures, `progress.py` is what a person sees while it runs, `terminal.py` its tables, `journal.py` keeps what was said,
`watchdog.py` shows where it hangs, `profile.py` what takes the time.
"""

from t5x_lite.monitor.journal import JOURNAL_FILE, Journal, read_journal
from t5x_lite.monitor.meters import Lagged, Meter, peak_memory
from t5x_lite.monitor.profile import Profile, Profiler
from t5x_lite.monitor.progress import EVERY_SECONDS, Progress, TrainingProgress
from t5x_lite.monitor.terminal import Table, duration, short_number
from t5x_lite.monitor.trackers import MLflow, WandB, beside
from t5x_lite.monitor.watchdog import Watchdog
from t5x_lite.monitor.writers import METRICS_FILE, MetricsWriter, metric_line, metrics_files

__all__ = [
    "EVERY_SECONDS",
    "JOURNAL_FILE",
    "METRICS_FILE",
    "Journal",
    "Lagged",
    "MLflow",
    "Meter",
    "MetricsWriter",
    "Profile",
    "Profiler",
    "Progress",
    "Table",
    "TrainingProgress",
    "WandB",
    "Watchdog",
    "beside",
    "duration",
    "metric_line",
    "metrics_files",
    "peak_memory",
    "read_journal",
    "short_number",
]
