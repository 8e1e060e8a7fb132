"""What `speed` compares with: the same methods from lightly, put together as its examples do, and views from kornia.

`pip install -e '.[peers]'` installs both. lightly, https://github.com/lightly-ai/lightly, MIT licence; kornia,
https://github.com/kornia/kornia, Apache licence 2.0.
"""

import functools
import multiprocessing
from collections.abc import Iterable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import ssl_methods
from ssl_methods.modalities import image

from ..common.settings import Entry, InputError
from ..training import devices
from ..training.columns import Columns
from ..training.loop import descend
from ..training.optimizers import optimizer_of
from .__main__ import Trainer, steps_within

try:
    from kornia import augmentation
    from lightly import loss, transforms
    from lightly.models import modules
    from lightly.models.utils import deactivate_requires_grad, update_momentum
except ImportError:
    raise InputError(
        "the part `peers` compares with lightly and kornia; run `pip install -e '.[peers]'` first"
    ) from None

WORKERS = 2


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
        self.loss = loss_of(name, entry)

    def forward(self, views: list[Tensor]) -> Tensor:
        """The loss of a batch's views, each (N, 3, H, W), passed through one after another as in the examples."""
        first, second = views[:2]
        if self.name == "dino":
            with torch.no_grad():
                taught = [self.teacher(view) for view in (first, second)]
            return self.loss(taught, [self.student(view) for view in views], epoch=0)
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


def loss_of(name: str, entry: Entry) -> nn.Module:
    hyper = entry.hyper
    losses = {
        "simclr": lambda: loss.NTXentLoss(hyper["temperature"]),
        "moco": lambda: loss.NTXentLoss(hyper["temperature"], memory_bank_size=(hyper["queue"], hyper["width"])),
        "byol": loss.NegativeCosineSimilarity,
        "barlow_twins": loss.BarlowTwinsLoss,
        "dino": lambda: loss.DINOLoss(hyper["prototypes"], warmup_teacher_temp_epochs=0),
    }
    return losses[name]()


def transform_of(name: str, size: int, crops: int):
    """lightly's transform of that method, for pictures of that size."""
    if name == "dino":
        return transforms.DINOTransform(global_crop_size=size, local_crop_size=size // 2, n_local_views=crops)
    if name in ("byol", "barlow_twins"):
        view = transforms.byol_transform
        return transforms.BYOLTransform(view.BYOLView1Transform(size), view.BYOLView2Transform(size))
    return {"simclr": transforms.SimCLRTransform, "moco": transforms.MoCoV2Transform}[name](input_size=size)


class Pictures(torch.utils.data.Dataset):
    """The pictures of a split one by one, as PIL images through a transform, while the gate is open."""

    def __init__(self, folder: Path, transform, gate: Event):
        self.pictures, self.transform = np.load(folder / "image.npy", mmap_mode="r"), transform
        self.gate = gate

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, row: int) -> list[Tensor]:
        self.gate.wait()
        return self.transform(Image.fromarray(np.ascontiguousarray(self.pictures[row].transpose(1, 2, 0))))


class Stock:
    """lightly as its examples show it: a data loader with workers, PIL views, float32."""

    def __init__(self, name: str, entry: Entry, folder: Path, device: torch.device):
        self.model, self.device, self.batch = Peer(name, entry).to(device).train(), device, entry.training.batch_size
        self.optimizer, self.clip = optimizer_of(self.model, entry.training), entry.training.clip
        self.gate = multiprocessing.Event()
        size = np.load(folder / "train/image.npy", mmap_mode="r").shape[-1]
        pictures = Pictures(folder / "train", transform_of(name, size, entry.hyper.get("crops", 0)), self.gate)
        self.batches = endless(
            torch.utils.data.DataLoader(
                pictures, self.batch, shuffle=True, drop_last=True, num_workers=WORKERS, persistent_workers=True
            )
        )

    def step(self) -> None:
        views = [view.to(self.device) for view in next(self.batches)]
        descend(self.optimizer, self.model(views), 1e-4, self.clip)
        self.model.after_step()

    def turn(self, seconds: float) -> int:
        """Steps for about so long; returns the samples seen. The workers rest outside a turn: else they would work
        while others have theirs, and what they prepare then would cost nothing here.
        """
        self.gate.set()
        try:
            return steps_within(seconds, self.step, self.device) * self.batch
        finally:
            self.gate.clear()


def endless(loader: Iterable[list[Tensor]]) -> Iterator[list[Tensor]]:
    while True:
        yield from loader


class Modules:
    """lightly's modules and losses, with our views, precision and memory layout."""

    def __init__(self, name: str, entry: Entry, folder: Path, device: torch.device):
        self.model = Peer(name, entry).to(device, memory_format=torch.channels_last).train()
        self.optimizer, self.entry, self.device = optimizer_of(self.model, entry.training), entry, device
        self.columns, self.taken = Columns(folder / "train", ("image",), device), 0
        self.half = devices.choose_precision(entry.training.precision, device) is torch.bfloat16

    def views(self, x: Tensor) -> list[Tensor]:
        strength = self.entry.hyper["strength"]
        if self.model.name == "dino":
            wide, near = image.multi_crop(x, self.entry.hyper["crops"], strength, border=0.4)
            return [*wide.chunk(2), *near.split(len(x))]
        return list(image.simclr_view(x.repeat(2, 1, 1, 1), strength).chunk(2))

    def step(self) -> None:
        x = image.unit(self.columns.batch(self.taken, self.entry.training.batch_size, seed=0)["image"])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            views = [view.contiguous(memory_format=torch.channels_last) for view in self.views(x)]
            loss = self.model(views)
        descend(self.optimizer, loss, 1e-4, self.entry.training.clip)
        self.model.after_step()
        self.taken += 1

    def turn(self, seconds: float) -> int:
        return steps_within(seconds, self.step, self.device) * self.entry.training.batch_size


class Kornia:
    """Ours, with kornia's views in place of ours."""

    def __init__(self, entry: Entry, folder: Path, device: torch.device):
        self.trainer = Trainer(entry, folder, device)

    def turn(self, seconds: float) -> int:
        ours = image.simclr_view
        try:
            image.simclr_view = kornia_view
            return self.trainer.turn(seconds)
        finally:
            image.simclr_view = ours


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
