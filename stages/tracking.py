"""MLflow as a window on the runs. The files under metrics/ and reports/ are the truth; no stage reads from here.

`mlflow ui`, started plainly in the repository, shows one experiment per modality with its pretraining and evaluation
runs side by side (group them by the tag `entry` for one row per method), and one more with the trials of its sweeps.

A tracker that fails costs one warning and some seconds, never the run. The variable MLFLOW_TRACKING_URI names another
store, or a server that many machines share; at `off` nothing is tracked, and mlflow is not even imported.
"""

import fcntl
import os
import sqlite3
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

OFF = "off"
POINTS = 1000  # the most that MLflow takes in one request
SECONDS = 10.0  # how far the shown curves may lag behind a run

_failed = False  # in this process: after its one warning, nothing asks the tracker again


def start(
    kind: str, *, modality: str, name: str, seed: int, params: Mapping[str, Any], tags: Mapping[str, str], key: str
) -> "Run":
    """The run of `kind` ("pretrain", "evaluate" or "sweep") that computes what `key` identifies.

    `key` is the fingerprint of everything that the result depends on. A run of that key that never finished (its
    process was killed, or failed) is continued, without points it already has; beside a finished one a new run begins.
    `params` may be nested. `tags` are those beyond kind, modality, entry (`name`), seed and key: family, method, and
    `mlflow.runName` where another name than "<kind> <entry> <seed>" tells runs apart.
    """
    run = Run()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root() / 'mlflow.db'}"
    if uri != OFF and not _failed:
        title = {"mlflow.runName": f"{kind} {name} {seed}"}
        identity = {"kind": kind, "modality": modality, "entry": name, "seed": str(seed), "key": key}
        experiment = f"{modality} sweep" if kind == "sweep" else modality
        with harmless():
            client, experiment_id = connect(uri, experiment)
            run._begin(client, experiment_id, {**title, **tags, **identity}, flatten(params))
    return run


class Run:
    """One tracked run, and a context manager: what leaves it by an exception is marked as failed. See `start`."""

    def __init__(self) -> None:
        self._client = None  # none before the beginning and after the end: all calls then do nothing
        self._id = ""
        self._last: dict[str, int] = {}  # the last step of each metric
        self._buffer: list[tuple[str, float, int, int]] = []  # name, value, milliseconds since 1970, step
        self._sent = time.monotonic()

    def log(self, step: int, **metrics: float) -> None:
        """Adds a point to the curve of each metric. Points at or before a curve's last step are ignored.

        So a resumed run may log its whole curve again: that fills in what the killed process had not sent.
        """
        now = int(time.time() * 1000)
        for name, value in metrics.items():
            if step > self._last.get(name, -1):
                self._last[name] = step
                self._buffer.append((name, float(value), now, step))
        if len(self._buffer) >= POINTS or time.monotonic() - self._sent > SECONDS:
            self.flush()

    def flush(self) -> None:
        """Sends what is waiting."""
        points, self._buffer = self._buffer, []
        self._sent = time.monotonic()
        if self._client is None or _failed:
            return
        with harmless():
            from mlflow.entities import Metric

            for at in range(0, len(points), POINTS):
                self._client.log_batch(self._id, metrics=[Metric(*point) for point in points[at : at + POINTS]])

    def finish(self, status: str = "ok", **summary: float | None) -> None:
        """Ends the run with a status (ok, diverged, collapsed, ...) and its closing numbers; None is left out.

        A metric that has a curve keeps it: a closing number of the same name is ignored.
        """
        self.log(0, **{name: value for name, value in summary.items() if value is not None})
        self._end(status, "FINISHED")

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
        else:
            self._end("failed", "FAILED")

    def _begin(self, client: Any, experiment_id: str, tags: dict[str, str], params: dict[str, str]) -> None:
        from mlflow.entities import Param

        same = f"tags.key = '{tags['key']}' and tags.kind = '{tags['kind']}' and attributes.status != 'FINISHED'"
        if unfinished := client.search_runs([experiment_id], same, max_results=1):
            self._id = unfinished[0].info.run_id
            client.update_run(self._id, status="RUNNING")
            for metric in unfinished[0].data.metrics:
                self._last[metric] = max(point.step for point in client.get_metric_history(self._id, metric))
        else:
            self._id = client.create_run(experiment_id, tags=tags).info.run_id
            listed = [Param(*item) for item in params.items()]
            for at in range(0, len(listed), 100):  # the most that MLflow takes in one request
                client.log_batch(self._id, params=listed[at : at + 100])
        self._client = client

    def _end(self, status: str, state: str) -> None:
        self.flush()
        if self._client is not None and not _failed:
            with harmless():
                self._client.set_tag(self._id, "status", status)
                self._client.set_terminated(self._id, state)
        self._client = None


def root() -> Path:
    """The repository, whose store `mlflow ui` opens: the current directory, as for params.yaml.

    `dvc exp run` may work in a temporary folder, <repository>/.dvc/tmp/...: that one's store would be lost with it.
    """
    here = Path.cwd()
    return next((folder.parent for folder in here.parents if folder.name == ".dvc"), here)


def connect(uri: str, experiment: str) -> tuple[Any, str]:
    """A client of the store at `uri`, and the experiment's id. Creates what is missing of the two."""
    for variable, value in {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # by default a server out of reach holds up each call for four minutes
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }.items():
        os.environ.setdefault(variable, value)
    from mlflow import MlflowClient  # here, because it takes a second

    file = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
    with locked(file) if file else nullcontext():
        client = MlflowClient(uri)
        if found := client.get_experiment_by_name(experiment):
            return client, found.experiment_id
        if file:
            with closing(sqlite3.connect(file)) as store:
                store.execute("PRAGMA journal_mode=WAL")  # readers (the ui) and writers then do not wait for each other
        # By default artifacts would lie relative to whichever process came first. A server has its own place for them.
        artifacts = None if uri.startswith("http") else (root() / "mlartifacts").as_uri()
        return client, client.create_experiment(experiment, artifact_location=artifacts)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Held by one process at a time: of two that create the same store at once, one fails."""
    with open(f"{file}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def harmless() -> Iterator[None]:
    """Turns whatever the tracker raises into one line on stderr, and hides its libraries' deprecation warnings."""
    global _failed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        _failed = True
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        print(f"warning: not tracked in MLflow from here on; results are not affected ({reason})", file=sys.stderr)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"hyper": {"temperature": 0.5}} as {"hyper.temperature": "0.5"}."""
    flat: dict[str, str] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return flat
