"""VAE, BiGAN, diffusion and Image GPT: their losses term by term, what their papers promise, and what they learn."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from ssl_methods import Method, build_encoder
from ssl_methods.encoders.transformers import patchify, unpatchify
from ssl_methods.generative.diffusion import STEPS, diffuse, restore, schedule, sine_times
from ssl_methods.generative.gan import told_apart
from ssl_methods.generative.image_gpt import next_patch_error, prefix_causal
from ssl_methods.generative.vae import divergence, draw_code, surprise
from ssl_methods.parts.teachers import held
from stages.common.settings import InputError
from stages.training.loop import build_method
from tests.methods.test_losses import same_with_gradients
from tests.methods.test_methods import FACTS, SMALL, batches, pretrained, small

RECIPES = {  # of a short training on the small pictures
    "vae": {"steps": 240, "lr": 1e-2},
    "gan": {"steps": 1600, "lr": 5e-4, "beta1": 0.5},  # a game: at twice the rate its end varies much more
    "diffusion": {"steps": 200, "lr": 5e-3},
    "image_gpt": {"steps": 160},
}
HYPER = {"vae": {"beta": 0.1}, "gan": {"latent": 4}, "diffusion": {}, "image_gpt": {}}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def learned(params, pictures, tmp_path_factory):
    """Each method after a short training, trained once: name -> (method, curve)."""
    done: dict[str, tuple[Method, list[dict[str, float]]]] = {}

    def get(name: str) -> tuple[Method, list[dict[str, float]]]:
        if name not in done:
            done[name] = pretrained(
                pictures, params, name, tmp_path_factory.mktemp(name), **RECIPES[name], **HYPER[name]
            )
        return done[name]

    return get


def fresh(params, name: str, **hyper) -> Method:
    return build_method(small(params.entry("image", name), **hyper), FACTS, seed=0)


def drawings(method: Method, pictures: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode():
        return {name: drawn.clamp(0, 1) for name, drawn in method.draw({"image": pictures}).items()}


def mean_picture_error(pictures: Tensor) -> float:
    return (pictures.float() / 255).var(0, correction=0).mean().item()


# ---- VAE


def test_vaes_divergence_is_equation_10_with_its_gradient():
    mean, log_variance = torch.randn(2, 4, 3).requires_grad_().unbind()
    slow = torch.zeros(())
    for m, s in zip(mean.flatten(), log_variance.flatten(), strict=True):
        slow = slow - 0.5 * (1 + s - m**2 - s.exp())
    same_with_gradients(divergence(mean, log_variance), slow / 4, mean, log_variance)
    exact = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1).mean()
    same_with_gradients(divergence(mean, log_variance), exact, mean, log_variance)


@pytest.mark.parametrize(
    ("mean", "variance", "expected"), [(0, 1, 0), (3, 1, 4.5), (0, math.e, (math.e - 2) / 2), (1, 0.5, 0.5966)]
)
def test_vaes_divergence_has_its_closed_form(mean, variance, expected):
    mean, log_variance = torch.full((5, 2), float(mean)), torch.full((5, 2), math.log(variance))
    assert divergence(mean, log_variance).item() == pytest.approx(2 * expected, abs=1e-3)


def test_vaes_surprise_is_equation_11_with_its_gradient():
    logits, x = torch.randn(2, 3, 2, 2, requires_grad=True), torch.rand(2, 3, 2, 2)
    slow = torch.zeros(())
    for a, b in zip(logits.flatten(), x.flatten(), strict=True):
        y = 1 / (1 + (-a).exp())
        slow = slow - (b * y.log() + (1 - b) * (1 - y).log())
    same_with_gradients(surprise(logits, x), slow / 2, logits)
    binary = x.round()
    exact = -Bernoulli(logits=logits).log_prob(binary).sum() / 2
    same_with_gradients(surprise(logits, binary), exact, logits)


def test_vaes_surprise_is_least_where_the_drawing_is_the_picture():
    x = torch.rand(2, 3, 4, 4) * 0.8 + 0.1
    logits = x.logit().requires_grad_()
    gradient = torch.autograd.grad(surprise(logits, x), logits)[0]
    torch.testing.assert_close(gradient, torch.zeros_like(x), atol=1e-6, rtol=0)
    assert surprise(logits + 0.1, x) > surprise(logits, x)


def test_vaes_codes_have_the_stated_mean_and_variance_and_pass_gradients_to_both():
    mean, log_variance = (torch.tensor([a, b]).expand(20000, 2).requires_grad_() for a, b in [(1, -2.0), (0, -1.5)])
    z = draw_code(mean, log_variance)
    torch.testing.assert_close(z.mean(0), mean[0], atol=0.03, rtol=0)
    torch.testing.assert_close(z.var(0), log_variance[0].exp(), atol=0.03, rtol=0)
    to_mean, to_log_variance = torch.autograd.grad(z.sum(), (mean, log_variance))
    assert (to_mean == 1).all()
    torch.testing.assert_close(to_log_variance, (z - mean) / 2)


def test_vaes_loss_is_its_two_terms_per_pixel_value(params, pictures):
    for beta in (1.0, 4.0):
        loss, shown = fresh(params, "vae", beta=beta).train()(next(batches(pictures, 1)))
        assert loss.item() == pytest.approx((shown["reconstruction"] + beta * shown["kl"]).item() / (3 * 16 * 16))


def test_vae_draws_the_picture_of_the_code_and_not_the_mean_picture(learned, pictures):
    method, curve = learned("vae")
    shown = drawings(method, pictures)
    own, others = (F.mse_loss(drawn, shown["truth"]) for drawn in (shown["output"], shown["output"].roll(1, 0)))
    assert own < 0.95 * mean_picture_error(pictures)
    assert others > 1.02 * own
    assert curve[-1]["reconstruction"] < curve[0]["reconstruction"]
    assert curve[-1]["kl"] > 1  # nats: the code is used


def test_beta_trades_the_code_for_the_drawing(params, pictures, tmp_path):
    _, loose = pretrained(pictures, params, "vae", tmp_path, 80, lr=1e-2, beta=0.1)
    _, tight = pretrained(pictures, params, "vae", tmp_path, 80, lr=1e-2, beta=30.0)
    assert tight[-1]["kl"] < 0.5 * loose[-1]["kl"]
    assert tight[-1]["reconstruction"] > loose[-1]["reconstruction"]


# ---- BiGAN


def test_bigans_value_is_equation_3_with_its_gradient():
    found, made = torch.randn(2, 6).requires_grad_().unbind()
    slow = torch.zeros(())
    for a, b in zip(found, made, strict=True):
        slow = slow - (1 / (1 + (-a).exp())).log() - (1 - 1 / (1 + (-b).exp())).log()
    same_with_gradients(told_apart(found, made), slow / 6, found, made)


def test_bigans_value_where_no_pair_can_be_told_from_another_is_log_4():
    assert told_apart(torch.zeros(5), torch.zeros(5)).item() == pytest.approx(math.log(4))
    assert told_apart(torch.full((5,), 40.0), torch.full((5,), -40.0)).item() == pytest.approx(0, abs=1e-6)


def test_a_held_module_passes_gradients_on_and_takes_none():
    module, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(5, 3, requires_grad=True)
    free, still = module(x), held(module, x)
    torch.testing.assert_close(still, free, rtol=0, atol=0)
    expected = torch.autograd.grad(free.sum(), x)[0]
    still.sum().backward()
    torch.testing.assert_close(x.grad, expected)
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


def test_bigans_one_backward_gives_each_player_its_own_gradient(params, pictures):
    """The discriminator's is that of its own loss; the generator's and the encoder's that of the swapped labels."""
    method, batch = fresh(params, "gan").train(), next(batches(pictures, 1))
    torch.manual_seed(1)
    loss, _ = method(batch)
    judges = list(method.discriminator.parameters())
    players = [*method.encoder.parameters(), *method.code.parameters(), *method.generator.parameters()]
    together = torch.autograd.grad(loss, judges + players)

    torch.manual_seed(1)
    x, z = batch["image"].float() / 255, torch.rand(8, method.latent) * 2 - 1
    found = method.discriminator(x, method.code(method.encoder(x)))
    made = method.discriminator(method.generator(z).sigmoid(), z)
    apart = torch.autograd.grad(told_apart(found, made), judges, retain_graph=True)
    apart += torch.autograd.grad(told_apart(made, found), players)
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_bigans_players_move_against_each_other(params, pictures):
    """A small step of the discriminator lowers -V, and one of the generator and the encoder raises it."""
    method, batch = fresh(params, "gan").train(), next(batches(pictures, 1))

    def value() -> float:
        torch.manual_seed(1)
        return method(batch)[1]["discriminator"].item()

    before = value()
    torch.manual_seed(1)
    method(batch)[0].backward()
    for side, sign in (("discriminator", -1), ("players", 1)):
        moved = [p for name, p in method.named_parameters() if name.startswith("discriminator") == (sign < 0)]
        old = [p.detach().clone() for p in moved]
        with torch.no_grad():
            for p in moved:
                p -= 1e-2 * p.grad
        assert sign * (value() - before) > 0, side
        with torch.no_grad():
            for p, kept in zip(moved, old, strict=True):
                p.copy_(kept)


