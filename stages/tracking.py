"""MLflow as a window on the runs. The files under metrics/ and reports/ are the truth; no stage reads from here.

`mlflow ui`, started plainly in the repository, shows one experiment per modality with its pretraining and evaluation
runs side by side (group them by the tag `entry` for one row per method), and one more with the trials of its sweeps.

A tracker that fails costs one warning and some seconds, never the run. The variable MLFLOW_TRACKING_URI names another
store, or a server that many machines share; at `off` nothing is tracked. The talking is done by stages/recorder.py.
"""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

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
    send = nowhere if os.environ.get("MLFLOW_TRACKING_URI") == OFF else channel().send
    tags = {**title, **tags, **identity}
    send("begin", experiment=experiment, tags=tags, params=flatten(params), milliseconds=now())
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
    """The way to a recorder: a process that ends when it has written what this one had to say.

    That may be seconds after this one has ended; nothing waits for it. It starts late, with the end of a run if that is
    near: importing mlflow beside a computation slows both down, and beside the start of the next stage neither.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._waiting: list[str] = []
        self._began = time.monotonic()
        self._lost = False

    def send(self, call: str, **arguments: Any) -> None:
        if self._lost:
            return
        self._waiting.append(json.dumps([call, arguments]) + "\n")
        if self._process or call == "end" or time.monotonic() - self._began > PATIENCE:
            self._deliver()

    def _deliver(self) -> None:
        if self._process is None:
            command = [sys.executable, "-P", recorder.__file__]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # what ends the stage, Ctrl-C or a kill of its group, leaves this be
            )
        lines, self._waiting = self._waiting, []
        try:
            self._process.stdin.writelines(lines)
            self._process.stdin.flush()
        except BrokenPipeError:
            self._lost = True
            recorder.warn(f"its process has ended with exit code {self._process.wait()}")


channel = functools.cache(Channel)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"hyper": {"temperature": 0.5}} as {"hyper.temperature": "0.5"}."""
    flat: dict[str, str] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return flat
