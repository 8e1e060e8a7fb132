"""Writes runs into MLflow's store, for the stages that compute them.   python -m stages.recorder

The stages start it themselves (stages/tracking.py). By hand it writes what waits to be written, of all machines that
worked here: what a stage left there whose recorder was killed together with it, as a cluster's scheduler does.

A process of its own: importing mlflow takes longer than the work of many a stage, and a server out of reach should hold
up no step of a training. One process serves all stages on this machine, and stays a while for those that come next.

A stage leaves the calls of a run, one a line, in a file that it locks as long as it writes. The file is removed when
MLflow has it all, so nothing is lost with this process, nor while a store is out of reach: the next one begins with it.
"""

import base64
import contextlib
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
from typing import IO, Any

POINTS = 1000  # the most that MLflow takes in one request
SECONDS = 10.0  # how far the shown curves may lag behind a run
LINGER = 120.0  # seconds to wait for the next stage
PAUSE = 0.5  # seconds between two looks at the files
CALLS = ("begin", "log", "picture", "end")

STORES: dict[Path, int] = {}  # the files that this process has open, and their inodes


class Unreadable(ValueError):
    """A line that is none of our calls."""


class Recorder:
    """One run, from its `begin` to its `end`."""

    def __init__(self) -> None:
        self._written = False  # the run had finished before it began here
        self._client: Any = None
        self._id = ""
        self._last: dict[str, int] = {}  # the last step of each metric
        self._buffer: list[tuple[str, float, int, int]] = []  # name, value, milliseconds since 1970, step
        self._sent = time.monotonic()

    def hear(self, call: str, arguments: dict[str, Any]) -> None:
        """Carries out `call`. Raises what MLflow raises."""
        if not self._written:
            with warnings.catch_warnings(action="ignore"):  # its libraries' deprecations
                getattr(self, call)(**arguments)

    def begin(
        self, store: str, experiment: str, tags: dict[str, str], params: dict[str, str], milliseconds: int
    ) -> None:
        """A run with these tags. One of the same key and kind is continued, or left alone if it finished."""
        self._client, experiment_id = connect(store, experiment)
        from mlflow.entities import Param  # after `connect`, which sets how mlflow is to behave

        same = f"tags.key = '{tags['key']}' and tags.kind = '{tags['kind']}'"
        with alone(store):  # a recorder on another machine may be writing the same run
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
        listed = [Param(*item) for item in params.items()]
        for at in range(0, len(listed), 100):  # the most that MLflow takes in one request; the same again is no change
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
        if not self._buffer:
            return
        from mlflow.entities import Metric

        points, self._buffer = [Metric(*point) for point in self._buffer], []
        self._sent = time.monotonic()
        for at in range(0, len(points), POINTS):
            self._client.log_batch(self._id, metrics=points[at : at + POINTS])

    def picture(self, name: str, file: str) -> None:
        """Keeps the file, given in base64, among the run's artifacts."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, Path(name).name)
            path.write_bytes(base64.b64decode(file))
            self._client.log_artifact(self._id, str(path))

    def end(self, status: str, state: str, milliseconds: int) -> None:
        """Closes the run with our status (ok, diverged, ...) and MLflow's state (FINISHED, FAILED)."""
        self.flush()
        self._client.set_tag(self._id, "status", status)
        self._client.set_terminated(self._id, state, end_time=milliseconds)


