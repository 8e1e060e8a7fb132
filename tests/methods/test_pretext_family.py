"""Pretext tasks and baselines: their colours, tiles, grids and losses against slow references, and what they learn.

lightly has none of these losses, so the references are loops, closed forms, scikit-learn and torchvision.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans as SklearnKMeans
from torch import Tensor, nn

from ssl_methods import build_encoder
from ssl_methods.baselines.kmeans import nearest, random_patches, zca
from ssl_methods.encoders.convolutional import ResNet
from ssl_methods.encoders.shallow import Dictionary, Pixels
from ssl_methods.modalities import image
from ssl_methods.parts.heads import shapes_of_maps
from ssl_methods.pretext.colorization import Colorization, colour_bins, rarity, rebalanced, soft_encode
from ssl_methods.pretext.geometric import TRANSFORMATIONS, WINDOW, Geometric
from ssl_methods.pretext.inpainting import Inpainting, square, weighted_error
from ssl_methods.pretext.jigsaw import distant_orders, normalise, tiles_of
from ssl_methods.pretext.super_resolution import SuperResolution, lose_detail
from stages.measures.frozen import load
from stages.training.loop import Trained, build_method
from stages.training.optimizers import optimizer_of
from stages.training.record import write
from tests.methods.test_losses import same_with_gradients
from tests.methods.test_methods import FACTS, TRAINING, batches, pretrained, small, whole_step


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def scenes() -> Tensor:
    """Pictures of one scene without any symmetry, each with its own noise, (256, 3, 16, 16) uint8."""
    generator = torch.Generator().manual_seed(0)
    scene = F.interpolate(torch.rand(1, 3, 8, 8, generator=generator), scale_factor=2, mode="bilinear")
    noise = torch.randn(256, 3, 16, 16, generator=generator) * 0.05
    return ((scene + noise).clamp(0, 1) * 255).to(torch.uint8)


class Recorder(nn.Module):
    """An encoder that keeps what it is shown."""

    dim = 8

    def forward(self, x: Tensor) -> Tensor:
        self.shown = x
        return x.flatten(1)[:, : self.dim]


# ---- What they share of images


def colours(*rgb: tuple[float, float, float]) -> Tensor:
    return torch.tensor(rgb, dtype=torch.float32)[:, :, None, None]


def test_lab_of_the_corners_of_the_colour_cube():
    x = colours((1, 1, 1), (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    published = colours((100, 0, 0), (0, 0, 0), (53.24, 80.09, 67.20), (87.73, -86.18, 83.18), (32.30, 79.19, -107.86))
    torch.testing.assert_close(image.lab(x), published, rtol=0, atol=0.02)


def test_lab_of_grey_is_its_lightness_alone():
    grey = torch.linspace(0, 1, 101)
    luminance = torch.tensor([g / 12.92 if g <= 0.04045 else ((g + 0.055) / 1.055) ** 2.4 for g in grey.tolist()])
    lightness = torch.where(luminance > (6 / 29) ** 3, 116 * luminance ** (1 / 3) - 16, luminance * (29 / 3) ** 3)
    lab = image.lab(grey[:, None, None, None].expand(-1, 3, 1, 1))[:, :, 0, 0]
    torch.testing.assert_close(lab[:, 0], lightness, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(lab[:, 1:], torch.zeros(101, 2), rtol=0, atol=1e-3)


def from_lab(lab: Tensor) -> Tensor:
    """Back to sRGB, by the inverse matrix and the inverse of each curve: (M, 3) -> (M, 3)."""
    y = (lab[:, 0] + 16) / 116
    t = torch.stack([y + lab[:, 1] / 500, y, y - lab[:, 2] / 200], 1)
    xyz = torch.where(t > 6 / 29, t**3, 3 * (6 / 29) ** 2 * (t - 4 / 29))
    matrix = torch.tensor(image.XYZ, dtype=torch.float64)
    linear = (xyz * matrix.sum(1)) @ torch.linalg.inv(matrix).T
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=1e-9) ** (1 / 2.4) - 0.055)


def test_lab_can_be_undone():
    x = torch.rand(2, 3, 5, 7, dtype=torch.float64)
    x[0, :, 0] /= 50  # dark, where the curves are straight
    lab = image.lab(x)
    torch.testing.assert_close(
        from_lab(lab.movedim(1, 3).flatten(0, 2)), x.movedim(1, 3).flatten(0, 2), atol=1e-7, rtol=0
    )
    torch.testing.assert_close(image.rgb(lab), x, atol=1e-7, rtol=0)


def test_cut_is_slicing():
    x, top, left = torch.rand(3, 3, 9, 11), torch.randint(6, (3, 4)), torch.randint(8, (3, 4))
    squares = image.cut(x, top, left, 4)
    for n, m in itertools.product(range(3), range(4)):
        assert squares[n, m].equal(x[n, :, top[n, m] : top[n, m] + 4, left[n, m] : left[n, m] + 4])


def test_affine_is_torchs_and_stays_exact_under_autocast():
    x, matrix = torch.rand(6, 3, 13, 17), torch.randn(6, 2, 3)
    expected = F.grid_sample(x, F.affine_grid(matrix, x.shape, False), padding_mode="border", align_corners=False)
    torch.testing.assert_close(image.affine(x, matrix), expected, rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert image.affine(x, matrix).equal(image.affine(x, matrix))
        torch.testing.assert_close(image.affine(x, matrix), expected, rtol=0, atol=1e-5)


def test_shapes_of_maps_leaves_the_encoder_alone():
    encoder = ResNet(width=8, blocks=[1, 1, 1], stride=2).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    assert shapes_of_maps(encoder, 16) == [tuple(m.shape[1:3]) for m in encoder.eval().maps(torch.rand(1, 3, 16, 16))]
    assert all(value.equal(before[name]) for name, value in encoder.state_dict().items())


# ---- Jigsaw


@pytest.mark.parametrize("count", [2, 9, 64])
def test_orders_are_distinct_permutations_as_far_apart_as_can_be(count):
    orders = distant_orders(count)
    assert (orders.sort(1).values == torch.arange(9)).all()
    assert len(orders.unique(dim=0)) == count
    distance = (orders[:, None] != orders).sum(2).double().sum() / (count * (count - 1))
    # At each of nine places, n orders share out nine tiles: at best evenly, and then this many pairs agree.
    share, more = divmod(count, 9)
    agreeing = (9 - more) * share * (share - 1) + more * (share + 1) * share
    best = 9 * (1 - agreeing / (count * (count - 1)))
    assert distance.item() == pytest.approx(best, rel=0.002)


def test_orders_are_chosen_greedily_and_not_by_the_runs_seed():
    orders = distant_orders(12)
    others = torch.rand(5000, 9).argsort(1)
    for i in range(1, 12):
        assert (others[:, None] != orders[:i]).sum((1, 2)).max() <= (orders[i] != orders[:i]).sum()
    distant_orders.cache_clear()
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert distant_orders(12).equal(orders)
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("size", [16, 32, 75, 96])
def test_tiles_lie_in_their_cells_with_gaps_between(size):
    where = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
    x = torch.cat([where, where[:1]]).float().expand(200, 3, size, size)  # every pixel says where it is
    order = torch.rand(200, 9).argsort(1)
    tiles = tiles_of(x, order)
    cell, side = size // 3, tiles.shape[-1]
    assert side == int(cell * 64 / 75)
    top, left = tiles[:, :, 0, 0, 0], tiles[:, :, 1, 0, 0]  # (200, 9)
    steps = torch.arange(side)
    assert (tiles[:, :, 0] == top[..., None, None] + steps[:, None]).all()
    assert (tiles[:, :, 1] == left[..., None, None] + steps).all()
    for start, cells in ((top, order // 3), (left, order % 3)):
        inside = start - cell * cells  # the grid's own start, and the gap
        assert inside.min() == 0
        assert inside.max() == size - 3 * cell + cell - side
        within = inside - inside.min(1, keepdim=True).values
        assert within.max() == cell - side  # of one picture, no more than its cell allows


def test_normalised_tiles_tell_neither_brightness_nor_contrast():
    tiles = torch.rand(2, 9, 3, 8, 8)
    z = normalise(tiles)
    torch.testing.assert_close(z.mean((-2, -1)), torch.zeros(2, 9, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std((-2, -1), correction=0), torch.ones(2, 9, 3), rtol=1e-2, atol=0)
    torch.testing.assert_close(normalise(tiles * 0.8 + 0.1), z, rtol=0, atol=5e-3)
    assert normalise(torch.full((1, 9, 3, 8, 8), 0.7)).abs().max() < 1e-3  # a flat tile


def test_a_ramp_of_brightness_does_not_solve_the_puzzle():
    """The shortcut that normalisation closes: all tiles of a ramp are alike."""
    ramp = torch.linspace(0, 1, 32)[:, None].expand(4, 3, 32, 32)
    z = normalise(tiles_of(ramp, torch.arange(9).expand(4, 9)))
    torch.testing.assert_close(z, z[:1, :1].expand_as(z), rtol=0, atol=1e-3)


def test_jigsaw_learns_where_tiles_belong(params, scenes, tmp_path):
    _, curve = pretrained(scenes, params, "jigsaw", tmp_path, 80, permutations=20, side=8)
    assert curve[-1]["accuracy"] > 0.7  # one in 20 by chance


def test_jigsaw_cannot_solve_a_ramp(params, tmp_path):
    ramp = (torch.linspace(0, 255, 16)[:, None] * torch.rand(256, 1, 1, 1)).expand(256, 3, 16, 16).to(torch.uint8)
    _, curve = pretrained(ramp, params, "jigsaw", tmp_path, 80, permutations=20, side=8)
    assert sum(point["accuracy"] for point in curve[-20:]) / 20 < 0.15


# ---- Geometric


@pytest.fixture
def matrices() -> Tensor:
    return Geometric(Recorder()).matrices


def test_transformations_are_what_their_matrices_say(matrices):
    """Of a picture that says where it is, every transformation is its own matrix times the place."""
    place = (torch.arange(32) + 0.5) / 16 - 1
    y, x = torch.meshgrid(place, place, indexing="ij")
    here = torch.stack([x, y])
    drawn = image.affine(here.expand(len(matrices), 2, 32, 32), matrices)
    expected = torch.einsum("kij,jhw->kihw", WINDOW * torch.tensor(TRANSFORMATIONS), torch.stack([x, y, x * 0 + 1]))
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-5)


def test_no_transformation_looks_beyond_the_border(matrices):
    for size in (28, 32, 96):
        place = (torch.arange(size) + 0.5) * 2 / size - 1
        y, x = torch.meshgrid(place, place, indexing="ij")
        looked = torch.einsum("kij,jhw->kihw", matrices, torch.stack([x, y, torch.ones_like(x)]))
        assert looked.abs().max() <= place[-1] + 1e-6  # the centre of the last pixel


def test_flips_and_turns_move_pixels_and_change_none(matrices):
    """So resampling does not tell them apart."""
    x = torch.rand(1, 3, 32, 32)
    drawn = image.affine(x.expand(len(matrices), -1, -1, -1), matrices)
    identity = drawn[0]
    moved = [identity.flip(2), identity.flip(1), *(identity.rot90(k, (1, 2)) for k in (1, 2, 3))]
    for actual, expected in zip(drawn[1:6], moved, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert all((a - b).abs().max() > 0.1 for a, b in itertools.combinations(drawn, 2))


def test_geometric_learns_what_was_done(params, scenes, tmp_path):
    _, curve = pretrained(scenes, params, "geometric", tmp_path, 100)
    assert curve[-1]["accuracy"] > 0.8  # one in 14 by chance


# ---- Colorization


def test_colour_bins_are_those_that_srgb_reaches():
    """Found the other way round: which squares of side 10 hold a colour that sRGB has, at any lightness."""
    bins = colour_bins()
    grid, inside = torch.arange(-110.0, 111, 10), torch.linspace(-4.9, 4.9, 9)
    centres = torch.cartesian_prod(grid, grid)  # (G, 2)
    colour = centres[:, None] + torch.cartesian_prod(inside, inside)  # (G, 81, 2)
    lightness = torch.linspace(1, 99, 50)[:, None, None, None].expand(-1, *colour.shape[:2], 1)
    lab = torch.cat([lightness, colour.expand(50, -1, -1, -1)], dim=3).double()
    rgb = from_lab(lab.flatten(0, 2)).unflatten(0, lab.shape[:3])
    reached = ((rgb >= 0) & (rgb <= 1)).all(3).any(2).any(0)  # (G,)
    found, known = ({tuple(c.int().tolist()) for c in b} for b in (centres[reached], bins))
    assert len(known) == len(bins)
    assert len(known ^ found) < 0.03 * len(known)  # corners that fall between the colours that either has tried


def test_soft_encoding_is_a_gaussian_over_the_five_nearest():
    bins, colour = colour_bins(), torch.rand(20, 2) * 80 - 40
    z = soft_encode(colour, bins)
    for row, c in zip(z, colour, strict=True):
        distance = torch.tensor([math.dist(c.tolist(), q.tolist()) for q in bins])
        five = distance.argsort()[:5]
        weights = (-(distance[five] ** 2) / (2 * 5**2)).exp()
        torch.testing.assert_close(row, torch.zeros(len(bins)).scatter(0, five, weights / weights.sum()))


def test_soft_encoding_of_a_bins_own_colour_has_its_closed_form():
    bins = colour_bins()
    z = soft_encode(torch.zeros(1, 2), bins)[0]
    weights = z[z > 0].sort(descending=True).values
    aside = math.exp(-(10**2) / (2 * 5**2))
    torch.testing.assert_close(weights, torch.tensor([1, aside, aside, aside, aside]) / (1 + 4 * aside))


@pytest.mark.parametrize("even", [0.0, 0.5, 1.0])
def test_rarity_is_equation_4(even):
    p = torch.rand(7).softmax(0)
    slow = [1 / ((1 - even) * value + even / 7) for value in p.tolist()]
    scale = sum(value * w for value, w in zip(p.tolist(), slow, strict=True))
    w = rarity(p, even)
    torch.testing.assert_close(w, torch.tensor(slow) / scale)
    assert (p * w).sum().item() == pytest.approx(1)


def test_rebalanced_is_equation_2_with_its_gradient():
    logits, z, w = torch.randn(6, 5, requires_grad=True), torch.rand(6, 5).softmax(1), torch.rand(5)
    slow = torch.zeros(())
    for m in range(6):
        log_p = [logits[m, q] - logits[m].exp().sum().log() for q in range(5)]
        slow = slow - w[int(z[m].argmax())] * sum(z[m, q] * log_p[q] for q in range(5))
    same_with_gradients(rebalanced(logits, z, w), slow / 6, logits)
    even = rebalanced(torch.zeros(6, 5), z, torch.ones(5))
    assert even.item() == pytest.approx(math.log(5), rel=1e-6)


def test_colorization_is_shown_no_colour(pictures):
    method, shown = Colorization(ResNet(width=8, blocks=[1, 1]), size=16, strength=0.0), []
    maps = method.encoder.maps
    method.encoder.maps = lambda x: shown.append(x) or maps(x)
    method({"image": pictures[:8]})
    lightness = image.lab(pictures[:8].float() / 255)[:, :1] / 100
    torch.testing.assert_close(shown[0], lightness.expand(-1, 3, -1, -1))


def test_colorization_counts_every_pixel_once(pictures):
    method = Colorization(ResNet(width=8, blocks=[1, 1]), size=16)
    start = method.seen.sum().item()
    method({"image": pictures[:8]})
    assert method.seen.sum().item() == pytest.approx(start + 8 * 4 * 4, rel=1e-6)


def test_colorization_learns_which_shape_has_which_colour(params, tmp_path):
    """Rows are orange and columns are blue; both are as light."""
    stripes = torch.tensor([0.4, 1.0]).repeat(8).expand(256, 1, 16, 16)  # columns
    phase, flipped = torch.rand(256, 1, 1, 1) < 0.5, torch.rand(256, 1, 1, 1) < 0.5
    stripes = torch.where(phase, stripes, stripes.flip(3))
    colour = torch.where(
        flipped, torch.tensor([230.0, 120, 20])[:, None, None], torch.tensor([40.0, 140, 250])[:, None, None]
    )
    x = torch.where(flipped, stripes.mT, stripes) * colour
    _, curve = pretrained(x.to(torch.uint8), params, "colorization", tmp_path, 60, strength=0.0)
    assert curve[0]["accuracy"] < 0.6
    assert curve[-1]["accuracy"] > 0.9


# ---- Inpainting and super-resolution


def test_squares_lie_where_they_should():
    corner = torch.tensor([[[2], [0]], [[3], [5]]])  # top, left of two squares
    drawn = square(corner, 3, 8)
    expected = torch.zeros(2, 1, 8, 8)
    expected[0, :, 2:5, 3:6] = 1
    expected[1, :, 0:3, 5:8] = 1
    assert drawn.equal(expected)


def test_weighted_error_is_its_loop_with_its_gradient():
    drawn, x, weight = torch.randn(2, 3, 4, 4, requires_grad=True), torch.rand(2, 3, 4, 4), torch.rand(2, 1, 4, 4)
    weight[:, :, 0] = 0
    total = norm = torch.zeros(())
    for n, i, j in itertools.product(range(2), range(4), range(4)):
        total = total + weight[n, 0, i, j] * sum((drawn[n, c, i, j] - x[n, c, i, j]) ** 2 for c in range(3)) / 3
        norm = norm + weight[n, 0, i, j]
    same_with_gradients(weighted_error(drawn, x, weight), total / norm, drawn)
    gradient = torch.autograd.grad(weighted_error(drawn, x, weight), drawn)[0]
    assert (gradient[:, :, 0] == 0).all()


def test_inpainting_hides_a_quarter_and_weighs_its_margin_ten_times(monkeypatch):
    method, x, used = Inpainting(Recorder(), size=32, strength=0.0), torch.rand(64, 3, 32, 32), {}

    def recording(drawn, target, weight):
        used.update(target=target, weight=weight)
        return weighted_error(drawn, target, weight)

    monkeypatch.setattr("ssl_methods.pretext.inpainting.weighted_error", recording)
    method({"image": x})
    hidden = (used["weight"] == 1).expand_as(x)
    assert (hidden.sum((1, 2, 3)) == 3 * 16 * 16).all()
    assert ((used["weight"] == 10).sum((1, 2, 3)) == 20 * 20 - 16 * 16).all()
    assert (method.encoder.shown[hidden] == 0.5).all()  # nothing of what must be drawn
    assert method.encoder.shown[~hidden].equal(x[~hidden])
    assert used["target"].equal(x)
    assert len((used["weight"] == 1).flatten(1).int().argmax(1).unique()) > 20  # anywhere


def test_a_picture_that_is_all_hole_is_refused():
    with pytest.raises(ValueError, match="more than the whole picture"):
        Inpainting(Recorder(), size=32, missing=0.95)


def test_detail_is_lost_and_nothing_else():
    x = torch.rand(4, 3, 32, 32)
    assert lose_detail(x, 1).equal(x)
    torch.testing.assert_close(lose_detail(torch.full_like(x, 0.3), 4), torch.full_like(x, 0.3))
    inside = (
        x.unflatten(3, (8, 4)).unflatten(2, (8, 4)).permute(0, 1, 2, 4, 3, 5).flatten(4)
    )  # the pixels of each block
    mixed = inside[..., torch.randperm(16)].unflatten(4, (4, 4)).permute(0, 1, 2, 4, 3, 5).reshape(x.shape)
    assert (mixed - x).abs().max() > 0.5
    torch.testing.assert_close(lose_detail(mixed, 4), lose_detail(x, 4), rtol=0, atol=1e-6)


def test_super_resolution_shows_the_small_picture_alone():
    method, x = SuperResolution(Recorder(), size=32, strength=0.0), torch.rand(4, 3, 32, 32)
    nn.init.zeros_(method.decoder.last.weight)
    nn.init.constant_(method.decoder.last.bias, 0.5)
    loss, _ = method({"image": x})
    assert method.encoder.shown.equal(lose_detail(x, 4))
    assert loss.item() == pytest.approx((x - 0.5).square().mean().item())


@pytest.mark.parametrize("name", ["inpainting", "super_resolution"])
def test_what_is_drawn_is_better_than_the_mean_picture(name, params, pictures, tmp_path):
    _, curve = pretrained(pictures, params, name, tmp_path, 240, lr=1e-2, strength=0.0)
    x = pictures.float() / 255
    corner = torch.randint(1, 8, (2, 256, 1))
    weight = {"inpainting": 10 * square(corner - 1, 10, 16) - 9 * square(corner, 8, 16)}.get(
        name, torch.ones(256, 1, 1, 1)
    )
    mean_picture = weighted_error(x.mean(0, keepdim=True).expand_as(x), x, weight.expand(-1, -1, 16, 16))
    assert sum(point["loss"] for point in curve[-10:]) / 10 < 0.9 * mean_picture


# ---- Raw pixels and k-means


def test_raw_features_are_the_pixels():
    x = torch.rand(4, 3, 32, 32)
    assert Pixels(side=32)(x).equal(((x - 0.5) * 4).flatten(1))
    torch.testing.assert_close(Pixels(side=16)(x), ((F.avg_pool2d(x, 2) - 0.5) * 4).flatten(1))


def test_weights_that_are_none_are_saved_and_loaded(params, tmp_path):
    entry = params.entry("image", "raw")
    write(Trained(build_method(entry, FACTS, seed=0)), tmp_path)
    encoder = load(tmp_path / "encoder.safetensors", entry.encoder, FACTS)
    assert encoder.state_dict() == {}
    x = torch.rand(2, 3, 32, 32)
    assert encoder(x).equal(build_encoder(entry.encoder, FACTS)(x))


def test_zca_whitens_but_for_its_floor():
    x = torch.randn(500, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    covariance = x.T.cov(correction=0)
    whitening = zca(covariance, floor=0.0)
    torch.testing.assert_close((x @ whitening).T.cov(correction=0), torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(whitening, whitening.T)  # ZCA: of all whitenings the one that is symmetric
    values = torch.linalg.eigvalsh(covariance)
    shrunk = torch.linalg.eigvalsh((x @ zca(covariance)).T.cov(correction=0))
    torch.testing.assert_close(shrunk, values / (values + 0.1))


def test_nearest_is_its_loop():
    x, centroids = torch.randn(40, 7), torch.randn(5, 7)
    distance, member = nearest(x, centroids)
    for m in range(40):
        squared = [sum((a - b) ** 2 for a, b in zip(x[m], c, strict=True)).item() for c in centroids]
        assert distance[m].item() == pytest.approx(min(squared), rel=1e-4)
        assert member[m].tolist() == [float(k == squared.index(min(squared))) for k in range(5)]


def test_random_patches_are_patches_in_the_encoders_layout():
    x = torch.rand(3, 3, 9, 9)
    drawn = random_patches(x, 200, 6)  # (3, 200, P)
    every = F.unfold(x, 6).mT  # (3, 16, P)
    same = (drawn[:, :, None] == every[:, None]).all(3)  # (3, 200, 16)
    assert (same.sum(2) == 1).all()
    assert same.any(1).all()  # every place is drawn


def test_a_dictionarys_features_are_the_triangle_summed_over_quadrants():
    encoder, x = Dictionary(patch=3, width=4), torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        encoder.mean.uniform_()
        encoder.whitening += torch.randn(27, 27) * 0.1
    places = 6
    expected = torch.zeros(2, 2, 2, 4)
    for n, i, j in itertools.product(range(2), range(places), range(places)):
        values = 255 * x[n, :, i : i + 3, j : j + 3].flatten()
        values = (values - values.mean()) / (values.var(correction=0) + 10).sqrt()
        values = (values - encoder.mean) @ encoder.whitening
        z = torch.stack([(values - c).norm() for c in encoder.centroids])
        expected[n, i // 3, j // 3] += (z.mean() - z).clamp(min=0)
    torch.testing.assert_close(encoder(x), expected.flatten(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [16, 17, 32])
def test_quadrants_take_every_place_once(size):
    encoder = Dictionary(patch=6, width=3)
    encoder.activation = lambda x: torch.ones(len(x), (x.shape[2] - 5) * (x.shape[3] - 5), 3)
    assert encoder(torch.rand(2, 3, size, size)).sum(1).eq(3 * (size - 5) ** 2).all()


def steps_of(method, pictures: Tensor, first: int, last: int) -> None:
    """Steps of 88, eight to a pass, on 256 rows in their order."""
    method.train()
    for step in range(first, last):
        method.progress = step / 88
        method({"image": pictures[step % 8 * 32 :][:32]})
        method.progress = (step + 1) / 88
        method.after_step()


def test_kmeans_is_scikit_learns_on_whitened_patches(params, scenes):
    """Pictures of a single patch leave nothing to chance."""
    x = torch.cat([scenes[:128, :, :6, :6], scenes[128:, :, 10:, 10:]])
    method = build_method(small(params.entry("image", "kmeans")), FACTS, seed=0)
    encoder = method.encoder
    steps_of(method, x, 0, 8)
    patches = encoder.normalise(x.float().div(255).flatten(1))
    torch.testing.assert_close(encoder.mean, patches.mean(0), rtol=1e-4, atol=1e-5)
    covariance = patches.double().T.cov(correction=0)
    torch.testing.assert_close(encoder.whitening, zca(covariance).float(), rtol=1e-3, atol=1e-3)

    white, start = encoder.whiten(patches), encoder.centroids.clone()
    assert (torch.cdist(start, white).amin(1) < 1e-2).all()  # Lloyd's algorithm starts from patches
    steps_of(method, x, 8, 88)
    reference = SklearnKMeans(20, init=start.numpy(), n_init=1, max_iter=10, tol=0).fit(white.numpy())
    torch.testing.assert_close(encoder.centroids.data, torch.from_numpy(reference.cluster_centers_), rtol=0, atol=1e-3)


def test_a_centroid_without_patches_becomes_a_patch(params, pictures):
    method = build_method(small(params.entry("image", "kmeans")), FACTS, seed=0)
    steps_of(method, pictures, 0, 8)
    with torch.no_grad():
        method.encoder.centroids[3] = 1e3
    steps_of(method, pictures, 8, 15)
    method.progress = 15 / 88
    method({"image": pictures[:32]})
    used, means, fresh = method.members[:, 0] > 0, method.sums / method.members, method.encoder.whiten(method.latest)
    method.progress = 16 / 88
    method.after_step()
    assert not used[3]
    assert used.sum() > 10
    assert method.encoder.centroids[~used].equal(fresh[~used])
    assert method.encoder.centroids[used].equal(means[used].float())
    assert not method.members.any()


def test_kmeans_fits_better_with_every_pass(params, pictures, tmp_path):
    _, curve = pretrained(pictures, params, "kmeans", tmp_path, 88)
    losses = torch.tensor([point["loss"] for point in curve[8:]]).view(10, 8).mean(1)
    assert losses[-1] < 0.95 * losses[0]
    assert losses[-1] < losses[1] < losses[0]


def test_kmeans_never_waits_for_the_device(params, pictures):
    """At a pass's end too, which the contract does not reach."""
    method = build_method(small(params.entry("image", "kmeans")), FACTS, seed=0).to("meta").train()
    for begin, end in ((0.0, 1 / 11), (1 / 11, 0.5), (0.5, 1.0)):
        method.progress = begin
        loss, _ = method(next(batches(pictures, 1, device="meta")))
        method.progress = end
        method.after_step()
    assert loss.device.type == "meta"


