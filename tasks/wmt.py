"""Translation from English, on the data of the workshops on machine translation (https://www.statmt.org).

The paper's three pairs are `wmt_t2t_ende_v003`, `wmt15_enfr_v003` and `wmt16_enro_v003`.
"""

import functools

from t5x_lite.tasks import metrics, text_preprocessors
from t5x_lite.tasks.registration import add_task

_SPLITS = ("train", "validation", "test")
# Name: (data set, the language that English is translated to, splits).
_TASKS = {
    "wmt14_ende_v003": ("wmt14_translate/de-en:1.0.0", "de", _SPLITS),
    "wmt14_enfr_v003": ("wmt14_translate/fr-en:1.0.0", "fr", _SPLITS),
    "wmt15_enfr_v003": ("wmt15_translate/fr-en:1.0.0", "fr", _SPLITS),
    "wmt16_enro_v003": ("wmt16_translate/ro-en:1.0.0", "ro", _SPLITS),
    "wmt19_ende_v003": ("wmt19_translate/de-en:1.0.0", "de", ("train", "validation")),
    "wmt_t2t_ende_v003": ("wmt_t2t_translate/de-en:1.0.0", "de", _SPLITS),
}
for _name, (_data, _language, _splits) in _TASKS.items():
    add_task(
        _name,
        _data,
        _splits,
        [functools.partial(text_preprocessors.translate, source_language="en", target_language=_language)],
        (metrics.bleu,),
    )
