"""params.yaml, read and checked whole before any work starts.

A mistake ends in one line that names the key, says what was expected and how to mend it (`InputError`).
"""

import inspect
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_type_hints

import yaml
from annotated_types import Gt, Interval
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

import ssl_methods
from ssl_methods import Count, Fraction, NonNegative, Positive, unknown

PARAMS = Path("params.yaml")
MODALITIES = Path(ssl_methods.__file__).parent / "modalities"
DEEPEST, MOST = 16, 20_000  # levels and values that params.yaml may have, its aliases written out


class InputError(Exception):
    """A mistake of the user's. Its text is one line: what is wrong, what was expected, how to mend it."""


class Block(BaseModel):
    """A block of params.yaml: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Training(Block):
    """The budget and the optimiser of one pretraining. The same for all methods, except for what `override` names."""

    encoder: str
    epochs: Annotated[float, Interval(ge=0)]
    batch_size: Annotated[int, Interval(ge=2)]
    optimizer: Literal["adamw", "sgd", "lars"]
    lr: Positive
    beta1: Fraction = 0.9  # how much of the last direction a step keeps: AdamW's beta_1, SGD's and LARS's momentum
    weight_decay: NonNegative = 0.0
    warmup: Fraction = 0.1  # the share of all steps in which the learning rate rises
    clip: Positive | None = None  # the gradient's largest norm
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    device: str = "auto"
    processes: Count = 1  # that share each batch, with a GPU each or some cores
    # What some methods or entries need otherwise, of these keys or of their own: {name: {key: value}}. Where the same
    # hyper-parameter stands under `methods`, that one counts.
    override: dict[str, dict[str, Any]] = Field(default_factory=dict)
    stand_in: dict[str, str] = Field(default_factory=dict)  # {the encoder that an entry names: the one it gets here}


RESOLVED = ("override", "stand_in")  # the keys of a profile that are settled in each entry


class LowLabel(Block):
    """How few labels the linear probe gets: shares of train's, and so many of each class."""

    shares: list[Annotated[float, Interval(gt=0, le=1)]] = Field(default_factory=list)
    per_class: list[Count] = Field(default_factory=list)
    draws: Count  # of each
    strengths: list[Positive] = Field(min_length=1)  # of the penalty: fewer labels need more


class FineTuning(Block):
    """The recipe of end-to-end fine-tuning. As in `Training`."""

    epochs: Count
    batch_size: Annotated[int, Interval(ge=2)]
    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    lr: Positive
    beta1: Fraction = 0.9
    weight_decay: NonNegative = 0.0
    warmup: Fraction = 0.1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


class Transfer(Block):
    """A linear probe on labels that no choice in pretraining could see: another column of the data."""

    label: dict[str, str]  # {modality: the column}; measured where the data has it
    strengths: list[Positive] = Field(min_length=1)


class Evaluation(Block):
    """The protocol of evaluation. Choices among the lists are made on validation data."""

    strengths: list[Positive] = Field(min_length=1)  # of the linear probe's L2 penalty
    neighbours: list[Count] = Field(min_length=1)  # of k-NN
    temperature: Positive = 0.07  # of k-NN's weights
    batch_size: Count = 512
    device: str = "auto"
    collapsed_spread: NonNegative = 0.01  # below it, features are called collapsed
    collapsed_rank: NonNegative = 1.5
    low_label: LowLabel | None = None  # what is not given is not measured
    finetune: FineTuning | None = None
    transfer: Transfer | None = None


class Range(Block):
    """One axis of a sweep: an interval, or a list of choices."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: list[float | int | str] | None = None


class Sweep(Block):
    """A hyper-parameter search over one entry of the table."""

    trials: Count
    epochs: Annotated[float, Gt(0)]  # the budget of one trial: every trial sees as many samples
    seed: int = 0
    space: dict[str, Range]
    storage: str | None = None  # any Optuna URL; by default a journal file


class Modality(Block):
    """What one modality's table is made of: names of a data set, of a training profile, and of entries."""

    data: str
    training: str
    methods: list[str]
    sweeps: list[str] = Field(default_factory=list)


