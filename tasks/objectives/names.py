"""What gin files call the functions of this package: `preprocessors.NAME`, as in T5's own."""

import functools

import gin

configurable = functools.partial(gin.configurable, module="t5x_lite.tasks.preprocessors")
