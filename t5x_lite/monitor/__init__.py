"""What a run shows and leaves behind: meters, the progress bar, metrics.jsonl, TensorBoard events, text tables.

Nothing here needs TensorFlow. `writers.py` is what stays in files, `meters.py` measures, `terminal.py` is what a person
sees while it runs, `journal.py` keeps what was said, `watchdog.py` shows where it hangs,
`profile.py` what takes the time.
"""

from t5x_lite.monitor.journal import JOURNAL_FILE, Journal, read_journal
from t5x_lite.monitor.meters import Lagged, Meter, peak_memory
from t5x_lite.monitor.profile import Profile, Profiler
from t5x_lite.monitor.terminal import Progress, Table, duration, short_number
from t5x_lite.monitor.watchdog import Watchdog
from t5x_lite.monitor.writers import METRICS_FILE, MetricsWriter, metric_line, metrics_files

__all__ = [
    "JOURNAL_FILE",
    "METRICS_FILE",
    "Journal",
    "Lagged",
    "Meter",
    "MetricsWriter",
    "Profile",
    "Profiler",
    "Progress",
    "Table",
    "Watchdog",
    "duration",
    "metric_line",
    "metrics_files",
    "peak_memory",
    "read_journal",
    "short_number",
]