class Entry(Block):
    """One row of the table, with everything resolved."""

    modality: str
    name: str
    method: str
    family: str
    encoder: dict[str, Any]  # {"name": ..., "architecture": ..., and its settings}
    hyper: dict[str, Any]
    training: Training


class Settings(Block):
    """The whole of params.yaml."""

    seeds: list[Annotated[int, Interval(ge=0, lt=2**31)]] = Field(min_length=1)
    at_once: Count | Literal["auto"] = "auto"  # so many seeds side by side, with a share of the cores each
    benchmark: dict[str, Modality]
    datasets: dict[str, dict[str, Any] | None]
    training: dict[str, Training]
    encoders: dict[str, dict[str, Any]]
    methods: dict[str, dict[str, Any] | None]
    evaluation: Evaluation
    sweeps: dict[str, Sweep] = Field(default_factory=dict)

    def bench(self, modality: str) -> Modality:
        """What a modality's table is made of. Raises InputError where there is none, or no such modality."""
        pick("benchmark", "modality", modality, {file.stem: file for file in MODALITIES.glob("[!_]*.py")})
        return pick("benchmark", "modality", modality, self.benchmark)

    def entry(self, modality: str, name: str) -> Entry:
        """One row of a modality's table. Raises InputError where a name or a value is wrong."""
        bench = self.bench(modality)
        block = dict(pick(f"benchmark.{modality}.methods", "entry", name, self.methods) or {})
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise InputError(f"methods.{name!r}: it names folders and commands; make it of letters, digits and _ . + -")
        method = parse(str, block.pop("method", name), f"methods.{name}.method")
        families = ssl_methods.families()
        pick(f"methods.{name}", "method", method, families)
        profile = pick(f"benchmark.{modality}.training", "training profile", bench.training, self.training)
        own = {**profile.override.get(method, {}), **profile.override.get(name, {})}
        budget = {key: own.pop(key) for key in list(own) if key in Training.model_fields}
        factory, where = ssl_methods.load(method), f"training.{bench.training}.override.{name}"
        check(factory, own, where, also=Training.model_fields)
        if "encoder" in block:
            names, encoder = f"methods.{name}", block.pop("encoder")
        elif "encoder" in budget:
            names, encoder = where, budget["encoder"]
        else:
            names, encoder = f"training.{bench.training}", profile.encoder
        encoder = parse(str, encoder, f"{names}.encoder")
        encoder = profile.stand_in.get(encoder, encoder)
        return Entry(
            modality=modality,
            name=name,
            method=method,
            family=families[method],
            encoder={
                "name": encoder,
                **architecture(encoder, dict(pick(f"{names}.encoder", "encoder", encoder, self.encoders))),
            },
            hyper=check(factory, {**own, **block}, f"methods.{name}"),
            training=parse(
                Training, {**profile.model_dump(exclude=set(RESOLVED)), **budget, "encoder": encoder}, where
            ),
        )


