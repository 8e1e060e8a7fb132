"""The views of pictures: each equals torchvision's at equal parameters, and draws what torchvision draws."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from ssl_methods.modalities import image

CLOSE = {"rtol": 0, "atol": 1e-5}

VIEWS = {
    "simclr_view": image.simclr_view,
    "light_view": image.light_view,
    "crop": lambda x: image.crop(x, flip=0.5),
    "flip": image.flip,
    "jitter": lambda x: image.jitter(x, 0.8, 0.8, 0.8, 0.2),
    "grey": lambda x: image.grey(x, p=0.5),
    "blur": lambda x: image.blur(x, p=0.5),
    "solarize": lambda x: image.solarize(x, p=0.5),
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def pixels() -> Tensor:
    """Noise, and what is special to an operation: black, white, grey, pure colours, equal channels, (11, 3, 24, 24)."""
    x = torch.rand(11, 3, 24, 24)
    x[0], x[1], x[2] = 0, 1, 0.3
    x[3] = x[3, :1]  # every pixel another grey
    x[4] = (x[4] > 0.5).float()  # the corners of the colour cube
    x[5, 0], x[6, 1], x[7, 2] = x[5, 1], x[6, 2], x[7, 0]
    return x


def each(operation, x: Tensor, *parameters: Tensor) -> Tensor:
    """torchvision's operation on each picture with its own parameters."""
    return torch.stack([operation(p, *row) for p, *row in zip(x, *(q.tolist() for q in parameters), strict=True)])


# ---- At equal parameters


@pytest.mark.parametrize("shape", [(32, 32), (28, 28), (24, 40)])
def test_resample_is_resized_crop_and_flip(shape):
    height, width = shape
    boxes = torch.tensor(  # top, left, height, width: the whole, one pixel, one row, one column, corners, the middle
        [
            (0, 0, height, width),
            (5, 7, 1, 1),
            (height - 1, 0, 1, width),
            (0, width - 1, height, 1),
            (0, 0, 9, 11),
            (height - 9, width - 11, 9, 11),
            (0, width - 3, 20, 3),
            (4, 6, 13, 17),
        ]
    ).repeat(2, 1)
    mirrored = torch.arange(16) >= 8
    x = torch.rand(16, 3, height, width)

    def expected(x, top, left, h, w, mirrored):
        cropped = reference.resized_crop(x, top, left, h, w, size=list(shape), antialias=False)
        return reference.horizontal_flip(cropped) if mirrored else cropped

    actual = image.resample(x, *boxes.float().unbind(1), mirrored)
    torch.testing.assert_close(actual, each(expected, x, *boxes.unbind(1), mirrored), **CLOSE)


FACTORS = torch.tensor([0.0, 1.0, 2.0]).repeat_interleave(11)
SHIFTS = torch.tensor([-0.5, -0.1, 0.0, 1 / 6, 0.5]).repeat_interleave(11)


