"""`python -m t5x_lite` is `t5x-lite`: everything lives in importable modules, so nothing registers under `__main__`."""

import sys

from t5x_lite.cli import main

if __name__ == "__main__":
    sys.exit(main())
