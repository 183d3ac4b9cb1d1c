"""CNN/Daily Mail (Hermann et al. 2015, https://arxiv.org/abs/1506.03340): `cnn_dailymail_v002`."""

import functools

from t5x_lite.tasks import metrics, text_preprocessors
from t5x_lite.tasks.registration import add_task

add_task(
    "cnn_dailymail_v002",
    "cnn_dailymail:3.4.0",
    ("train", "validation", "test"),
    [functools.partial(text_preprocessors.summarize, article_key="article", summary_key="highlights")],
    (metrics.rouge,),
)
