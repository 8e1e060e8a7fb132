"""The pipeline on a cluster.

    python -m stages.running.cluster --jobs 20 slurm_partition=gpu gpus_per_node=1 timeout_min=240

As `stages.running.parallel`, on one folder that all machines see: every entry, with all its seeds, is a job that
submitit gives to SLURM, all in one array, and the rest runs here, before and after. A job that SLURM takes off a
machine is queued again, and goes on from its checkpoints. What stands behind the options is for submitit's
`AutoExecutor.update_parameters`.
"""

import argparse
from typing import Any

import yaml

from ..common.command import command
from ..common.progress import Progress
from ..common.settings import InputError, one_line
from ..training.checkpoint import SCRATCH
from ..training.children import cores
from . import parallel
from .parallel import Job

FOLDER = SCRATCH / "cluster"  # what submitit and the jobs write for each other
DEFAULTS = {"name": "ssl", "timeout_min": 24 * 60}
POLL = 5.0  # seconds


class Run:
    """Makes one entry, on the machine that it has been given, whose GPUs SLURM names in CUDA_VISIBLE_DEVICES."""

    def __call__(self, job: Job) -> dict[str, str]:
        return parallel.work([job], parallel.shares(1, cores(), gpus=[]))

    def checkpoint(self, job: Job) -> Any:
        """What submitit queues when the machine is taken away; then it ends this process, and so what that runs."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


class Cluster:
    """Jobs on `kind`, submitit's name of an executor: slurm, or local. Raises InputError for what it does not know."""

    def __init__(self, kind: str, asked: dict[str, Any]):
        try:
            import submitit

            self.executor = submitit.AutoExecutor(FOLDER.absolute(), cluster=kind)
            self.executor.update_parameters(**DEFAULTS | asked)
        except ImportError:
            raise InputError("submitit is not installed: pip install -e '.[cluster]'") from None
        except (AssertionError, NameError, RuntimeError, ValueError) as error:
            raise InputError(f"submitit: {one_line(error)}") from None

    def work(self, waiting: list[Job]) -> dict[str, str]:
        """Runs all jobs; returns what those that failed said, by their last stage. Stopped, it cancels the rest."""
        from submitit.helpers import as_completed

        submitted, failed = self.executor.map_array(Run(), waiting), {}
        bar = Progress("entries", len(waiting), "entries")
        try:
            for done in as_completed(submitted, poll_frequency=POLL):
                try:
                    failed |= done.result()
                except Exception as error:  # the job left no result: what it said is in the message
                    failed[waiting[submitted.index(done)][-1]] = str(error)
                bar.advance(1, failed=len(failed))
        except BaseException:
            for job in submitted:
                job.cancel(check=False)
            raise
        bar.close()
        from ..tracking.runs import write_all

        write_all()  # into MLflow, which the machines of a cluster may be unable to reach
        return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--executor", default="slurm", help="slurm; or local, processes on this machine, to try it out")
    parser.add_argument("--jobs", type=int, default=20, help="so many at a time")
    parser.add_argument("asked", nargs="*", metavar="NAME=VALUE", help="what a job asks of the cluster")
    given = parser.parse_args()
    for text in given.asked:
        if "=" not in text:
            raise InputError(f"{text!r} asks nothing of the cluster: say NAME=VALUE, as in gpus_per_node=1")
    asked = {name: yaml.safe_load(value) for name, value in (text.split("=", 1) for text in given.asked)}
    cluster = Cluster(given.executor, {"slurm_array_parallelism": given.jobs} | asked)
    parallel.reproduce(cluster.work, f"as jobs of {given.executor}")


if __name__ == "__main__":
    command(main)
