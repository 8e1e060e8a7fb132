"""MLflow as a window on the runs. The files under metrics/ and reports/ are the truth; no stage reads from here.

`mlflow ui`, started plainly in the repository, shows one experiment per modality with its pretraining and evaluation
runs side by side (group them by the tag `entry` for one row per method), and one more with the trials of its sweeps.

A tracker that fails costs a warning, never the run. The variable MLFLOW_TRACKING_URI names another store, or a server
that many machines share; at `off` nothing is tracked. The talking is done by stages/recorder.py.
"""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar

from . import recorder

OFF = "off"
PATIENCE = 60.0  # seconds until a run that lasts is written while it goes on

Send = Callable[..., None]  # send(call, **arguments): one call of stages.recorder.Recorder


def start(
    kind: str, *, modality: str, name: str, seed: int, params: Mapping[str, Any], tags: Mapping[str, str], key: str
) -> "Run":
    """The run of `kind` ("pretrain", "evaluate" or "sweep") that computes what `key` identifies.

    `key` is the fingerprint of everything that the result depends on. A run of that key that never finished (its
    process was killed, or failed) is continued, without points it already has. One that finished is left alone: DVC
    was killed before it noted the stage as done, or told to repeat it, and the same key has the same results.
    `params` may be nested. `tags` are those beyond kind, modality, entry (`name`), seed and key: family, method, and
    `mlflow.runName` where another name than "<kind> <entry> <seed>" tells runs apart. One run at a time.
    """
    title = {"mlflow.runName": f"{kind} {name} {seed}"}
    identity = {"kind": kind, "modality": modality, "entry": name, "seed": str(seed), "key": key}
    experiment = f"{modality} sweep" if kind == "sweep" else modality
    send = nowhere if os.environ.get("MLFLOW_TRACKING_URI") == OFF else Channel().send
    tags = {**title, **tags, **identity}
    send("begin", store=recorder.store(), experiment=experiment, tags=tags, params=flatten(params), milliseconds=now())
    return Run(send)


class Run:
    """One tracked run, and a context manager: what leaves it by an exception is marked as failed. See `start`."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def log(self, step: int, **metrics: float) -> None:
        """Adds a point to the curve of each metric. Points at or before a curve's last step are ignored.

        So a resumed run may log its whole curve again: that fills in what the killed process had not sent.
        """
        values = {name: float(value) for name, value in metrics.items()}
        self._send("log", step=step, metrics=values, milliseconds=now())

    def picture(self, name: str, file: str) -> None:
        """Keeps a picture with the run: its file's bytes, in base64, under a file name."""
        self._send("picture", name=name, file=file)

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

    def _end(self, status: str, state: str) -> None:
        self._send("end", status=status, state=state, milliseconds=now())
        self._send = nowhere


def now() -> int:
    """As MLflow counts: milliseconds since 1970."""
    return int(time.time() * 1000)


def nowhere(call: str, **arguments: Any) -> None:
    """What a run that is not tracked, or has ended, sends to."""


class Channel:
    """The way of one run to the recorder: a file of calls in `recorder.folder()`, locked while they come.

    A recorder reads it that still serves the stage before. If none does, one is started with the end of the run, or
    before it if that is far: importing mlflow beside a computation slows both down.
    """

    _started: ClassVar[list[subprocess.Popen]] = []

    def __init__(self) -> None:
        self._folder = recorder.folder()
        self._file: IO[str] | None = None
        self._began = time.monotonic()
        self._served = self._lost = False

    def send(self, call: str, **arguments: Any) -> None:
        if self._lost:
            return
        try:
            if self._file is None:
                self._show()
                self._file = opened(self._folder)
            self._file.write(json.dumps([call, arguments]) + "\n")
            self._file.flush()
            ended = call == "end"
            if ended:
                self._file.close()
                self._show()
            if ended or (not self._served and time.monotonic() - self._began > PATIENCE):
                self._serve()
        except OSError as error:  # a full disk, a folder that may not be written to
            self._lost = True
            print(recorder.warning("not tracked in MLflow from here on", error), file=sys.stderr)

    def _serve(self) -> None:
        """Starts a recorder if none serves. It outlives what ends this process, Ctrl-C or a kill of its group."""
        self._served = True
        with (self._folder / "lock").open("a") as lock:
            if not recorder.taken(lock):
                return
        command = [sys.executable, "-P", recorder.__file__, str(self._folder)]
        silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        Channel._started = [process for process in Channel._started if process.poll() is None]
        Channel._started.append(subprocess.Popen(command, cwd=recorder.root(), start_new_session=True, **silent))

    def _show(self) -> None:
        """What a recorder that served earlier stages has had to say since."""
        said = recorder.said(self._folder)
        with contextlib.suppress(FileNotFoundError):  # nothing, or another stage was quicker
            text = said.read_text(encoding="utf-8")
            said.unlink()
            print(text, end="", file=sys.stderr)


def opened(folder: Path) -> IO[str]:
    """A new file in `folder` to write to. By the time it has its name it is locked, so nobody takes it for complete."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # the URI of a store may hold a password
    path = folder / f"{time.time_ns()}-{os.getpid()}.calls"
    partial = path.with_suffix(".partial")
    file = partial.open("x", encoding="utf-8")
    fcntl.flock(file, fcntl.LOCK_EX)
    partial.rename(path)
    return file


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"hyper": {"temperature": 0.5}} as {"hyper.temperature": "0.5"}."""
    flat: dict[str, str] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return flat
