"""What a self-supervised method is, and how to find one by name.

This file imports no method: the file's name is the only registry, so a method is added by adding a file.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn

# Ranges of hyper-parameters. They stand in signatures; `stages.settings` checks params.yaml against them.
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
Count = Annotated[int, Ge(1)]


class Method(nn.Module):
    """One paper: what it looks at, what it minimises, what it moves by hand.

    It is given an encoder, and leaves in `encoder` the network that evaluation freezes. Keyword-only parameters with a
    default are hyper-parameters, and the defaults are the paper's; those without one are facts of the data (`classes`).
    """

    columns: tuple[str, ...]  # the data columns it reads; only a method that names "label" ever sees one
    passes: int | None = None  # how often it needs to see the data, where that is not a matter of budget
    encoder: nn.Module
    progress: float = 0.0  # 0 at the first step, 1 after the last; the loop sets it every step

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss on a batch (a scalar), and whatever scalars are worth plotting beside it."""
        raise NotImplementedError

    def after_step(self) -> None:
        """What no gradient moves: a teacher's average, a queue's next entry."""

    def passes_done(self) -> int:
        """How often it has seen the data by now, of the `passes` that it needs."""
        return int(self.progress * self.passes + 1e-9)  # where rounding falls short of a whole one

    def draw(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a method that draws makes of a batch, for people to look at: its input, where that is not the picture
        itself, its output, and the truth. Each (N, 3, h, w); what lies outside [0, 1] is cut off.
        """
        return {}

    def say(self, count: int) -> Tensor:
        """So many sentences that a method which writes makes up, as token ids (count, L); else none, (0, L)."""
        return torch.empty(0, 0, dtype=torch.int32)


SHARED = ("encoders", "modalities", "parts")  # folders that hold no methods


def families() -> dict[str, str]:
    """The family (folder) of every method, by name."""
    files = Path(__file__).parent.glob("*/*.py")
    return {f.stem: f.parent.name for f in sorted(files) if f.parent.name not in SHARED and f.stem != "__init__"}


def load(name: str) -> type[Method]:
    """The method in ssl_methods/<family>/<name>.py. Raises ValueError for a name that is not there."""
    known = families()
    if name not in known:
        raise ValueError(unknown("method", name, known))
    module = import_module(f"{__name__}.{known[name]}.{name}")
    (method,) = (c for c in vars(module).values() if inspect.isclass(c) and is_method_of(c, module))
    return method


def is_method_of(candidate: type, module: ModuleType) -> bool:
    return issubclass(candidate, Method) and candidate.__module__ == module.__name__


def load_modality(name: str) -> ModuleType:
    """ssl_methods/modalities/<name>.py: `columns`, `embed` and the views of one kind of data."""
    return import_module(f"{__name__}.modalities.{name}")


def load_architecture(name: str) -> type[nn.Module]:
    """The encoder class of that name in ssl_methods/encoders/*.py. Raises ValueError for an unknown one."""
    known = architectures()
    if name not in known:
        raise ValueError(unknown("architecture", name, known))
    return known[name]


def architectures() -> dict[str, type[nn.Module]]:
    """Every encoder class, by name: those with `depths`, and not the blocks that they are built of."""
    files = (Path(__file__).parent / "encoders").glob("[!_]*.py")
    modules = [import_module(f"{__name__}.encoders.{f.stem}") for f in sorted(files)]
    classes = (c for module in modules for c in vars(module).values() if inspect.isclass(c))
    return {c.__name__: c for c in classes if issubclass(c, nn.Module) and hasattr(c, "depths")}


def build_encoder(settings: Mapping[str, Any], facts: Mapping[str, Any]) -> nn.Module:
    """An encoder from its block in params.yaml (`architecture` and its settings) and the facts of the data."""
    settings = {k: v for k, v in settings.items() if k != "name"}
    return build(load_architecture(settings.pop("architecture")), settings=settings, facts=facts)


def build(factory: Callable, *args: Any, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> Any:
    """Calls `factory` with its settings, and with those facts of the data that its signature asks for."""
    return factory(*args, **settings, **{name: facts[name] for name in facts_needed(factory)})


def facts_needed(factory: Callable) -> list[str]:
    """The keyword-only parameters without a default: what only the data can tell."""
    parameters = inspect.signature(factory).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that does not exist: the nearest that does, then all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"unknown {kind} {name!r};{f' did you mean {near[0]!r}?' if near else ''} known: {', '.join(known)}"
