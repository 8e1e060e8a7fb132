"""Images: the column `image`, uint8 (N, 3, H, W), and the views (augmentations) of it.

A view takes a batch of floats (N, 3, H, W) in [0, 1] and returns the same. It acts on the whole batch where the batch
lies, and every picture draws its own parameters from torch's global generator. Nothing waits for the device.

Each view is in two halves: a pure function of explicit parameters, one per picture and of shape (N,) (`resample`,
`adjust_*`, `gaussian_blur`), which equals torchvision's operation of that name; and the function that draws them.
Elementwise arithmetic and `grid_sample` stay in float32 under autocast; a matrix product or a convolution would not.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..parts.losses import in_float32

columns = ("image",)
partner_columns = ()
other_columns = ("concept", "vendor")  # where the data has them

TRIES = 10  # torchvision's RandomResizedCrop too gives up after ten boxes that do not fit
SMALLEST_CROP = 0.04  # of the area, a fifth of each side: below it a 32 x 32 picture is a few blurred pixels


def embed(encoder: nn.Module, batch: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What evaluation reads: the features (N, D) of each tower, here only one, at each of its depths, by name."""
    return {"image": encoder.depths(unit(batch["image"]))}


def features(encoder: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The deepest features (N, D) alone, as fine-tuning needs them."""
    return encoder(unit(batch["image"]))


def distorted(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with a view of each picture, for measures that compare views: SimCLR's, as published."""
    return {**batch, "image": simclr_view(unit(batch["image"]))}


def partners(towers: dict[str, dict[str, Tensor]], columns: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What evaluation looks for in what: the same concept, drawn by another vendor, where the data tells.

    Pictures (N,) look through all others, but those of their own concept and vendor. Features are the deepest.
    """
    if not set(other_columns) <= columns.keys():
        return {}
    *_, h = towers["image"].values()  # (N, D)
    concept, vendor = (columns[name].unique(return_inverse=True)[1] for name in other_columns)
    drawn = torch.zeros(int(concept.max()) + 1, int(vendor.max()) + 1, dtype=torch.bool, device=h.device)
    drawn[concept, vendor] = True
    asked = (drawn.sum(1) > 1)[concept]  # some other vendor has it too
    if not asked.any():
        return {}
    query = {"queries": h[asked], "gallery": h, "wanted": concept[asked], "names": concept}
    return {"same concept, another vendor": {**query, "beyond": (vendor[asked], vendor)}}


def unit(x: Tensor) -> Tensor:
    """uint8 in 0..255 to float32 in [0, 1]; floats pass through."""
    return x if x.is_floating_point() else x.float().div_(255)


# ---- Views: they draw, per picture


def simclr_view(x: Tensor, strength: float = 1.0, scale: tuple[float, float] = (0.08, 1)) -> Tensor:
    """SimCLR's view of a small picture (Appendix A; colour distortion 0.5 and no blur, as for CIFAR-10 in B.9).

    `strength` scales every probability and amplitude: 0 is the picture itself, 1 the paper's, up to 2 is sensible. What
    would leave its range stays at the end of it. `scale` is the range of the box's area; multi-crop (SwAV, section 3.2)
    has large and small ones.
    """
    x = _crop_and_flip(x, scale, strength)
    amount = 0.4 * strength
    x = jitter(x, amount, amount, amount, hue=amount / 4, p=min(0.8 * strength, 1))
    return grey(x, p=min(0.2 * strength, 1))


def multi_crop(x: Tensor, crops: int, strength: float, border: float) -> tuple[Tensor, Tensor]:
    """Two wide views (2N, 3, H, W), and `crops` near ones at half the size (crops * N, 3, H / 2, W / 2).

    Wide ones cover from a share `border` of the picture's area on, near ones from 0.05 to there. Caron et al. 2020
    (SwAV), section 3.2.
    """
    wide = simclr_view(x.repeat(2, 1, 1, 1), strength, scale=(border, 1))
    near = simclr_view(x.repeat(crops, 1, 1, 1), strength, scale=(0.05, border))
    return wide, F.avg_pool2d(near, 2)


def light_view(x: Tensor, strength: float = 1.0) -> Tensor:
    """Crop and flip only, as supervised learning and MAE (section 4) use them. `strength` as in `simclr_view`."""
    return _crop_and_flip(x, (0.2, 1), strength)


def _crop_and_flip(x: Tensor, scale: tuple[float, float], strength: float) -> Tensor:
    if strength == 0:
        return x  # bit for bit, which resampling is not at every size
    return crop(
        x,
        scale=tuple(max(1 - (1 - end) * strength, SMALLEST_CROP) for end in scale),
        ratio=((3 / 4) ** strength, (4 / 3) ** strength),
        flip=min(0.5 * strength, 0.5),  # flipping more than half of them would be less random, not more
    )


def crop(
    x: Tensor, scale: tuple[float, float] = (0.08, 1), ratio: tuple[float, float] = (3 / 4, 4 / 3), flip: float = 0
) -> Tensor:
    """A box of random area (`scale`, of the whole) and aspect ratio, mirrored with probability `flip`, at full size.

    The boxes are those of torchvision's RandomResizedCrop: whole pixels, and one that does not fit is drawn again.
    Departs: all tries are drawn at once, and `ratio` is relative to the picture's own, so that 1 never distorts.
    """
    mirrored = torch.rand(len(x), device=x.device) < flip
    return resample(x, *draw_boxes(x, scale, ratio), mirrored)


def draw_boxes(x: Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> tuple[Tensor, ...]:
    """Top, left, height and width in pixels of a random box in each picture, each (N,) of whole floats."""
    n, _, full_height, full_width = x.shape
    u, v = torch.rand(2, TRIES + 1, n, device=x.device)
    area = u * (scale[1] - scale[0]) + scale[0]
    root = (v * math.log(ratio[1] / ratio[0]) + math.log(ratio[0])).div_(2).exp_()  # of the aspect ratio
    height = (area.sqrt() / root * full_height).round_()
    width = (area.sqrt() * root * full_width).round_()
    height[-1], width[-1] = full_height, full_width  # the last resort always fits

    fits = (height <= full_height) & (width <= full_width)
    first = fits.int().argmax(0, keepdim=True)  # (1, N)
    height, width = height.gather(0, first)[0], width.gather(0, first)[0]
    u, v = torch.rand(2, n, device=x.device)
    return (u * (full_height - height + 1)).floor_(), (v * (full_width - width + 1)).floor_(), height, width


def flip(x: Tensor, p: float = 0.5) -> Tensor:
    """Left becomes right with probability `p`. Beside a crop, let the crop do it: one resampling does both."""
    return _sometimes(x, x.flip(3), p)


def jitter(x: Tensor, brightness: float, contrast: float, saturation: float, hue: float, p: float = 1) -> Tensor:
    """With probability `p`, factors from [1 - amount, 1 + amount] (not below 0), and a hue shift from [-hue, hue].

    Departs: torchvision draws the order; here it is brightness, contrast, saturation, hue.
    """
    y = adjust_brightness(x, _uniform(x, max(1 - brightness, 0), 1 + brightness))
    y = adjust_contrast(y, _uniform(x, max(1 - contrast, 0), 1 + contrast))
    y = adjust_saturation(y, _uniform(x, max(1 - saturation, 0), 1 + saturation))
    y = adjust_hue(y, _uniform(x, -hue, hue))
    return _sometimes(x, y, p)


def grey(x: Tensor, p: float) -> Tensor:
    """Loses its colour with probability `p`."""
    return _sometimes(x, luma(x), p)


def blur(x: Tensor, p: float, sigma: tuple[float, float] = (0.1, 2.0)) -> Tensor:
    """With probability `p`, a Gaussian of random width `sigma` (pixels), over a tenth of the side as in SimCLR."""
    taps = max(3, min(x.shape[2:]) // 10 | 1)  # odd
    return _sometimes(x, gaussian_blur(x, _uniform(x, *sigma), taps), p)


def solarize(x: Tensor, p: float) -> Tensor:
    """With probability `p`, what is brighter than a half is inverted (BYOL, Appendix B)."""
    return _sometimes(x, torch.minimum(x, 1 - x), p)


def hidden_squares(x: Tensor, side: int, square: int, share: float) -> Tensor:
    """Which patches of a side x side grid to hide, (N, side * side), true where hidden.

    In every picture the same number of squares of square x square patches: `share` of them, rounded up (SimMIM).
    """
    across = side // square
    order = torch.rand(len(x), across**2, device=x.device).argsort(1)
    hidden = (order < max(1, math.ceil(share * across**2))).unflatten(1, (across, across))
    return hidden.repeat_interleave(square, 1).repeat_interleave(square, 2).flatten(1)


def _uniform(x: Tensor, low: float, high: float) -> Tensor:
    """One number from [low, high] for each picture, (N,)."""
    return torch.rand(len(x), device=x.device) * (high - low) + low


def _sometimes(x: Tensor, changed: Tensor, p: float) -> Tensor:
    """`changed` with probability `p`, drawn per picture, and otherwise `x`."""
    chosen = torch.rand(len(x), 1, 1, 1, device=x.device) < p
    return torch.where(chosen, changed, x)


# ---- The same at given parameters, (N,) each


def resample(x: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, mirrored: Tensor) -> Tensor:
    """The boxes (in pixels), mirrored where so marked, enlarged to the whole picture: bilinear, no antialiasing.

    As in torchvision's `resized_crop`, nothing outside a box is looked at.
    """
    rows, cols = _centres(top, height, x.shape[2]), _centres(left, width, x.shape[3])  # (N, H), (N, W)
    cols = torch.where(mirrored[:, None], cols.flip(1), cols)
    grid = torch.stack(torch.broadcast_tensors(cols[:, None, :], rows[:, :, None]), dim=-1)  # (N, H, W, 2)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _centres(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Where along an axis `size` samples of [start, start + length) lie, (N, size), in grid_sample's [-1, 1]."""
    start, length = start[:, None], length[:, None]
    pixel = (torch.arange(size, device=start.device) + 0.5) / size * length - 0.5
    pixel = torch.minimum(pixel.clamp_(min=0), length - 1) + start
    return (pixel + 0.5) * (2 / size) - 1


def rotate90(x: Tensor, k: Tensor) -> Tensor:
    """Square pictures turned anticlockwise by `k` quarters, k int64 (N,) in 0..3."""
    turned = torch.stack([x.rot90(quarters, (2, 3)) for quarters in range(4)])  # (4, N, 3, H, H)
    return turned[k, torch.arange(len(x), device=x.device)]


def luma(x: Tensor) -> Tensor:
    """The grey picture (N, 1, H, W): ITU-R 601 weights, rounded as in torchvision and PIL."""
    r, g, b = x.split(1, dim=1)
    return (r * 0.2989).add_(g, alpha=0.587).add_(b, alpha=0.114)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """0 is black, 1 the picture."""
    return (x * factor[:, None, None, None]).clamp_(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """0 is the picture's mean grey everywhere, 1 the picture."""
    return _blend(x, luma(x.mean((2, 3), keepdim=True)), factor)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """0 is the grey picture, 1 the picture."""
    return _blend(x, luma(x), factor)


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    factor = factor[:, None, None, None]
    return (x * factor).add_(other * (1 - factor)).clamp_(0, 1)


def adjust_hue(x: Tensor, shift: Tensor) -> Tensor:
    """The hue of HSV turned by `shift` in [-0.5, 0.5] of the circle; its value and saturation stay.

    Hue runs round a hexagon. In sixths, red at 0, a pixel lies as far from red as chroma - r + g + b (each above the
    smallest of the three), on green's side where g > b. Turned to h in [-6, 6], a colour is as strong as its distance
    from its own corner says: red's is 3 - ||h| - 3|, green's is two sixths on, blue's two back.
    """
    r, g, b = x.unbind(1)  # (N, H, W)
    largest, smallest = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    chroma = largest - smallest
    h = torch.copysign((chroma - smallest).sub_(r).add_(g).add_(b), g - b)
    h.div_(chroma.clamp(min=1e-8)).add_(6 * shift[:, None, None])  # grey has no hue: 0 / 1e-8, and no chroma to show it
    red = h.abs().sub_(3).abs_().sub_(1)
    green = 2 - (h + 1).abs_().sub_(3).abs_()
    blue = 2 - (h - 1).abs_().sub_(3).abs_()
    share = torch.stack((red, green, blue), dim=1).clamp_(0, 1)  # of the chroma, (N, 3, H, W)
    return share.mul_(chroma[:, None]).add_(smallest[:, None])


def gaussian_blur(x: Tensor, sigma: Tensor, taps: int) -> Tensor:
    """Separable blur of width `sigma` in pixels with an odd number of `taps`; the border is reflected."""
    height, width = x.shape[2:]
    offset = torch.arange(taps, device=x.device)[:, None] - taps // 2
    weights = torch.softmax(-0.5 * (offset / sigma) ** 2, dim=0)[..., None, None, None]  # (taps, N, 1, 1, 1)
    x = F.pad(x, [taps // 2] * 4, mode="reflect")
    x = _weighted_sum(weights, [x[:, :, :, i : i + width] for i in range(taps)])
    x = _weighted_sum(weights, [x[:, :, i : i + height] for i in range(taps)])
    return x.clamp_(max=1)  # weights sum to one only up to rounding


def _weighted_sum(weights: Tensor, terms: list[Tensor]) -> Tensor:
    total = weights[0] * terms[0]
    for weight, term in zip(weights[1:], terms[1:], strict=True):
        total.addcmul_(weight, term)
    return total


def cut(x: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """Squares of whole pixels, M of each picture: `top` and `left` int64 (N, M) -> (N, M, 3, side, side)."""
    picture, step = torch.arange(len(x), device=x.device), torch.arange(side, device=x.device)
    rows = top[:, :, None, None] + step[:, None]  # (N, M, side, 1)
    cols = left[:, :, None, None] + step  # (N, M, 1, side)
    return x.permute(0, 2, 3, 1)[picture[:, None, None, None], rows, cols].movedim(4, 2)


@in_float32
def affine(x: Tensor, matrix: Tensor) -> Tensor:
    """The picture at `matrix` (N, 2, 3) times (x, y, 1), where x and y run from -1 to 1: bilinear, edges repeated."""
    grid = F.affine_grid(matrix, x.shape, align_corners=False)  # (N, H, W, 2)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


XYZ = (  # of linear sRGB's red, green and blue (IEC 61966-2-1)
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)


def lab(x: Tensor) -> Tensor:
    """sRGB to CIE 1976 L*a*b* with its white D65: L in 0..100, a from green to red, b from blue to yellow."""
    r, g, b = torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4).unbind(1)  # linear, (N, H, W)
    t = torch.stack([(wr * r + wg * g + wb * b) / (wr + wg + wb) for wr, wg, wb in XYZ])  # 1 where white
    x, y, z = torch.where(t > (6 / 29) ** 3, t ** (1 / 3), t * (29 / 6) ** 2 / 3 + 4 / 29)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def rgb(x: Tensor) -> Tensor:
    """The inverse of `lab`. Colours that sRGB lacks lie outside [0, 1], or at 0."""
    lightness, a, b = x.unbind(1)
    y = (lightness + 16) / 116
    t = torch.stack([y + a / 500, y, y - b / 200])  # (3, N, H, W)
    t = torch.where(t > 6 / 29, t**3, (t - 4 / 29) * 3 * (6 / 29) ** 2)
    white = torch.tensor(XYZ, dtype=x.dtype, device=x.device)  # (3, 3)
    linear = torch.einsum("ij,jnhw->nihw", torch.linalg.inv(white / white.sum(1, keepdim=True)), t).clamp(min=0)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
