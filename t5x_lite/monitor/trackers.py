"""Metrics in Weights & Biases and in MLflow too, beside metrics.jsonl and TensorBoard: `train.writers = [@WandB()]`.

A run that goes on does so in the same run there, whose name for it is kept in MODEL_DIR/trackers.json. Neither takes
back what it was given: the steps between a run's last checkpoint and its death stand there twice, with equal values.
What cannot be written there is said once and lost, and training goes on: metrics.jsonl has it.

Both packages are imported when the run is opened, and only by the process that writes.
"""

import collections
import dataclasses
import importlib.util
import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any, Protocol

from etils import epath

import gin
from t5x_lite.errors import UserError, first_line
from t5x_lite.run_folder import write_whole

TRACKERS_FILE = "trackers.json"


class Writer(Protocol):
    """Where metrics go."""

    def write(self, step: int, values: Mapping[str, float], wall_time: float) -> None:
        """{name: value} of one step."""

    def rewind(self, step: int) -> None:
        """The run goes on from `step`."""

    def flush(self) -> None: ...

    def close(self) -> None: ...


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class WandB:
    """A run of Weights & Biases, with its steps as the axis "step". Needs the extra `wandb`.

    Attributes:
      project, entity, name: as W&B calls them; the name is by default MODEL_DIR's last part.
      mode: "online", or "offline": then files below MODEL_DIR/wandb wait for `wandb sync`. None for what the
        environment says (WANDB_MODE), else online.
      tags: of the run.

    Raises:
      UserError: the package is not installed.
    """

    project: str = "t5x-lite"
    entity: str | None = None
    name: str | None = None
    mode: str | None = None
    tags: tuple[str, ...] = ()

    def __post_init__(self):
        _needs("wandb", "WandB", "wandb")
        if self.mode not in (None, "online", "offline"):
            raise UserError(f'WandB.mode must be "online" or "offline", not {self.mode!r}')

    def open(self, model_dir, values: Mapping[str, str]) -> Writer:
        """
        Args:
          values: of the configuration, to be shown with the run.

        Raises:
          UserError: W&B refuses (no login, no such project), or cannot be reached.
        """
        return _WandBWriter(self, epath.Path(model_dir), values)


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class MLflow:
    """A run of MLflow. Needs the extra `mlflow`, and for tracking in a database the whole package.

    Attributes:
      tracking_uri: a server (https://…), a folder, or a database (sqlite:///…); None for what the environment says
        (MLFLOW_TRACKING_URI).
      experiment: made if it is not there.
      name: of the run, by default MODEL_DIR's last part.

    Raises:
      UserError: the package is not installed.
    """

    tracking_uri: str | None = None
    experiment: str = "t5x-lite"
    name: str | None = None

    def __post_init__(self):
        _needs("mlflow", "MLflow", "mlflow")

    def open(self, model_dir, values: Mapping[str, str]) -> Writer:
        """As `WandB.open`."""
        return _MLflowWriter(self, epath.Path(model_dir), values)


def beside(
    trackers: Sequence[WandB | MLflow], model_dir, values: Mapping[str, str], say: Callable[[str], None]
) -> list[Writer]:
    """Opens all of them; what they fail at later is said, once, and does not stop the run.

    Args:
      values: of the configuration, to be shown with the run.

    Raises:
      UserError: one of them cannot be opened.
    """
    return [_Survivor(tracker.open(model_dir, values), type(tracker).__name__, say) for tracker in trackers]


class _Survivor:
    def __init__(self, writer: Writer, name: str, say: Callable[[str], None]):
        self._writer, self._name, self._say = writer, name, say
        self._said = False

    def write(self, step: int, values: Mapping[str, float], wall_time: float) -> None:
        self._try(lambda: self._writer.write(step, values, wall_time))

    def rewind(self, step: int) -> None:
        self._try(lambda: self._writer.rewind(step))

    def flush(self) -> None:
        self._try(self._writer.flush)

    def close(self) -> None:
        self._try(self._writer.close)

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as e:  # of whatever kind: packages of others, and networks
            if not self._said:
                self._say(f"warning: {self._name} takes no metrics ({first_line(e)}); metrics.jsonl has them")
            self._said = True


