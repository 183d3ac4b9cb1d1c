"""seqio tasks and mixtures. `import t5x_lite.tasks` registers every one of them, once, and touches no network.

The folder is part of the package `t5x_lite`; imported as bare `tasks` it would register everything a second time under
another module, so that name is refused.
"""

if __name__ != "t5x_lite.tasks":
    raise ImportError(
        f"import it as `t5x_lite.tasks`, not as `{__name__}` (take the repository's root off sys.path)", name=__name__
    )

from t5x_lite.tasks import (
    c4,
    closed_book_qa,
    cnn_dailymail,
    files,
    glue,
    mixtures,
    squad,
    study,
    super_glue,
    trivia_qa,
    wmt,
)
from t5x_lite.tasks.pydocs import tasks as pydocs_tasks
