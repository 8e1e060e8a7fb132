"""What a sweep varies, checked, and the entry that a trial of it trains. Reads no Optuna, which is slow to import."""

from dataclasses import dataclass
from typing import Any

import ssl_methods

from ..common.settings import Entry, InputError, Range, Sweep, Training, check, parse

# What a space may name beside the method's own settings: nothing that changes how many samples are seen.
TRAINING = ("batch_size", "lr", "weight_decay", "warmup", "clip")


@dataclass(frozen=True)
class Search:
    """A sweep over an entry, and the name that all its workers find its study by."""

    entry: Entry  # as it stands: trial 0
    sweep: Sweep
    study: str

    @property
    def default(self) -> dict[str, Any]:
        return {axis: current(self.entry, axis) for axis in self.sweep.space}


def current(entry: Entry, axis: str) -> Any:
    return entry.hyper[axis] if axis in entry.hyper else getattr(entry.training, axis)


def variant(search: Search, values: dict[str, Any]) -> Entry:
    """The entry with a trial's values and budget.

    A learning rate, drawn or not, is meant for the entry's own batch size, and is scaled to the trial's.
    """
    entry = search.entry
    hyper = {key: values.get(key, value) for key, value in entry.hyper.items()}
    own = {key: value for key, value in values.items() if key not in hyper}
    training = {**entry.training.model_dump(), **own, "epochs": search.sweep.epochs}
    training["lr"] *= training["batch_size"] / entry.training.batch_size
    return entry.model_copy(update={"hyper": hyper, "training": Training(**training)})


def check_space(entry: Entry, sweep: Sweep) -> None:
    """Raises InputError for an unknown axis, for a range that makes no sense, for a value that the setting cannot take.

    And for a range without the value in use, because trial 0 is the entry as it stands.
    """
    where = f"sweeps.{entry.name}.space"
    if not sweep.space:
        raise InputError(
            f"{where}: names no parameter; add one, as in `temperature: {{low: 0.05, high: 1.0, log: true}}`"
        )
    for axis in sweep.space:
        if axis not in (known := [*entry.hyper, *TRAINING]):
            raise InputError(f"{where}: {ssl_methods.unknown('parameter', axis, known)}")
    for axis, given in sweep.space.items():
        default = current(entry, axis)
        check_range(given, default, f"{where}.{axis}")
        for value in given.choices or (type(default)(given.low), type(default)(given.high)):
            if axis in entry.hyper:
                check(ssl_methods.load(entry.method), {**entry.hyper, axis: value}, where)
            else:
                parse(Training, {**entry.training.model_dump(), axis: value}, where)


def check_range(given: Range, default: Any, where: str) -> None:
    """Raises InputError where nothing can be drawn from an axis, or not `default`, the value in use."""
    ends = (given.low, given.high)
    if given.choices is not None:
        if ends != (None, None) or given.log:
            raise InputError(f"{where}: give either `choices`, or `low` and `high`, but not both")
        if not given.choices or len(set(given.choices)) < len(given.choices):
            raise InputError(f"{where}.choices: expected different values, at least one, but it is {given.choices}")
        if default not in given.choices:
            raise InputError(f"{where}.choices: lacks {default!r}, the value in use, which trial 0 measures; add it")
        return
    if None in ends:
        raise InputError(f"{where}: expected {{low: ..., high: ...}} or {{choices: [...]}}")
    if given.low >= given.high:
        raise InputError(f"{where}: low must be less than high, but low is {given.low} and high is {given.high}")
    if given.log and given.low <= 0:
        raise InputError(f"{where}: a range with `log: true` needs low > 0, but low is {given.low}")
    if isinstance(default, bool) or not isinstance(default, int | float):
        raise InputError(f"{where}: the value in use is {default!r}, which lies in no range; give `choices` instead")
    if not given.low <= default <= given.high:
        raise InputError(f"{where}: leaves out {default!r}, the value in use, which trial 0 measures; widen the range")
    if isinstance(default, int) and not (given.low.is_integer() and given.high.is_integer()):
        raise InputError(f"{where}: takes whole numbers, but low is {given.low} and high is {given.high}")


def check_data(search: Search, data: dict[str, Any]) -> None:
    """Raises InputError where the data, of that manifest, have no labels, or fewer rows than a trial's batch."""
    if not data["classes"]:
        raise InputError(
            f"benchmark.{search.entry.modality}.sweeps: {data['data']} has no labels to score by; empty it"
        )
    if given := search.sweep.space.get("batch_size"):
        largest, rows = int(max(given.choices or [given.high])), data["splits"]["train"]["rows"]
        if largest > rows:
            raise InputError(
                f"sweeps.{search.entry.name}.space.batch_size: {largest} is larger than the data: "
                f"{data['data']} has {rows} rows to train on; choose at most that"
            )
