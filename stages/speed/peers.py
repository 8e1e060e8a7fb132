"""Ours against others: the same methods from lightly, put together as its examples do, and views from kornia.

`pip install -e '.[peers]'` installs both. lightly, https://github.com/lightly-ai/lightly, MIT licence; kornia,
https://github.com/kornia/kornia, Apache licence 2.0.
"""

import functools
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from multiprocessing.synchronize import Event
from operator import methodcaller
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import ssl_methods
from ssl_methods.modalities import image

from ..common.settings import Entry, InputError, Settings
from ..training import devices
from ..training.columns import Columns
from ..training.loop import descend
from ..training.optimizers import optimizer_of
from .timing import apart, race, steps_within
from .trainer import Trainer, in_products, profile

try:
    from kornia import augmentation
    from lightly import loss, transforms
    from lightly.models import modules
    from lightly.models.utils import deactivate_requires_grad, update_momentum
except ImportError:
    raise InputError(
        "the part `peers` compares with lightly and kornia; run `pip install -e '.[peers]'` first"
    ) from None

# The narrow encoder in which they are compared, at full resolution, and the batch.
NARROW = {"name": "narrow", "architecture": "ResNet", "width": 32, "blocks": [1, 1, 1], "stride": 1}
BATCH = 256
PEERS = ("simclr", "byol", "moco", "barlow_twins", "dino")
WORKERS = 2


def peers(settings: Settings, seconds: float) -> dict[str, dict[str, Any]]:
    """Ours against others, the same encoder, batch and pictures, from uint8 pictures to the next weights.

    `stock` is lightly as its examples show it: PIL views in two workers, float32. `modules` are its modules and losses
    fed by our views, in our precision and memory layout. `kornia` is ours with kornia's views. `compiled` is ours with
    `compile: true`, compiled in the turn that does not count. Each has a process of its own. `over_...` are ratios of
    medians. `phases` are the shares of ours, and `products` what convolutions and matrix products take of `modules`,
    which ours cannot save, in percent.
    """
    found = {}
    for name in PEERS:
        entry = narrow(settings.entry("image", name))
        given = entry, Path("data/image"), devices.choose(entry.training.device)
        makers = {
            "ours": partial(Trainer, *given),
            "modules": partial(Lightly, name, our_views, *given),
            "stock": partial(Lightly, name, pil_views, *given),
            "kornia": partial(Kornia, *given),
            "compiled": partial(Trainer, narrow(entry, compile=True), *given[1:]),
        }
        with ExitStack() as processes:
            asked = {who: processes.enter_context(apart(make)) for who, make in makers.items()}
            turns = {who: lambda ask=ask: ask(methodcaller("turn", seconds)).result() for who, ask in asked.items()}
            speeds = race(turns, turns=9)
            phases = asked["ours"](partial(profile, steps=20)).result()
            products = asked["modules"](partial(in_products, steps=5)).result()
        median = {who: speed["median"] for who, speed in speeds.items()}
        others = ("modules", "kornia", "stock")
        ratios = {f"over_{who}": median["ours"] / median[who] for who in others}
        ratios |= {f"compiled_over_{who}": median["compiled"] / median[who] for who in others}
        found[name] = speeds | ratios | {"phases": phases, "products": products}
    return found


def narrow(entry: Entry, **training: Any) -> Entry:
    training = entry.training.model_copy(update={"batch_size": BATCH, **training})
    return entry.model_copy(update={"encoder": NARROW, "training": training})


# ---- lightly


class Peer(nn.Module):
    """lightly's modules and loss of one method, with the widths that our entry has, around the same encoder."""

    def __init__(self, name: str, entry: Entry):
        super().__init__()
        self.name, hyper = name, entry.hyper
        self.student, self.teacher, self.predictor = branch(name, entry), None, None
        if name in ("moco", "byol", "dino"):
            self.teacher = branch(name, entry)
            self.teacher.load_state_dict(self.student.state_dict())
            deactivate_requires_grad(self.teacher)
        if name == "byol":
            self.predictor = modules.BYOLPredictionHead(hyper["width"], hyper["hidden"], hyper["width"])
        self.loss = {
            "simclr": lambda: loss.NTXentLoss(hyper["temperature"]),
            "moco": lambda: loss.NTXentLoss(hyper["temperature"], memory_bank_size=(hyper["queue"], hyper["width"])),
            "byol": loss.NegativeCosineSimilarity,
            "barlow_twins": loss.BarlowTwinsLoss,
            "dino": lambda: loss.DINOLoss(hyper["prototypes"], warmup_teacher_temp_epochs=0),
        }[name]()

    def forward(self, views: list[Tensor]) -> Tensor:
        """The loss of a batch's views, each (N, 3, H, W), passed through one after another as in the examples."""
        first, second = views[:2]
        if self.name == "dino":
            with torch.no_grad():
                targets = [self.teacher(view) for view in (first, second)]
            return self.loss(targets, [self.student(view) for view in views], epoch=0)
        if self.name == "moco":
            with torch.no_grad():
                key = self.teacher(second)
            return self.loss(self.student(first), key)
        if self.name == "byol":
            with torch.no_grad():
                t1, t2 = self.teacher(first), self.teacher(second)
            p1, p2 = (self.predictor(self.student(view)) for view in (first, second))
            return 0.5 * (self.loss(p1, t2) + self.loss(p2, t1))
        return self.loss(self.student(first), self.student(second))

    def after_step(self, momentum: float = 0.99) -> None:
        if self.teacher is not None:
            update_momentum(self.student, self.teacher, momentum)