def test_bigans_encoder_counts_the_statistics_of_real_pictures_alone(params, pictures):
    method, batch = fresh(params, "gan").train(), next(batches(pictures, 1))
    alone = copy.deepcopy(method.encoder)
    method(batch)
    alone(batch["image"].float() / 255)
    for (name, ours), theirs in zip(method.encoder.named_buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)
    assert all(b == 1 for name, b in method.generator.named_buffers() if name.endswith("num_batches_tracked"))
    assert not list(method.discriminator.buffers())


def test_bigans_generator_draws_what_the_data_looks_like(learned, params, pictures):
    def distance(method: Method) -> float:
        """Of the mean and deviation of generated pictures from those of real ones."""
        with torch.no_grad():
            made = method.generator(torch.rand(256, method.latent) * 2 - 1).sigmoid()
        real = pictures.float() / 255
        return ((made.mean(0) - real.mean(0)).abs() + (made.std(0) - real.std(0)).abs()).mean().item()

    assert distance(learned("gan")[0]) < 0.8 * distance(fresh(params, "gan", **HYPER["gan"]).eval())


def test_a_code_of_more_numbers_than_features_is_refused(params):
    """Else every code that is found would lie in a plane among those that are drawn, and the judge could not err."""
    message = r"gan cannot use the encoder 'small': `latent` 200 must be at most the number of its features, 16"
    with pytest.raises(InputError, match=message):
        fresh(params, "gan", latent=200)


