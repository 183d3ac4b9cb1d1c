"""The environment of the processes that tests start."""

import os


def one_device() -> dict[str, str]:
    """This process's, with one CPU device instead of eight: what a laptop has, and quicker to compile for."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    return {**os.environ, "XLA_FLAGS": flags}