def branch(name: str, entry: Entry) -> nn.Sequential:
    """The encoder and the method's projector."""
    encoder, hyper = ssl_methods.build_encoder(entry.encoder, {}), entry.hyper
    dim, width, hidden = encoder.dim, hyper["width"], hyper.get("hidden")
    heads = {
        "simclr": lambda: modules.SimCLRProjectionHead(dim, dim, width),
        "moco": lambda: modules.MoCoProjectionHead(dim, dim, width, batch_norm=True),
        "byol": lambda: modules.BYOLProjectionHead(dim, hidden, width),
        "barlow_twins": lambda: modules.BarlowTwinsProjectionHead(dim, width, width),
        "dino": lambda: modules.DINOProjectionHead(dim, hidden, width, hyper["prototypes"], batch_norm=True),
    }
    return nn.Sequential(encoder, heads[name]())


class Lightly:
    """lightly's modules and loss of one method in training, on the batches of views that `source` makes.

    `our_views` come with our precision and memory layout, `pil_views` with float32 and torch's layout.
    """

    def __init__(self, name: str, source: Callable, entry: Entry, folder: Path, device: torch.device):
        self.entry, self.device, self.gate = entry, device, multiprocessing.Event()
        self.batches = source(name, entry, folder, device, self.gate)
        ours = source is our_views
        layout = torch.channels_last if ours else torch.contiguous_format
        self.model = Peer(name, entry).to(device, memory_format=layout).train()
        self.half = ours and devices.choose_precision(entry.training.precision, device) is torch.bfloat16
        self.optimizer = optimizer_of(self.model, entry.training)

    def step(self) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            loss = self.model(next(self.batches))
        descend(self.optimizer, loss, 1e-4, self.entry.training.clip)
        self.model.after_step()

    def turn(self, seconds: float) -> int:
        """Steps for about so long; returns the samples seen. Outside a turn the gate keeps the loader's workers from
        preparing batches, in the time of the others, that would cost nothing here.
        """
        self.gate.set()
        try:
            return steps_within(seconds, self.step, self.device) * self.entry.training.batch_size
        finally:
            self.gate.clear()


def our_views(name: str, entry: Entry, folder: Path, device: torch.device, gate: Event) -> Iterator[list[Tensor]]:
    columns, strength, step = Columns(folder / "train", ("image",), device), entry.hyper["strength"], 0
    while True:
        x = image.unit(columns.batch(step, entry.training.batch_size, seed=0)["image"])
        if name == "dino":
            wide, near = image.multi_crop(x, entry.hyper["crops"], strength, border=0.4)
            views = [*wide.chunk(2), *near.split(len(x))]
        else:
            views = image.simclr_view(x.repeat(2, 1, 1, 1), strength).chunk(2)
        yield [view.contiguous(memory_format=torch.channels_last) for view in views]
        step += 1


def pil_views(name: str, entry: Entry, folder: Path, device: torch.device, gate: Event) -> Iterator[list[Tensor]]:
    """As in lightly's examples: its transform on PIL images, in the workers of a data loader."""
    pictures = np.load(folder / "train/image.npy", mmap_mode="r")
    data = Pictures(pictures, transform_of(name, pictures.shape[-1], entry.hyper.get("crops", 0)), gate)
    kept = {"shuffle": True, "drop_last": True, "num_workers": WORKERS, "persistent_workers": True}
    loader = torch.utils.data.DataLoader(data, entry.training.batch_size, **kept)
    while True:
        for views in loader:
            yield [view.to(device) for view in views]


class Pictures(torch.utils.data.Dataset):
    """Pictures one by one, as PIL images through a transform, while the gate is open."""

    def __init__(self, pictures: np.ndarray, transform: Callable, gate: Event):
        self.pictures, self.transform, self.gate = pictures, transform, gate

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, row: int) -> list[Tensor]:
        self.gate.wait()
        return self.transform(Image.fromarray(np.ascontiguousarray(self.pictures[row].transpose(1, 2, 0))))


def transform_of(name: str, size: int, crops: int) -> Callable:
    """lightly's transform of that method, for pictures of that size."""
    if name == "dino":
        return transforms.DINOTransform(global_crop_size=size, local_crop_size=size // 2, n_local_views=crops)
    if name in ("byol", "barlow_twins"):
        view = transforms.byol_transform
        return transforms.BYOLTransform(view.BYOLView1Transform(size), view.BYOLView2Transform(size))
    return {"simclr": transforms.SimCLRTransform, "moco": transforms.MoCoV2Transform}[name](input_size=size)


# ---- kornia


class Kornia(Trainer):
    """Ours, with kornia's views in place of ours."""

    def turn(self, seconds: float) -> int:
        with mock.patch.object(image, "simclr_view", kornia_view):
            return super().turn(seconds)


def kornia_view(x: Tensor, strength: float = 1.0, scale: tuple[float, float] = (0.08, 1)) -> Tensor:
    """What `image.simclr_view` draws, drawn and made by kornia, in float32."""
    with torch.autocast(x.device.type, enabled=False):
        return kornia_views(x.shape[-1], strength, scale)(x)


@functools.cache
def kornia_views(size: int, strength: float, scale: tuple[float, float]) -> nn.Module:
    area = tuple(max(1 - (1 - end) * strength, image.SMALLEST_CROP) for end in scale)
    amount = 0.4 * strength
    return augmentation.AugmentationSequential(
        augmentation.RandomResizedCrop((size, size), area, ((3 / 4) ** strength, (4 / 3) ** strength)),
        augmentation.RandomHorizontalFlip(min(0.5 * strength, 0.5)),
        augmentation.ColorJitter(amount, amount, amount, amount / 4, p=min(0.8 * strength, 1)),
        augmentation.RandomGrayscale(p=min(0.2 * strength, 1)),
    )
