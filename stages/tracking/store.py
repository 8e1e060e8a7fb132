"""MLflow's store: where it is, how it is opened, and what a fault of it costs: one warning, never a result.

The variable MLFLOW_TRACKING_URI names another store than mlflow.db, or a server that many machines share; at `off`
nothing is written, and mlflow not even imported.
"""

import contextlib
import fcntl
import functools
import json
import os
import sqlite3
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

OFF = "off"
PATIENCE = 60.0  # seconds to wait for another process that writes; it takes a few
VIEW = "table"  # names the columns below, in the link of `page`
COLUMNS = [
    *(f"metrics.`{name}`" for name in ("linear", "linear_ci95", "knn", "finetune", "effective_rank", "seconds")),
    *(f"tags.`{name}`" for name in ("status", "family")),
    *(f"params.`{name}`" for name in ("encoder", "temperature", "epochs")),
]

_failed = False  # after one fault this process leaves MLflow alone


def harmless(write: Callable[..., None]) -> Callable[..., None]:
    """Has `write` do nothing where tracking is off, and makes of whatever it raises one warning for the process."""

    @functools.wraps(write)
    def wrapped(*args: Any) -> None:
        global _failed
        if available():
            try:
                with warnings.catch_warnings(action="ignore"):  # deprecations in what mlflow imports
                    write(*args)
            except Exception as error:
                _failed = True
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                told = f"not written to MLflow; results are not affected ({reason})"
                print(f"warning: {told}; `python -m stages.track` writes it later", file=sys.stderr, flush=True)

    return wrapped


def available() -> bool:
    """Whether there is a point in writing: tracking is not off, and nothing has failed so far."""
    return not _failed and os.environ.get("MLFLOW_TRACKING_URI") != OFF


def address() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root() / 'mlflow.db'}"


def root() -> Path:
    """The repository, whose store `mlflow ui` opens: the current directory, as for params.yaml.

    `dvc exp run` may work in a temporary folder, <repository>/.dvc/tmp/...: that one's store would be lost with it.
    """
    here = Path.cwd()
    return next((folder.parent for folder in here.parents if folder.name == ".dvc"), here)


@contextlib.contextmanager
def opened(experiment: str) -> Iterator[tuple[Any, str]]:
    """A client of the store, and the id of the experiment; makes what is missing of either. Raises what MLflow raises.

    While it lasts no other process writes to the same file: of two that create it, or the same run, at once, one would
    fail, or double it.
    """
    for variable, value in {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # by default a server out of reach holds up each call for four minutes
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "CRITICAL",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }.items():
        os.environ.setdefault(variable, value)
    from mlflow import MlflowClient  # here, because what is set above counts as it is imported

    uri = address()
    file = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
    with alone(file) if file else contextlib.nullcontext():
        client = MlflowClient(uri)
        yield client, found(client, experiment) or create(client, experiment, file)


@contextlib.contextmanager
def alone(file: Path) -> Iterator[None]:
    """Held by one process at a time. Raises TimeoutError where another one keeps it."""
    until = time.monotonic() + PATIENCE
    with open(f"{file}.lock", "w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError(f"another process keeps {file}.lock") from None
                time.sleep(0.05)
        yield


def found(client: Any, experiment: str) -> str | None:
    """The experiment's id, where it is there."""
    there = client.get_experiment_by_name(experiment)
    if there and there.lifecycle_stage == "deleted":  # in the UI, by hand; its name is still taken
        client.restore_experiment(there.experiment_id)
    return there and there.experiment_id


def create(client: Any, experiment: str, file: Path | None) -> str:
    if file:
        with contextlib.closing(sqlite3.connect(file)) as database:
            database.execute(
                "PRAGMA journal_mode=WAL"
            )  # the UI, which reads, and who writes do not wait for each other
    # By default artifacts would lie relative to whichever process came first. A server has its own place for them.
    artifacts = (root() / "mlartifacts").as_uri() if file else None
    view = {"selectedColumns": COLUMNS, "orderByKey": "metrics.`linear`", "orderByAsc": False}
    tags = {
        f"mlflow.sharedViewState.{VIEW}": json.dumps(view),
        "mlflow.experimentKind": "custom_model_development",  # or else the UI opens on a page for language models
    }
    return client.create_experiment(experiment, artifact_location=artifacts, tags=tags)


def pages() -> list[str]:
    """How to look at the runs: a link for each experiment, with the columns that matter, the best first."""
    if not available():
        return []
    from mlflow import MlflowClient

    server = uri if (uri := address()).startswith("http") else "http://127.0.0.1:5000"
    found = sorted(MlflowClient(uri).search_experiments(), key=lambda experiment: experiment.experiment_id)
    link = f"{server}/#/experiments/{{}}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"
    return (
        []
        if server == uri
        else ["`mlflow ui`, and then:"]
        + [
            f"{experiment.name}: {link.format(experiment.experiment_id)}"
            for experiment in found
            if f"mlflow.sharedViewState.{VIEW}" in experiment.tags
        ]
    )
