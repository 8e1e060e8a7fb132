"""What a method makes, for people to look at: a panel of held-out pictures, or sentences of its own."""

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ssl_methods import Method

from .columns import Columns, manifest

DRAWN = 6  # pictures in a row
SAID = 5  # sentences


def panel(method: Method, folder: Path, device: torch.device) -> dict[str, Any] | None:
    """What a method draws of a few held-out pictures that may be shown: a row of them for each of `shows`, as WebP.

    None for a method that draws nothing.
    """
    if type(method).draw is Method.draw:
        return None
    data, columns = manifest(folder), Columns(folder / "validation", method.columns, device)
    rows = data["show"]["validation"] if "show" in data else range(len(columns))
    torch.manual_seed(0)  # for holes and noise: the same in every run
    with torch.inference_mode():
        drawn = method.draw(columns.rows(torch.tensor(evenly(rows, DRAWN), dtype=torch.long)))
    return {"shows": list(drawn), "webp": sheet(drawn.values())}


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
