"""Writes runs into MLflow's store, for the stage that computes them.   (started by stages/tracking.py)

A process of its own: importing mlflow takes longer than the work of many a stage, and a server out of reach should hold
up no step of a training. It reads one call of `Recorder` per line of stdin, to its end.

A tracker that fails costs one warning and some seconds, never the run.
"""

import base64
import fcntl
import json
import os
import sqlite3
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

POINTS = 1000  # the most that MLflow takes in one request
SECONDS = 10.0  # how far the shown curves may lag behind a run


def warn(reason: str) -> None:
    shown = " ".join(reason.split())[:200]
    print(f"warning: not tracked in MLflow from here on; results are not affected ({shown})", file=sys.stderr)


class Recorder:
    """One run at a time, from its `begin` to its `end`."""

    def __init__(self) -> None:
        self._failed = False
        self._written = False  # the run had finished before it began here
        self._client: Any = None
        self._id = ""
        self._last: dict[str, int] = {}  # the last step of each metric
        self._buffer: list[tuple[str, float, int, int]] = []  # name, value, milliseconds since 1970, step
        self._sent = time.monotonic()

    def hear(self, call: str, **arguments: Any) -> None:
        """Carries out `call`. What MLflow raises becomes one line on stderr, after which nothing asks it again."""
        if self._failed or (self._written and call != "begin"):
            return
        try:
            with warnings.catch_warnings(action="ignore"):  # its libraries' deprecations
                getattr(self, call)(**arguments)
        except Exception as error:
            self._failed = True
            warn(f"{type(error).__name__}: {error}")

    def begin(self, experiment: str, tags: dict[str, str], params: dict[str, str], milliseconds: int) -> None:
        """A run with these tags. One of the same key and kind is continued, or left alone if it finished."""
        self._client, experiment_id = connect(store(), experiment)
        self._last, self._buffer = {}, []
        from mlflow.entities import Param  # after `connect`, which sets how mlflow is to behave

        same = f"tags.key = '{tags['key']}' and tags.kind = '{tags['kind']}'"
        with alone(store()):  # the recorder of a stage that was killed may still be writing the same run
            found = self._client.search_runs([experiment_id], same)
            if not found:
                self._id = self._client.create_run(experiment_id, start_time=milliseconds, tags=tags).info.run_id
        self._written = any(run.info.status == "FINISHED" for run in found)
        if self._written:
            return
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            for metric in found[0].data.metrics:
                self._last[metric] = max(point.step for point in self._client.get_metric_history(self._id, metric))
        else:
            listed = [Param(*item) for item in params.items()]
            for at in range(0, len(listed), 100):  # the most that MLflow takes in one request
                self._client.log_batch(self._id, params=listed[at : at + 100])

    def log(self, step: int, metrics: dict[str, float], milliseconds: int) -> None:
        """A point for the curve of each metric. Points at or before a curve's last step are ignored."""
        for name, value in metrics.items():
            if step > self._last.get(name, -1):
                self._last[name] = step
                self._buffer.append((name, value, milliseconds, step))
        if len(self._buffer) >= POINTS or time.monotonic() - self._sent > SECONDS:
            self.flush()

    def flush(self) -> None:
        """Sends what is waiting."""
        from mlflow.entities import Metric

        points, self._buffer = [Metric(*point) for point in self._buffer], []
        self._sent = time.monotonic()
        for at in range(0, len(points), POINTS):
            self._client.log_batch(self._id, metrics=points[at : at + POINTS])

    def picture(self, name: str, file: str) -> None:
        """Keeps the file, given in base64, among the run's artifacts."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.write_bytes(base64.b64decode(file))
            self._client.log_artifact(self._id, str(path))

    def end(self, status: str, state: str, milliseconds: int) -> None:
        """Closes the run with our status (ok, diverged, ...) and MLflow's state (FINISHED, FAILED)."""
        self.flush()
        self._client.set_tag(self._id, "status", status)
        self._client.set_terminated(self._id, state, end_time=milliseconds)


def store() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root() / 'mlflow.db'}"


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
    from mlflow import MlflowClient  # here, because what is set above counts as it is imported

    with alone(uri):
        client = MlflowClient(uri)
        if found := client.get_experiment_by_name(experiment):
            return client, found.experiment_id
        if file := file_of(uri):
            with closing(sqlite3.connect(file)) as opened:
                opened.execute("PRAGMA journal_mode=WAL")  # readers (the ui) and writers do not wait for each other
        # By default artifacts would lie relative to whichever process came first. A server has its own place for them.
        artifacts = None if uri.startswith("http") else (root() / "mlartifacts").as_uri()
        return client, client.create_experiment(experiment, artifact_location=artifacts)


def file_of(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


@contextmanager
def alone(uri: str) -> Iterator[None]:
    """Held by one process at a time, where the store is a file: of two that create the same one at once, one fails."""
    if not (file := file_of(uri)):
        yield
        return
    with open(f"{file}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> None:
    recorder = Recorder()
    for line in sys.stdin:
        call, arguments = json.loads(line)
        recorder.hear(call, **arguments)
    recorder.hear("flush")  # the stage was killed: its run stays open, to be continued


if __name__ == "__main__":
    main()