@pytest.mark.parametrize("name", ["colorization", "kmeans"])
def test_all_that_a_resume_needs_is_in_the_state(name, params, pictures):
    def advance(method, first: int, last: int) -> None:
        for step, batch in list(enumerate(batches(pictures, 22)))[first:last]:
            method.progress = step / 22
            loss, _ = method(batch)
            if loss.requires_grad:
                loss.backward()
            method.progress = (step + 1) / 22
            method.after_step()
        random.append(torch.get_rng_state())

    random = []
    straight = build_method(small(params.entry("image", name)), FACTS, seed=0).train()
    advance(straight, 0, 9)
    resumed = build_method(small(params.entry("image", name)), FACTS, seed=1).train()
    resumed.load_state_dict(straight.state_dict())
    torch.set_rng_state(random[0])
    advance(straight, 9, 22)
    torch.set_rng_state(random[0])
    advance(resumed, 9, 22)
    for key, value in straight.state_dict().items():
        assert value.equal(resumed.state_dict()[key]), key


@pytest.mark.parametrize("name", ["jigsaw", "geometric", "colorization", "inpainting", "super_resolution"])
def test_a_step_under_autocast_has_a_finite_loss_in_float32(name, params, pictures):
    method = build_method(small(params.entry("image", name)), FACTS, seed=0).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = method(next(batches(pictures, 1)))
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert whole_step(method, optimizer_of(method, TRAINING), next(batches(pictures, 1))).isfinite()
