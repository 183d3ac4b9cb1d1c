"""A C4-like corpus from web crawls (Raffel et al. 2020, section 2.2): rules, reading, the Beam pipeline, writing.

reading.py     WET and WARC files -> pages
rules.py       what is kept of a page: pure functions
options.py     which rules, with which numbers: bindings
libraries.py   sentences, languages, domains, word lists: what the rules ask of other libraries and files
shuffle.py     grouping by key, in sorted files on disk or by the runner
pipeline.py    the steps as Beam transforms
runners.py     which of Beam's runners takes them
progress.py    how far they are
tally.py       what each rule removed: counts and samples
writing.py     shards and metadata of a tensorflow-datasets data set
report.py      the tally as a page
"""
