"""Seeds side by side: each is a child process, with a GPU or a share of the cores to itself.

The parent waits, shows one line of progress for all, and passes on what they tell. A child that fails costs itself
alone; children end with their parent, whatever ends it.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from ..common.command import explained
from ..common.progress import Shares
from ..common.settings import InputError

GPU_MEMORY = 2**34  # bytes of a GPU for each of the runs that share it
LOOK = 0.2  # seconds between two looks at the progress


@dataclass(frozen=True)
class Teller:
    """What a child tells its parent: which share of its work is done, from 0 to 1, and the points of its curve."""

    pipe: Connection

    def share(self, share: float) -> None:
        self.pipe.send(("share", share))

    def point(self, **numbers: float) -> None:
        self.pipe.send(("point", numbers))


Work = Callable[[int, Teller], None]  # work(seed, teller), in a child
Heard = Callable[[int, Mapping[str, float]], None]  # heard(seed, point), in the parent


def cores() -> int:
    """The cores that this process may use: OMP_NUM_THREADS, or else all that the system gives it."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]  # of "4,2" the first is for the outermost loop
    if not asked:
        return len(os.sched_getaffinity(0))
    if not asked.isdecimal() or int(asked) < 1:
        raise InputError(f"OMP_NUM_THREADS: expected a whole number of at least 1, but it is {asked!r}; unset it")
    return int(asked)


def at_once(asked: int | str, seeds: int, device: torch.device, processes: int = 1) -> int:
    """How many seeds to run at a time. A run of several processes has the machine to itself.

    By default (`auto`) as many on a GPU as have 16 GiB of it each, and on a CPU all, up to two for a core: on two
    cores three seeds of SimCLR took 29 s side by side, and 37 s one after another on two threads.
    """
    if processes > 1:
        return 1
    if asked != "auto":
        return min(int(asked), seeds)
    if device.type == "cuda":
        gpus = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
        return min(seeds, sum(max(1, memory // GPU_MEMORY) for memory in gpus))
    return min(seeds, 2 * cores())


def side_by_side(
    work: Work, seeds: list[int], *, label: str, device: torch.device, count: int, processes: int = 1, heard: Heard
) -> dict[int, str]:
    """Runs `work` for every seed, `count` at a time, each in `processes` processes; returns what failed ones said.

    On CUDA, which does not survive a fork, children are spawned, and `work` must be picklable. Elsewhere they are
    forked, so that what the parent has imported is imported once; it must not have computed anything by then.
    """
    import_module("torch._dynamo")  # every optimizer does at its first step, which takes seconds: here once for all
    context = multiprocessing.get_context("spawn" if device.type == "cuda" else "fork")
    threads = max(1, cores() // (count * processes))
    free, waiting, failed = list(range(count)), list(seeds), {}
    running: dict[Connection, tuple[int, int, Any]] = {}  # (seed, place, process)
    shown = Shares(label, [f"seed {seed}" for seed in seeds])
    try:
        while waiting or running:
            while waiting and free:
                seed, place = waiting.pop(0), free.pop(0)
                port = free_port() if processes > 1 else 0
                for rank in range(processes):
                    pipe, end = context.Pipe(duplex=False)
                    group = (rank, processes, port)
                    process = context.Process(target=child, args=(work, seed, end, place, threads, group))
                    process.start()
                    end.close()  # so that the pipe ends with the child
                    running[pipe] = (seed, place, process)
            for pipe in wait(list(running), timeout=LOOK):
                seed, place, process = running[pipe]
                try:
                    kind, told = pipe.recv()
                except (EOFError, OSError):
                    kind, told = "end", None
                if kind == "share":
                    shown.tell(f"seed {seed}", told)
                elif kind == "point":
                    heard(seed, told)
                elif kind == "failed":
                    failed.setdefault(seed, told)
                else:
                    process.join()
                    del running[pipe]
                    others = [process for other, _, process in running.values() if other == seed]
                    if process.exitcode:
                        failed.setdefault(seed, ended(process.exitcode))
                        for other in others:  # of the same run, which would wait for this one forever
                            other.kill()
                    if not others:
                        free.append(place)
            shown.show()
    finally:
        for _, _, process in running.values():
            process.terminate()  # a pretraining saves a checkpoint first
        for _, _, process in running.values():
            process.join()
        shown.close()
    return failed


def ended(exitcode: int) -> str:
    """Why a process that said nothing is gone, in words."""
    if exitcode == -signal.SIGKILL:
        return "the system killed it; there may be too little memory for so many seeds at a time (`at_once`)"
    return f"its process ended by signal {-exitcode}" if exitcode < 0 else f"its process ended with code {exitcode}"


def child(work: Work, seed: int, pipe: Connection, place: int, threads: int, group: tuple[int, int, int]) -> None:
    """A child's whole life: rank `group[0]` of `group[1]` processes, that find each other at port `group[2]`."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rank, processes, port = group
    if processes > 1:  # the names that torch.distributed reads
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        where |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
        os.environ |= {name: str(value) for name, value in where.items()}
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device((place + rank) % torch.cuda.device_count())
    try:
        work(seed, Teller(pipe))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        pipe.send(("failed", explained(error) or traceback.format_exc()))
        sys.exit(1)


def end_with_parent() -> None:
    """Ends this process when the one that started it is gone, even where that was killed."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