@pytest.mark.parametrize("name", ["adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue"])
def test_adjusting_a_colour_is_torchvisions(name, pixels):
    edges, low, high = (SHIFTS, -0.5, 0.5) if name == "adjust_hue" else (FACTORS, 0.0, 2.0)
    parameter = torch.cat([edges, torch.empty(22).uniform_(low, high)])
    x = pixels.repeat(len(parameter) // 11, 1, 1, 1)
    actual = getattr(image, name)(x, parameter)
    torch.testing.assert_close(actual, each(getattr(reference, name), x, parameter), **CLOSE)
    assert actual.min() >= 0
    assert actual.max() <= 1


def test_grey_flip_and_solarize_are_torchvisions(pixels):
    torch.testing.assert_close(image.grey(pixels, p=1), reference.rgb_to_grayscale(pixels, 3), **CLOSE)
    assert image.flip(pixels, p=1).equal(reference.horizontal_flip(pixels))
    assert image.solarize(pixels, p=1).equal(reference.solarize(pixels, 0.5))


@pytest.mark.parametrize("taps", [3, 9])
def test_gaussian_blur_is_torchvisions(taps, pixels):
    sigma = torch.linspace(0.1, 2, 11)
    expected = each(lambda x, s: reference.gaussian_blur(x, [taps, taps], [s, s]), pixels, sigma)
    torch.testing.assert_close(image.gaussian_blur(pixels, sigma, taps), expected, **CLOSE)


def test_blur_reaches_a_tenth_of_the_side():
    for size, reach in ((32, 1), (96, 4), (224, 11)):
        x = torch.zeros(1, 3, size, size)
        x[:, :, size // 2, size // 2] = 1
        spread = image.blur(x, p=1, sigma=(2, 2))[0, 0, size // 2].nonzero()
        assert (spread.min(), spread.max()) == (size // 2 - reach, size // 2 + reach)


def test_rotate90_turns_each_picture_by_its_own_quarters(pixels):
    quarters = torch.arange(11) % 4
    expected = each(lambda x, k: x.rot90(k, (1, 2)), pixels, quarters)
    assert image.rotate90(pixels, quarters).equal(expected)


def test_unit():
    assert image.unit(torch.tensor([0, 51, 255], dtype=torch.uint8)).equal(torch.tensor([0, 0.2, 1]))
    x = torch.rand(3)
    assert image.unit(x) is x


def test_embed_gives_the_encoder_unit_pictures():
    encoder = SimpleNamespace(depths=lambda x: [x.amax((2, 3)), x.mean((2, 3))])
    ((tower, features),) = image.embed(encoder, {"image": torch.full((2, 3, 4, 4), 255).byte()}).items()
    assert tower in image.columns
    assert [depth.equal(torch.ones(2, 3)) for depth in features] == [True, True]


# ---- What is drawn


def test_boxes_are_drawn_as_torchvision_draws_them():
    """Areas, aspect ratios and positions have the distribution of RandomResizedCrop's."""
    n, size = 4000, 64
    theirs = v2.RandomResizedCrop(size)
    picture = [torch.empty(3, size, size)]
    expected = torch.tensor([list(theirs.make_params(picture).values()) for _ in range(n)])
    actual = torch.stack(image.draw_boxes(torch.empty(n, 3, size, size), (0.08, 1), (3 / 4, 4 / 3)), 1)

    def described(boxes: Tensor) -> list[Tensor]:
        top, left, height, width = boxes.double().unbind(1)
        return [height * width, width / height, top, left, top + height, left + width]

    for a, b in zip(described(actual), described(expected), strict=True):
        assert ks_2samp(a, b, method="asymp").pvalue > 0.001


def test_a_box_that_cannot_fit_is_the_whole_picture():
    x = torch.empty(100, 3, 24, 40)
    top, left, height, width = image.draw_boxes(x, scale=(1, 1), ratio=(1.2, 1.3))
    assert torch.stack([top, left, height - 24, width - 40]).count_nonzero() == 0


@pytest.mark.parametrize("shape", [(32, 32), (28, 28), (96, 96), (24, 40)])
@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_again_a_picture(name, shape):
    x = torch.rand(16, 3, *shape)
    x[:8] = x[:8].round()
    before = x.clone()
    y = VIEWS[name](x)
    assert (y.shape, y.dtype) == (x.shape, torch.float32)
    assert y.min() >= 0
    assert y.max() <= 1
    assert x.equal(before)


@pytest.mark.parametrize("name", VIEWS)
def test_every_picture_draws_its_own(name):
    x = torch.rand(1, 3, 24, 24).repeat(64, 1, 1, 1)
    outcomes = len(VIEWS[name](x).unique(dim=0))
    assert outcomes == 2 if name in {"flip", "grey", "solarize"} else outcomes > 20


@pytest.mark.parametrize("name", VIEWS)
def test_the_seed_decides(name):
    x = torch.rand(64, 3, 24, 24)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return VIEWS[name](x)

    assert drawn(1).equal(drawn(1))
    assert not drawn(1).equal(drawn(2))


@pytest.mark.parametrize(
    "view",
    [
        lambda x, p: image.crop(x, scale=(1, 1), ratio=(1, 1), flip=p),
        lambda x, p: image.jitter(x, 0.4, 0.4, 0.4, 0.1, p),
        image.flip,
        image.grey,
        image.blur,
        image.solarize,
    ],
    ids=["crop's flip", "jitter", "flip", "grey", "blur", "solarize"],
)
def test_a_probability_is_the_share_that_changes(view):
    x = torch.rand(2000, 3, 8, 8)
    changed = (view(x, 0.3) - x).abs().amax((1, 2, 3)) > 1e-5
    assert changed.float().mean().item() == pytest.approx(0.3, abs=0.04)  # four standard errors
    assert view(x, 0).equal(x)


def test_jitter_draws_from_the_whole_of_each_range():
    """On a picture of one colour, each amount alone shows what was drawn."""
    colour = torch.tensor([0.6, 0.4, 0.4])[None, :, None, None].repeat(1000, 1, 8, 8)
    drawn = {
        "brightness": image.jitter(colour, 0.4, 0, 0, 0)[:, 0, 0, 0] / 0.6,
        "saturation": image.jitter(colour, 0, 0, 0.4, 0)[:, :2, 0, 0].diff(dim=1).neg() / 0.2,
    }
    half_black = colour.clone()
    half_black[:, :, :4] = 0
    drawn["contrast"] = image.jitter(half_black, 0, 0.4, 0, 0)[:, :2, -1, 0].diff(dim=1).neg() / 0.2
    for factor in drawn.values():
        assert factor.min().item() == pytest.approx(0.6, abs=0.01)
        assert factor.max().item() == pytest.approx(1.4, abs=0.01)

    _, green, blue = image.jitter(colour, 0, 0, 0, 0.1)[:, :, 0, 0].unbind(1)
    shift = (green - blue) / 0.2 / 6  # red towards yellow or magenta
    assert shift.min().item() == pytest.approx(-0.1, abs=0.001)
    assert shift.max().item() == pytest.approx(0.1, abs=0.001)


# ---- Strength


@pytest.mark.parametrize("view", [image.simclr_view, image.light_view])
def test_more_strength_takes_a_view_further_from_the_picture(view, pictures):
    x = image.unit(pictures)

    def distance(strength: float) -> float:
        torch.manual_seed(0)
        return (view(x, strength) - x).abs().mean().item()

    distances = [distance(s) for s in (0, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2)]
    assert distances[0] == 0
    assert all(a < b for a, b in pairwise(distances))


@pytest.mark.parametrize("shape", [(28, 28), (24, 40)])
def test_without_strength_a_view_is_the_picture_bit_for_bit(shape):
    x = torch.rand(16, 3, *shape)
    assert image.simclr_view(x, 0).equal(x)
    assert image.light_view(x, 0).equal(x)


@pytest.mark.parametrize(
    ("strength", "simclr_area", "light_area", "aspect", "flip", "amount", "jitter", "grey"),
    [
        (0.5, 0.54, 0.6, 3**0.5 / 2, 0.25, 0.2, 0.4, 0.1),
        (1, 0.08, 0.2, 3 / 4, 0.5, 0.4, 0.8, 0.2),  # SimCLR: Appendix A, and B.9 for colour; MAE: section 4
        (2, 0.04, 0.04, 9 / 16, 0.5, 0.8, 1, 0.4),
    ],
)
def test_what_strength_scales(monkeypatch, strength, simclr_area, light_area, aspect, flip, amount, jitter, grey):
    calls = []
    for name in ("crop", "jitter", "grey"):
        monkeypatch.setattr(image, name, lambda x, *args, name=name, **kwargs: calls.append((name, args, kwargs)) or x)
    x = torch.rand(1, 3, 8, 8)
    image.simclr_view(x, strength)
    image.light_view(x, strength)
    ratio = (pytest.approx(aspect), pytest.approx(1 / aspect))
    assert calls == [
        ("crop", (), {"scale": (pytest.approx(simclr_area), 1), "ratio": ratio, "flip": flip}),
        ("jitter", (amount, amount, amount), {"hue": amount / 4, "p": jitter}),
        ("grey", (), {"p": grey}),
        ("crop", (), {"scale": (pytest.approx(light_area), 1), "ratio": ratio, "flip": flip}),
    ]


# ---- On any device


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_never_waits_for_the_device(name):
    """On the meta device there are no values to wait for, so a hidden synchronisation or stray CPU tensor raises."""
    y = VIEWS[name](torch.empty(4, 3, 32, 32, device="meta"))
    assert (y.shape, y.device.type) == ((4, 3, 32, 32), "meta")


def test_rotate90_never_waits_for_the_device():
    turned = image.rotate90(torch.empty(4, 3, 8, 8, device="meta"), torch.randint(4, (4,), device="meta"))
    assert turned.shape == (4, 3, 8, 8)


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_keeps_its_precision_under_autocast(name):
    x = torch.rand(8, 3, 32, 32)

    def drawn(lower: bool) -> Tensor:
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            return VIEWS[name](x)

    assert drawn(True).equal(drawn(False))