# ---- Diffusion


def test_diffusions_schedule_is_the_product_of_what_each_step_keeps():
    kept, product = schedule(), 1.0
    for t in range(STEPS):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * t / (STEPS - 1))
        assert kept[t].item() == pytest.approx(product, rel=1e-5)
    assert kept[0].item() == pytest.approx(0.9999)
    assert kept[-1] < 5e-5  # Section 4: all but nothing of the picture is left


def test_diffusion_in_one_stride_is_diffusion_step_by_step():
    """Eq. (2), x_t ~ N(sqrt(1 - beta_t) x_{t-1}, beta_t), repeated, has the mean and variance of Eq. (4)."""
    mean, variance = 1.0, 0.0
    for beta in np.linspace(1e-4, 0.02, STEPS)[:300]:
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
    x, noise = torch.full((20000, 1, 1, 1), 0.7), torch.randn(20000, 1, 1, 1)
    noisy = diffuse(x, noise, schedule()[torch.full((20000,), 299), None, None, None])
    assert noisy.mean().item() == pytest.approx(0.7 * mean, abs=0.02)
    assert noisy.var().item() == pytest.approx(variance, abs=0.02)


def test_diffusion_keeps_unit_variance_and_is_undone_by_equation_15():
    x, noise = torch.randn(2, 10, 3, 40, 40)
    for t in (0, 250, 600):
        kept = schedule()[t].expand(10, 1, 1, 1)
        noisy = diffuse(x, noise, kept)
        assert noisy.var().item() == pytest.approx(1, abs=0.02)
        torch.testing.assert_close(restore(noisy, noise, kept), x, rtol=1e-3, atol=1e-3)


def test_diffusions_times_are_told_apart():
    times = F.normalize(sine_times(torch.arange(STEPS)), dim=1)
    cosine = (times @ times.T).fill_diagonal_(0)
    assert cosine.max() < 1 - 1e-4
    assert sine_times(torch.tensor([0]))[0].tolist() == [0.0] * 64 + [1.0] * 64


def test_diffusions_expanding_half_is_told_the_time_and_every_map_of_the_encoder(params, pictures):
    method, x = fresh(params, "diffusion").eval(), pictures[:2].float() / 127.5 - 1
    early, late = method.find_noise(x, torch.tensor([1, 1])), method.find_noise(x, torch.tensor([900, 900]))
    assert (early - late).abs().mean() > 1e-3
    maps = method.encoder.maps
    for depth in range(2):
        method.encoder.maps = lambda x, depth=depth: [h * (i != depth) for i, h in enumerate(maps(x))]
        assert (method.find_noise(x, torch.tensor([1, 1])) - early).abs().mean() > 1e-3


def test_diffusion_finds_most_of_the_noise_and_restores_pictures(learned, pictures):
    method, curve = learned("diffusion")
    assert curve[-1]["loss"] < 0.25  # to find none leaves 1
    shown = drawings(method, pictures)
    before, after = (F.mse_loss(shown[name], shown["truth"]).item() for name in ("input", "output"))
    assert after < 0.4 * before


