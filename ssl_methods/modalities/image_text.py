"""Pictures with captions: the columns `image` and `token`, as in `image` and `text`, row by row of each other.

The picture is the tower that is probed. An encoder of pictures alone has no other, and is never asked for text.
"""

import torch
from torch import Tensor, nn

from ..encoders.pairs import ImageText
from . import image
from .image import unit

columns = ("image", "token")
partner_columns = ("token",)
other_columns = image.other_columns
distorted = image.distorted


def embed(encoder: nn.Module, batch: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What evaluation reads: the features (N, D) of each tower at each of its depths, by name. The picture is first."""
    if not isinstance(encoder, ImageText):
        return image.embed(encoder, batch)
    return encoder.depths(unit(batch["image"]), batch["token"])


def features(encoder: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The picture's deepest features (N, D) alone, as fine-tuning needs them."""
    return image.features(encoder.eye if isinstance(encoder, ImageText) else encoder, batch)


def partners(towers: dict[str, dict[str, Tensor]], columns: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What evaluation looks for in what: a picture's caption among all that differ, and a caption's pictures.

    Of pictures with one caption, each is right. Features are those of the space that both towers share. Beside them,
    what pictures alone look for.
    """
    found = image.partners(towers, columns)
    if "text" not in towers:
        return found
    pictures, texts = towers["image"]["shared"], towers["text"]["shared"]
    caption = columns["token"].unique(dim=0, return_inverse=True)[1]  # (N,)
    place = torch.arange(len(caption), device=caption.device)
    first = place.new_full((int(caption.max()) + 1,), len(caption)).scatter_reduce(0, caption, place, "amin")  # (M,)
    each = caption[first]
    return found | {
        "image to text": {"queries": pictures, "gallery": texts[first], "wanted": caption, "names": each},
        "text to image": {"queries": texts[first], "gallery": pictures, "wanted": each, "names": caption},
    }


def named(
    encoder: nn.Module, towers: dict[str, dict[str, Tensor]], prompts: dict[str, Tensor]
) -> tuple[Tensor, Tensor] | None:
    """Pictures (N, S) and the prompts of classes (P, S) in the space that both share; None without a text tower."""
    return (towers["image"]["shared"], encoder.text(prompts["token"])) if "text" in towers else None


def view(x: Tensor, strength: float = 1.0) -> Tensor:
    """A random square of a picture (N, 3, H, W) in [0, 1], at full size: CLIP's only augmentation (section 2.4).

    It covers from 1 - 0.1 `strength` of the picture on. At 0 it is the picture itself, at 1 as in OpenCLIP.
    """
    if strength == 0:
        return x
    return image.crop(x, scale=(max(1 - 0.1 * strength, image.SMALLEST_CROP), 1), ratio=(1, 1))
