"""A run's folder, or several, as one page: see jobs/report.py.

`runs.py` reads a folder, `figures.py` draws, `page.py` puts the page together.
"""