def _needs(package: str, name: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"{name} needs the package {package}: pip install 't5x-lite[{extra}]', or leave it out of WRITERS"
        )


def _known(model_dir: epath.Path) -> dict[str, Any]:
    path = model_dir / TRACKERS_FILE
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        return {}  # a run of its own is better than none


def _remember(model_dir: epath.Path, **more: str) -> None:
    model_dir.mkdir(parents=True, exist_ok=True)
    write_whole(model_dir / TRACKERS_FILE, json.dumps({**_known(model_dir), **more}, indent=1) + "\n")


class _WandBWriter:
    def __init__(self, config: WandB, model_dir: epath.Path, values: Mapping[str, str]):
        import wandb

        name = _known(model_dir).get("wandb") or uuid.uuid4().hex[:12]
        local = "://" not in str(model_dir)
        try:
            self._run = wandb.init(
                project=config.project,
                entity=config.entity,
                name=config.name or model_dir.name,
                id=name,
                resume=None if config.mode == "offline" else "allow",
                mode=config.mode,
                dir=str(model_dir) if local else None,
                tags=config.tags or None,
                config=dict(values),
                # The terminal is the job's own.
                settings=wandb.Settings(silent=True, console="off", disable_git=True),
            )
        except Exception as e:  # W&B has many kinds
            raise UserError(
                f"WandB: {first_line(e)}: see to `wandb login`, or set WandB.mode = 'offline' and sync later"
            ) from e
        _remember(model_dir, wandb=name)
        # A run that went back writes smaller steps again, which W&B's own counter of steps would drop.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float], wall_time: float) -> None:
        self._run.log({**values, "step": step})

    def rewind(self, step: int) -> None:
        pass

    def flush(self) -> None:
        pass  # its own process writes at once

    def close(self) -> None:
        self._run.finish()


class _MLflowWriter:
    _AT_ONCE = 100  # parameters in one call, by MLflow's rules
    _LONGEST = 500  # characters of a value

    def __init__(self, config: MLflow, model_dir: epath.Path, values: Mapping[str, str]):
        import mlflow

        self._entities = mlflow.entities
        # No step waits for a server; one thread, for MLflow's own do not keep the order.
        self._sender, self._sent = futures.ThreadPoolExecutor(1), collections.deque()
        try:
            self._client = mlflow.MlflowClient(tracking_uri=config.tracking_uri)
            self._id = _known(model_dir).get("mlflow")
            if self._id is not None:
                self._client.update_run(self._id, status="RUNNING")
                return
            experiment = self._client.get_experiment_by_name(config.experiment)
            where = experiment.experiment_id if experiment else self._client.create_experiment(config.experiment)
            self._id = self._client.create_run(where, run_name=config.name or model_dir.name).info.run_id
            parameters = [
                self._entities.Param(_plain(n).replace("/", "."), v[: self._LONGEST]) for n, v in values.items()
            ]
            for start in range(0, len(parameters), self._AT_ONCE):
                self._client.log_batch(self._id, params=parameters[start : start + self._AT_ONCE])
        except Exception as e:  # MLflow's, a database's, a network's
            raise UserError(f"MLflow: {first_line(e)}: see to MLflow.tracking_uri, or leave it out of WRITERS") from e
        _remember(model_dir, mlflow=self._id)

    def write(self, step: int, values: Mapping[str, float], wall_time: float) -> None:
        at = int(1000 * wall_time)
        metrics = [self._entities.Metric(_plain(name), value, at, step) for name, value in values.items()]
        while self._sent and self._sent[0].done():
            self._sent.popleft().result()  # raises what went wrong
        self._sent.append(self._sender.submit(self._client.log_batch, self._id, metrics))

    def rewind(self, step: int) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._sender.shutdown()
        for sent in self._sent:
            sent.result()
        self._client.set_terminated(self._id)


def _plain(name: str) -> str:
    """With the characters that MLflow allows."""
    return re.sub(r"[^\w\-. :/]", "_", name)
