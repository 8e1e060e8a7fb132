"""What a method sees and makes, for people to look at: views and panels of held-out pictures, sentences of its own."""

import base64
import io
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ssl_methods import Method
from ssl_methods.encoders.convolutional import ResNet
from ssl_methods.encoders.transformers import ViT, unpatchify

from .columns import Columns, manifest

DRAWN = 6  # pictures in a row of a panel
VIEWED = 8  # pictures in a row of views
VIEWS = 3  # rows of views below the pictures
SAID = 5  # sentences


def panel(method: Method, folder: Path, device: torch.device) -> dict[str, Any] | None:
    """What a method draws of a few held-out pictures that may be shown: a row of them for each of `shows`, as WebP.

    None for a method that draws nothing.
    """
    if type(method).draw is Method.draw:
        return None
    columns, chosen = showable(method, folder, device, DRAWN)
    torch.manual_seed(0)  # for holes and noise: the same in every run
    with torch.inference_mode():
        drawn = method.draw(columns.rows(chosen))
    return {"shows": list(drawn), "webp": sheet(drawn.values())}


def views(method: Method, folder: Path, device: torch.device, batch_size: int) -> dict[str, Any] | None:
    """What enters the networks of a method for a few held-out pictures that may be shown, a row for each view, as WebP.

    None for a method that looks at no pictures, or at nothing but the pictures themselves; and where those that may be
    shown do not fill a batch, which some methods need.
    """
    towers = [module for module in method.modules() if isinstance(module, (ResNet, ViT))]
    if "image" not in method.columns or not towers:
        return None
    columns, chosen = showable(method, folder, device, batch_size)
    if len(chosen) < batch_size:
        return None
    batch = columns.rows(chosen)
    other = batch | {"image": torch.cat([255 - batch["image"][:1], batch["image"][1:]])}
    drawn = evenly(range(len(chosen)), VIEWED)
    pictures = batch["image"][drawn].float() / 255
    rows = [pictures]
    for x, y in zip(entered(method, towers, batch), entered(method, towers, other), strict=True):
        for view in by_view(x, (x != y).flatten(1).any(1), len(chosen)):
            view = F.interpolate(view[drawn].float(), pictures.shape[2:])
            if not any(torch.allclose(view, row, atol=1e-3) for row in rows):
                rows.append(view)
    rows = rows[: 1 + VIEWS]
    names = ["picture", *(f"view {i}" for i in range(1, len(rows)))]
    return {"rows": names, "webp": sheet(rows)} if len(rows) > 1 else None


def entered(method: Method, towers: Iterable[nn.Module], batch: dict[str, Tensor]) -> list[Tensor]:
    """The batches of pictures (M, 3, h, w) that enter the first layers of `towers` in one pass, in that order.

    Patches that a ViT's transformer is not given are grey.
    """
    seen: list[Tensor] = []
    tokens: dict[nn.Module, Tensor] = {}  # (M, L, D), with positions

    def stem(_: nn.Module, given: tuple[Tensor]) -> None:
        seen.append(given[0] / 4 + 0.5)  # `centre`, undone

    def embed(vit: ViT, _: nn.Module, given: tuple[Tensor], embedded: Tensor) -> None:
        seen.append(unpatchify(given[0] / 4 + 0.5, vit.patch))
        tokens[vit] = embedded + vit.positions

    def transformer(vit: ViT, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        kept = torch.stack([found(*pair) for pair in zip(tokens[vit], given[0], strict=True)])  # (M, L)
        side = seen[-1].shape[2] // vit.patch
        seen[-1] = torch.where(enlarge(kept.view(-1, 1, side, side), vit.patch), seen[-1], 0.5)

    with ExitStack() as hooks, torch.inference_mode():
        for tower in towers:
            if isinstance(tower, ResNet):
                handles = [tower.stem.register_forward_pre_hook(stem)]
            else:
                handles = [
                    tower.embed.register_forward_hook(partial(embed, tower)),
                    tower.transformer.register_forward_pre_hook(partial(transformer, tower)),
                ]
            for handle in handles:
                hooks.callback(handle.remove)
        torch.manual_seed(0)  # for views and masks: the same in every run
        method(batch)
    return seen


def found(tokens: Tensor, among: Tensor) -> Tensor:
    """Which of the tokens (L, D) are, bit for bit, among others (M, D): (L,)."""
    return (tokens[:, None] == among).all(2).any(1)


def enlarge(grid: Tensor, factor: int) -> Tensor:
    """Each cell of (N, 1, h, w) to factor x factor of it."""
    return grid.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def by_view(x: Tensor, changed: Tensor, pictures: int) -> Sequence[Tensor]:
    """A batch (views * pictures, ...) taken apart into its views, each (pictures, ...).

    `changed` are the rows that differ when only the first picture does: where they are neighbours, the views of a
    picture are, as jigsaw's tiles; else each view of all pictures comes in turn. Nothing of batches of other lengths.
    """
    count, rest = divmod(len(x), pictures)
    if rest:
        return ()
    apart = x.unflatten(0, (pictures, count)).transpose(0, 1) if changed[1:count].any() else x.chunk(count)
    return tuple(apart)


def showable(method: Method, folder: Path, device: torch.device, count: int) -> tuple[Columns, Tensor]:
    """The held-out data, and up to `count` of its rows, evenly spread, among those that may be shown."""
    data, columns = manifest(folder), Columns(folder / "validation", method.columns, device)
    rows = data["show"]["validation"] if "show" in data else range(len(columns))
    return columns, torch.tensor(evenly(rows, count), dtype=torch.long)


def evenly(rows: Sequence[int], count: int) -> list[int]:
    """Up to `count` of the rows, evenly spread."""
    return [rows[i * len(rows) // count] for i in range(count)] if count < len(rows) else list(rows)


def sheet(rows: Iterable[Tensor]) -> str:
    """Rows of equally many pictures in [0, 1], each (N, 3, h, w), one below the other with white gaps: WebP, base64."""
    strips = [F.pad(pictures.float().cpu(), (1, 1, 1, 1), value=1.0) for pictures in rows]
    grid = torch.cat([torch.cat(list(strip), dim=2) for strip in strips], dim=1)  # (3, rows * h, N * w)
    file = io.BytesIO()
    Image.fromarray((grid.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()).save(file, "webp", quality=90)
    return base64.b64encode(file.getvalue()).decode()


def sentences(method: Method, folder: Path) -> list[str]:
    """What a method writes; nothing for one that does not."""
    torch.manual_seed(0)
    with torch.inference_mode():
        ids = method.say(SAID)
    if not len(ids):
        return []
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json")).decode_batch(ids.tolist())
