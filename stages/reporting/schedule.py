"""When each run's stages began and ended -> the bars of a Gantt chart."""

from collections.abc import Sequence
from dataclasses import dataclass

from .figures import Bar
from .results import Results

IDLE = 60.0  # seconds without any run, from which on they are left out


@dataclass(frozen=True)
class Schedule:
    """Bars in minutes since the first began, without the idle time; `cuts` are where some was left out."""

    bars: Sequence[Bar] = ()
    cuts: Sequence[float] = ()

    @property
    def minutes(self) -> float:
        return max((bar.end for bar in self.bars), default=0.0)


def schedule(results: Results) -> Schedule:
    """The pretrainings and evaluations that recorded their clock, with a lane for each stage of each modality."""
    found = [  # a clock that was set back tells nothing
        (*clock, f"{stage}-{modality.name}", entry.family)
        for modality in results.modalities
        for entry, run in modality.runs
        for stage, recorded in run.stages.items()
        if (clock := recorded.get("clock")) and clock[0] <= clock[1]
    ]
    bars, cuts = [], []
    zero = latest = min((began for began, *_ in found), default=0.0)  # the clock's time at 0 minutes, which cuts move
    for began, ended, lane, family in sorted(found):
        if began - latest > IDLE:
            cuts.append((latest - zero) / 60)
            zero += began - latest
        bars.append(Bar(lane, family, (began - zero) / 60, (ended - zero) / 60))
        latest = max(latest, ended)
    return Schedule(bars, cuts)
