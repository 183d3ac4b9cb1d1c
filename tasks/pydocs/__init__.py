"""A corpus that needs no network: the documentation of Python and of the libraries installed with this one.

`python -m t5x_lite.tasks.pydocs` builds it; a task that needs it builds it at first use.
"""
