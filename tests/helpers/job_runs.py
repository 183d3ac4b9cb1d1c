"""Jobs through the command line, on a model of the smallest size and the corpus of the tests."""

from t5x_lite import cli, configuration, plots

MINI = [
    "--gin_file=models/t5_1_1/mini.gin",
    "--gin.T5Config.emb_dim=32",
    "--gin.T5Config.mlp_dim=32",
    "--gin.T5Config.head_dim=8",
    "--gin.BATCH_SIZE=8",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 48, 'targets': 16}",
    "--gin.SeqioSource.block_records=16",
    "--gin.EVALUATION_EXAMPLES=10",
    "--gin.train.log_every=1",
]
PRETRAIN = ["--gin_file=runs/pretrain.gin", "--gin.MIXTURE_OR_TASK_NAME=pydocs_span_corruption", *MINI]


def run(job, *flags) -> int:
    """The exit code."""
    configuration.clear()
    try:
        return cli.main([job, *flags])
    finally:
        configuration.clear()


def losses(folder) -> dict[int, float]:
    """Step -> loss of a run's training."""
    steps, values = plots.read_metrics(folder)["train/loss"]
    return dict(zip(steps, values))