def read(path: Path = PARAMS) -> Settings:
    """params.yaml as checked settings. Raises InputError for a missing file, what is not YAML, and wrong values."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} not found; run from the repository's root") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); run from the repository's root") from None
    except Exception as error:  # of a date in month 13 PyYAML makes a ValueError, of an empty `!!int` an IndexError
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = one_line(getattr(error, "problem", None) or error)
        raise InputError(f"{path} is not YAML{place}: {reason}; mend it") from None
    if not isinstance(content, Mapping):
        raise InputError(f"{path} must hold `key: value` blocks, but it holds {type(content).__name__}")
    look_through(content)
    settings = parse(Settings, content, "")
    look_through(settings.model_dump())  # again: pydantic reads numbers in text, and "1e999" is one
    for profile, training in settings.training.items():
        for name in training.override:
            pick(
                f"training.{profile}.override", "method or entry", name, {**ssl_methods.families(), **settings.methods}
            )
    return settings


def look_through(content: Any) -> None:
    """Raises InputError for what YAML can say and no setting means: endless nesting, numbers out of all bounds."""
    waiting, seen = [((), content)], 0
    while waiting:
        path, value = waiting.pop()
        seen += 1
        where = one_line(".".join(path))
        if len(path) > DEEPEST or seen > MOST:
            raise InputError(f"{where}: more than {DEEPEST} levels or {MOST:,} values; write less, or no aliases (*)")
        if isinstance(value, Mapping):
            if odd := [key for key in value if not isinstance(key, str)]:
                raise InputError(f"{where}: the key {reprlib.repr(odd[0])} is no text; put it in quotes")
            waiting += [((*path, key), inner) for key, inner in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [((*path, str(number)), inner) for number, inner in enumerate(value)]
        elif isinstance(value, int | float) and not abs(value) < 2**63:
            raise InputError(f"{where}: expected a number of a sensible size, but it is {reprlib.repr(value)}")


def check(factory: Callable, given: Mapping[str, Any], where: str, also: Iterable[str] = ()) -> dict[str, Any]:
    """The given keyword settings, checked against the signature of what takes them, and filled up with its defaults.

    `also` are names that could have been meant, and that the message about an unknown one suggests too.
    """
    hints = get_type_hints(factory.__init__ if inspect.isclass(factory) else factory, include_extras=True)
    parameters = inspect.signature(factory).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}
    for key in given:
        if key not in defaults:
            raise InputError(one_line(f"{where}.{key}: {unknown('setting', key, [*defaults, *also])}"))
    values = {**defaults, **given}
    found = {key: parse(hints.get(key, Any), value, f"{where}.{key}") for key, value in values.items()}
    look_through({where: found})
    return found


def architecture(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """An encoder's block, checked against the signature of its architecture."""
    where = one_line(f"encoders.{name}")
    if "architecture" not in settings:
        raise InputError(f"{where}: names no `architecture`; add one, as in `architecture: ResNet`")
    kind = parse(str, settings.pop("architecture"), f"{where}.architecture")
    try:
        factory = ssl_methods.load_architecture(kind)
    except ValueError as error:
        raise InputError(f"{where}.architecture: {error}") from None
    return {"architecture": kind, **check(factory, settings, where)}


def parse(kind: Any, value: Any, where: str) -> Any:
    """`value` as a `kind`. Raises InputError for the first thing wrong with it, naming its full key."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = one_line(".".join(filter(None, [where, *(str(part) for part in first["loc"])])))
        if first["type"] == "extra_forbidden":
            raise InputError(f"{key}: {unknown('key', str(first['loc'][-1]), fields(kind, first['loc']))}") from None
        if first["type"] == "missing":
            raise InputError(f"{key}: missing; add it to params.yaml") from None
        raise InputError(f"{key}: {decapitalise(first['msg'])}, but it is {reprlib.repr(first['input'])}") from None


def fields(kind: Any, location: tuple[str | int, ...]) -> Iterable[str]:
    """The keys that the block around `location` takes."""
    for part in location[:-1]:
        # Of a block, the type of that key; of a dictionary or a list, the type of its values.
        kind = kind.model_fields[part].annotation if hasattr(kind, "model_fields") else get_args(kind)[-1]
        if isinstance(kind, UnionType):  # a block, or None
            kind = get_args(kind)[0]
    return kind.model_fields


def one_line(text: object) -> str:
    """For messages: without line breaks, control characters, and the bytes of a file name that are no text."""
    return " ".join(
        re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", str(text)).encode("utf-8", "replace").decode().split()
    )


def decapitalise(text: str) -> str:
    return text[0].lower() + text[1:]


def pick(where: str, kind: str, name: str, known: Mapping[str, Any]) -> Any:
    """known[name], or an InputError that names the nearest known name."""
    if name not in known:
        raise InputError(one_line(f"{where}: {unknown(kind, name, known)}"))
    return known[name]