# ---- Image GPT


def test_image_gpts_error_is_that_of_patches_behind_the_prefix_with_its_gradient():
    predicted, patches = torch.randn(3, 5, 12, requires_grad=True), torch.rand(3, 5, 12)
    prefix, errors = torch.tensor([1, 3, 4]), []
    for n in range(3):
        for k in range(prefix[n], 5):  # counted from 0, the first k patches come before patch k
            x = patches[n, k]
            x = (x - x.mean()) / (x.var(correction=0) + 1e-6).sqrt()
            errors += list((predicted[n, k - 1] - x) ** 2)
    same_with_gradients(next_patch_error(predicted, patches, prefix), sum(errors) / len(errors), predicted)
    gradient = torch.autograd.grad(next_patch_error(predicted, patches, prefix), predicted)[0]
    counted = [[True, True, True, True, False], [False, False, True, True, False], [False, False, False, True, False]]
    assert (gradient != 0).any(-1).tolist() == counted


def test_image_gpts_error_of_an_even_answer_is_one():
    assert next_patch_error(torch.zeros(2, 6, 48), torch.rand(2, 6, 48), torch.tensor([1, 4])).item() == pytest.approx(
        1, abs=1e-3
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_image_gpts_targets_are_lightlys_up_to_the_count_of_the_variance():
    """lightly divides by the unbiased variance: 48 values make its targets sqrt(47 / 48) of ours."""
    lightly = pytest.importorskip("lightly.models.utils")
    patches = torch.rand(2, 4, 48)
    target = lightly.normalize_mean_var(patches) * (48 / 47) ** 0.5
    predicted = target.roll(-1, 1)
    error = next_patch_error(predicted, patches, torch.tensor([1, 1]))
    assert error.item() == pytest.approx(0, abs=1e-8)


def test_the_prefix_sees_itself_and_the_rest_what_came_before():
    seen = prefix_causal(torch.tensor([1, 3]), 4)
    for n, prefix in enumerate([1, 3]):
        for i in range(4):
            for j in range(4):
                assert seen[n, i, j] == (j <= i or (i < prefix and j < prefix))


def test_tokens_that_see_all_are_the_encoders_and_a_prefix_of_one_is_causal(pictures):
    encoder, x = build_encoder(SMALL["ViT"], FACTS).eval(), pictures[:2].float() / 255
    h = encoder.enter(x)
    all_seen = encoder.transformer(h, prefix_causal(torch.tensor([16, 16]), 16))
    torch.testing.assert_close(all_seen, encoder.tokens(x), rtol=1e-4, atol=1e-5)
    causal = encoder.transformer(h, prefix_causal(torch.tensor([1, 1]), 16))
    torch.testing.assert_close(causal, encoder.transformer(h, torch.ones(1, 16, 16, dtype=torch.bool).tril()))
    assert (causal - all_seen).abs().mean() > 0.01


@pytest.mark.parametrize("prefix", [1, 5, 15])
def test_image_gpt_never_sees_what_it_must_tell(prefix, params, pictures):
    """Behind the prefix, another patch k changes no answer about patches up to k, and some about later ones."""
    method, x = fresh(params, "image_gpt").eval(), pictures[:1].float() / 255
    answer = method.predict(x, torch.tensor([prefix]))
    for k in range(prefix, 16):
        changed = patchify(x, 4)
        changed[:, k] = torch.rand(48)
        new = method.predict(unpatchify(changed, 4), torch.tensor([prefix]))
        torch.testing.assert_close(new[:, :k], answer[:, :k], rtol=1e-4, atol=1e-5)
        assert (new[:, k:] - answer[:, k:]).abs().max() > 1e-3


def test_image_gpt_tells_the_next_patch_better_than_an_untrained_one_or_its_mean(learned):
    _, curve = learned("image_gpt")
    assert curve[-1]["loss"] < 0.75 < curve[0]["loss"]  # a patch's own mean leaves its unit variance


def test_unpatchify_undoes_patchify():
    x = torch.rand(2, 3, 12, 12)
    assert torch.equal(unpatchify(patchify(x, 4), 4), x)
    assert torch.equal(unpatchify(patchify(x, 3), 3), x)


# ---- All of them draw


@pytest.mark.parametrize("name", ["vae", "gan", "diffusion", "image_gpt"])
def test_its_drawings_look_more_like_the_truth_than_before_training(name, learned, params, pictures):
    def error(method: Method) -> float:
        shown = drawings(method, pictures)
        return F.mse_loss(shown["output"], shown["truth"]).item()

    assert error(learned(name)[0]) < 0.7 * error(fresh(params, name, **HYPER[name]).eval())