class Account:
    """A file in which a stage writes the calls of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0  # bytes
        self._recorder = Recorder()

    def hear(self) -> bool:
        """Carries out the calls that have come; whether they were the last. Raises Unreadable, and what MLflow does."""
        with self.path.open("rb") as file:
            ended = taken(file)  # asked before reading, so that nothing comes in between
            file.seek(self._read)
            come = file.read()
        whole = come.rfind(b"\n") + 1  # what follows is being written, or was by a process that died
        self._read += whole
        for line in come[:whole].splitlines():
            self._recorder.hear(*understood(line))
        if ended:
            self._recorder.hear("flush", {})  # of a stage that was killed: its run stays open, to be continued
        return ended


def understood(line: bytes) -> tuple[str, dict[str, Any]]:
    """A call of `Recorder` and its arguments."""
    try:
        match json.loads(line):
            case [str(call), dict(arguments)] if call in CALLS:
                return call, arguments
    except ValueError:
        pass
    raise Unreadable(line[:50])


class Service:
    """Writes what the stages leave in `folder`, and what they add while it lasts."""

    def __init__(self, folder: Path, linger: float) -> None:
        self.folder = folder
        self.linger = linger  # seconds to wait for the next stage
        self._accounts: dict[Path, Account] = {}
        self._kept: set[Path] = set()  # those that could not be written, for the next service to try again
        self._attached = True  # to the stderr of the stage that started this

    def run(self) -> None:
        """Serves until nothing has come for a while. Leaves at once where another one serves."""
        with (self.folder / "lock").open("w") as lock:
            # What came as the lock was given back, when a stage still saw it held, would be left lying: hence the loop.
            while self.waiting() and not replaced() and taken(lock):
                self._serve(lock)
                fcntl.flock(lock, fcntl.LOCK_UN)

    def waiting(self) -> list[Path]:
        """The files yet to be written, the oldest first."""
        return sorted(set(self.folder.glob("*.calls")) - self._kept)

    def _serve(self, lock: IO[str]) -> None:
        until = time.monotonic()
        while os.fstat(lock.fileno()).st_nlink and not replaced():  # or else the folder is gone, or a store
            if found := self.waiting():
                for path in found:
                    self._write(path)
                until = time.monotonic() + (0 if self._kept else self.linger)
            elif time.monotonic() > until:
                return
            if self.linger:
                self._detach()
            time.sleep(PAUSE)

    def _write(self, path: Path) -> None:
        """What is new in a file; all of it, the next time, after a fault."""
        account = self._accounts.pop(path, None) or Account(path)
        try:
            if account.hear():
                path.unlink()
            else:
                self._accounts[path] = account
        except Unreadable as error:
            self._warn(f"{path} is none of a run, and removed", error)
            path.unlink()
        except Exception as error:
            if not self._kept:
                self._warn(f"MLflow's store is out of reach; what is to be written there waits in {self.folder}", error)
            self._kept.add(path)

    def _warn(self, what: str, error: BaseException) -> None:
        shown = warning(what, error)
        if self._attached:
            print(shown, file=sys.stderr)
        else:
            with said(self.folder).open("a", encoding="utf-8") as file:
                file.write(f"{shown}\n")

    def _detach(self) -> None:
        """Lets go of the stderr of the stage that started this: whoever reads from it waits for its end."""
        if self._attached:
            self._attached = False
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), sys.stderr.fileno())


def warning(what: str, error: BaseException) -> str:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return f"warning: {what}; results are not affected ({reason})"


def folder() -> Path:
    """Where the stages that run on this machine leave their calls."""
    return folder_of(root())


def folder_of(repository: Path) -> Path:
    return repository / ".scratch" / "tracking" / os.uname().nodename


def said(folder: Path) -> Path:
    """The warnings that the next stage is to show."""
    return folder / "said"


def taken(file: IO) -> bool:
    """Takes the lock of a file, if no process holds it."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


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
        "MLFLOW_LOGGING_LEVEL": "CRITICAL",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }.items():
        os.environ.setdefault(variable, value)
    from mlflow import MlflowClient  # here, because what is set above counts as it is imported

    with alone(uri):
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        if file := file_of(uri):
            STORES.setdefault(file, file.stat().st_ino)
        if found:
            return client, found.experiment_id
        if file:
            with closing(sqlite3.connect(file)) as opened:
                opened.execute("PRAGMA journal_mode=WAL")  # readers (the ui) and writers do not wait for each other
        # By default artifacts would lie relative to whichever process came first. A server has its own place for them.
        artifacts = None if uri.startswith("http") else (root() / "mlartifacts").as_uri()
        return client, client.create_experiment(experiment, artifact_location=artifacts)


def file_of(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def replaced() -> bool:
    """Whether a store's file was removed or replaced: what has it open would write into one that nobody reads."""
    return any(not file.exists() or file.stat().st_ino != inode for file, inode in STORES.items())


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
    given = [Path(name) for name in sys.argv[1:]]  # by a stage, its own
    for folder in given or folder_of(root()).parent.glob("*"):
        Service(folder, LINGER if given else 0.0).run()
    if replaced():
        os.execv(sys.executable, sys.orig_argv)


if __name__ == "__main__":
    main()
