"""One contract for every entry of params.yaml, and for each method what it must learn."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from sklearn.decomposition import PCA
from torch import Tensor

import ssl_methods
from ssl_methods import Method, build_encoder, families
from ssl_methods.encoders.transformers import attend
from ssl_methods.modalities import image
from stages.common import settings
from stages.common.settings import Entry, Training
from stages.training.columns import Columns
from stages.training.loop import build_method, descend, fit
from stages.training.optimizers import optimizer_of

ROOT = Path(__file__).parents[2]
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
MODALITIES = ("image", "text", "image_text", "video_audio")
ENTRIES = [(modality, name) for modality in MODALITIES for name in PARAMS["benchmark"][modality]["methods"]]
FACTS = {"size": 16, "vocabulary": 35, "length": 12, "classes": 3, "rows": 256}
SMALL = {
    "ResNet": {"architecture": "ResNet", "width": 8, "blocks": [1, 1], "stride": 1},
    "ViT": {"architecture": "ViT", "patch": 4, "width": 32, "depth": 2, "heads": 2},
    "Projection": {"architecture": "Projection", "side": 4, "width": 8},
    "Pixels": {"architecture": "Pixels", "side": 8},
    "Dictionary": {"architecture": "Dictionary", "patch": 6, "width": 20},
    "TextTransformer": {"architecture": "TextTransformer", "width": 32, "depth": 2, "heads": 2},
    "BagOfWords": {"architecture": "BagOfWords", "width": 8},
    "ImageText": {
        "architecture": "ImageText",
        "width": 8,
        "blocks": [1, 1],
        "words": 16,
        "depth": 1,
        "heads": 2,
        "shared": 6,
    },
    "AudioVisual": {"architecture": "AudioVisual", "width": 8, "blocks": [1, 1], "stride": 1, "shared": 6},
}
# In a precision that all machines have, so that what is learnt depends on them as little as may be.
TRAINING = Training(
    encoder="small", epochs=1, batch_size=32, optimizer="adamw", lr=3e-3, warmup=0.1, precision="float32"
)


def small(entry: Entry, **hyper) -> Entry:
    """The entry with a small encoder of its architecture."""
    kept = {key: entry.encoder[key] for key in ("causal",) if key in entry.encoder}
    encoder = {"name": "small", **SMALL[entry.encoder["architecture"]], **kept}
    return entry.model_copy(update={"encoder": encoder, "hyper": {**entry.hyper, **hyper}, "training": TRAINING})


@pytest.fixture(params=ENTRIES, ids="-".join)
def entry(request: pytest.FixtureRequest, params: settings.Settings) -> Entry:
    return small(params.entry(*request.param))


@pytest.fixture
def rows(entry: Entry, pictures: Tensor, sentences: dict[str, Tensor], films: dict[str, Tensor]) -> dict[str, Tensor]:
    """The columns of the entry's modality, equally many rows of each."""
    return columns_of(entry.modality, pictures, sentences, films)


def columns_of(
    modality: str, pictures: Tensor, sentences: dict[str, Tensor], films: dict[str, Tensor]
) -> dict[str, Tensor]:
    if modality == "video_audio":
        return films
    columns = {"image": pictures, **sentences, "label": torch.arange(256) % 3}
    there = {"image": ("image",), "text": ("token", "next"), "image_text": ("image", "token")}[modality]
    return {name: columns[name] for name in (*there, "label")}


@pytest.fixture
def trained_entry(entry: Entry) -> Entry:
    if ssl_methods.load(entry.method).passes == 0:
        pytest.skip("it takes no steps")
    return entry


def batches(pictures: Tensor, count: int, device: str = "cpu") -> Iterator[dict[str, Tensor]]:
    return batches_of({"image": pictures, "label": torch.arange(len(pictures)) % 3}, count, device)


def batches_of(rows: dict[str, Tensor], count: int, device: str = "cpu") -> Iterator[dict[str, Tensor]]:
    for step in range(count):
        index = torch.arange(step * 8, step * 8 + 8)
        yield {"index": index.to(device), **{name: column[index].to(device) for name, column in rows.items()}}


def whole_step(method: Method, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> Tensor:
    loss, _ = method(batch)
    descend(optimizer, loss, 1e-3, clip=1.0)
    method.after_step()
    return loss.detach()


def test_every_method_file_has_an_entry_and_every_entry_a_file(params):
    entries = [(modality, name) for modality, bench in params.benchmark.items() for name in bench.methods]
    assert {params.entry(*pair).method for pair in entries} == set(families())
    assert {name for _, name in entries} == set(params.methods)  # and the default run has them all


def test_its_loss_is_a_finite_scalar_and_so_is_what_it_plots(trained_entry, rows):
    method = build_method(trained_entry, FACTS, seed=0).train()
    loss, extras = method(next(batches_of(rows, 1)))
    for value in (loss, *extras.values()):
        assert value.shape == ()
        assert value.isfinite()
    assert not any(value.requires_grad for value in extras.values())
    assert not extras.keys() & {"self", "step", "samples", "loss", "lr"}  # a point of the curve has these already


def test_gradient_reaches_all_of_the_encoder(trained_entry, rows):
    method = build_method(trained_entry, FACTS, seed=0).train()
    loss, _ = method(next(batches_of(rows, 1)))
    if not loss.requires_grad:
        pytest.skip("it has no gradient")
    loss.backward()
    part = "ear." if trained_entry.method == "supervised_av" else ""  # its labels are the sound's
    parameters = [(name, p) for name, p in method.encoder.named_parameters() if name.startswith(part)]
    assert parameters
    assert not [name for name, p in parameters if p.grad is None or not p.grad.any()]


def test_what_no_gradient_trains_moves_in_after_step_alone(trained_entry, rows):
    method = build_method(trained_entry, FACTS, seed=0).train()
    optimizer = optimizer_of(method, TRAINING)
    frozen = {name: p for name, p in method.named_parameters() if not p.requires_grad}
    first = {name: p.clone() for name, p in frozen.items()}
    loss, _ = method(next(batches_of(rows, 1)))
    descend(optimizer, loss, 1e-2, clip=None)
    assert all(torch.equal(p, first[name]) for name, p in frozen.items())
    method.progress = 1.0 if method.passes else 0.5
    method.after_step()
    assert all(not torch.equal(p, first[name]) for name, p in frozen.items() if p.ndim > 1)


def test_two_runs_from_one_seed_agree_and_from_two_do_not(trained_entry, rows):
    def weights(seed: int) -> Tensor:
        method = build_method(trained_entry, FACTS, seed).train()
        optimizer = optimizer_of(method, TRAINING)
        for step, batch in enumerate(batches_of(rows, 3)):
            whole_step(method, optimizer, batch)
            method.progress = (step + 1) / 3
        return torch.cat([p.detach().flatten() for p in method.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_its_encoders_last_depth_is_its_features(entry, rows):
    encoder, batch = build_method(entry, FACTS, seed=0).eval().encoder, next(batches_of(rows, 1))
    depths = next(iter(ssl_methods.load_modality(entry.modality).embed(encoder, batch).values()))
    end = "last" if entry.encoder.get("causal") else "first"
    names = {
        "ResNet": ["stage 1", "stage 2"],
        "ImageText": ["stage 1", "shared", "stage 2"],
        "AudioVisual": ["stage 1", "shared", "stage 2"],
        "ViT": ["block 1", "block 2"],
        "TextTransformer": [f"block {i} {what}" for i in (1, 2) for what in (end, "mean")],
    }
    assert list(depths) == names.get(entry.encoder["architecture"], ["features"])
    *_, last = depths.values()
    assert last.shape == (8, encoder.dim)
    first = {"text": "token", "video_audio": "sound"}.get(entry.modality, "image")
    tower = {"ImageText": "eye", "AudioVisual": "ear"}.get(entry.encoder["architecture"], "")
    x = batch[first] if first == "token" else batch[first] / 255
    torch.testing.assert_close(last, encoder.get_submodule(tower)(x))
    assert all(a.shape[0] == 8 and not a.equal(b) for a, b in itertools.pairwise(depths.values()))


def test_a_resnet_is_read_in_noise_too_where_it_is_asked_to(pictures):
    settings, x = {**SMALL["ResNet"], "noise": [0.5, 0.1]}, pictures[:8].float() / 255
    torch.manual_seed(0)
    encoder = build_encoder(settings, FACTS).eval()
    depths = encoder.depths(x)
    assert list(depths) == ["stage 1", "noise 0.5", "noise 0.1", "stage 2"]
    torch.testing.assert_close(depths["stage 2"], encoder(x))
    further = [(depths[name] - depths["stage 2"]).norm() for name in ("noise 0.5", "noise 0.1")]
    assert further[0] > further[1] > 0
    assert encoder.noisy(x, 0.0).allclose(x, atol=1e-6)
    white = encoder.noisy(torch.full_like(x, 0.5), 0.5) * 2 - 1  # of a grey picture only the noise is left
    assert white.std().item() == pytest.approx(0.5**0.5, rel=0.1)
    torch.testing.assert_close(encoder.depths(x[:2])["noise 0.5"], depths["noise 0.5"][:2])  # whatever is beside it


def test_what_it_draws_are_pictures_and_its_truth_is_the_data(trained_entry, pictures):
    method = build_method(trained_entry, FACTS, seed=0).eval()
    if type(method).draw is Method.draw:
        pytest.skip("it draws nothing")
    before = {name: value.clone() for name, value in method.state_dict().items()}
    with torch.inference_mode():
        shown = method.draw({"image": pictures[:8]})
    assert list(shown)[-2:] == ["output", "truth"]
    assert all(value.equal(before[name]) for name, value in method.state_dict().items())  # it only looks
    for drawing in shown.values():
        assert drawing.shape == shown["truth"].shape
        assert drawing.isfinite().all()
    if trained_entry.method != "jigsaw":  # which cuts out the gaps between its tiles
        torch.testing.assert_close(shown["truth"], pictures[:8].float() / 255)
    if "input" in shown:
        assert not shown["input"].equal(shown["truth"])


def test_its_encoder_is_the_one_it_was_given(entry):
    """So evaluation, which builds the architecture anew, can load its weights."""
    method = build_method(entry, FACTS, seed=0)
    assert method.encoder.state_dict().keys() == build_encoder(entry.encoder, FACTS).state_dict().keys()


def test_a_whole_step_runs_where_there_is_no_data_to_look_at(trained_entry, rows):
    """On the meta device a hidden host sync or a stray CPU tensor raises: what passes here never makes a GPU wait."""
    if trained_entry.method in ("mlm", "bert", "electra", "gpt"):
        pytest.skip("it picks out the words that it asks for, and how many these are decides shapes")
    method = build_method(trained_entry, FACTS, seed=0).to("meta").train()
    optimizer = optimizer_of(method, TRAINING)
    for batch in batches_of(rows, 2, device="meta"):
        method.progress = 0.5
        loss = whole_step(method, optimizer, batch)
    assert loss.device.type == "meta"


def pretrained(
    pictures: Tensor,
    params: settings.Settings,
    name: str,
    folder: Path,
    steps: int,
    lr: float = 3e-3,
    beta1: float = 0.9,
    **hyper,
) -> tuple[Method, list[dict[str, float]]]:
    """The method after `steps` steps of the real loop on the small pictures, and its curve."""
    rows = {"image": pictures, "label": (pictures[:, 0].float().mean((1, 2)) > 140).long()}
    return trained_on(rows, small(params.entry("image", name), **hyper), folder, steps, lr, beta1)


def trained_on(
    rows: dict[str, Tensor], entry: Entry, folder: Path, steps: int, lr: float = 3e-3, beta1: float = 0.9
) -> tuple[Method, list[dict[str, float]]]:
    """The method after `steps` steps of the real loop on those columns, and its curve."""
    for column, values in rows.items():
        np.save(folder / f"{column}.npy", values.numpy())
    method = build_method(entry, FACTS, seed=0).train()
    columns = Columns(folder, method.columns, torch.device("cpu"))
    training = TRAINING.model_copy(update={"lr": lr, "beta1": beta1})
    trained = fit(method, columns, training, steps=steps, seed=0)
    assert trained.status == "ok"
    return trained.method, trained.curve


def matched(method: Method, pictures: Tensor) -> float:
    """How many pictures find their own other view nearest, among 64 and in the encoder's features."""
    torch.manual_seed(1)
    x = image.unit(pictures[:64]).repeat(8, 1, 1, 1)
    with torch.no_grad():
        a, b = (F.normalize(method.encoder(image.simclr_view(x, 0.5)), dim=1).view(8, 64, -1) for _ in range(2))
    return ((a @ b.mT).argmax(2) == torch.arange(64)).float().mean().item()


@pytest.mark.parametrize("name", ["simclr", "moco", "byol", "simsiam"])
def test_siblings_learn_to_tell_pictures_apart_under_views(name, params, pictures, tmp_path):
    hyper = {"moco": {"queue": 128, "momentum": 0.9}, "byol": {"tau": 0.9}}.get(name, {})
    untrained = build_method(small(params.entry("image", "untrained")), FACTS, seed=0).eval()
    method, _ = pretrained(pictures, params, name, tmp_path, 120, strength=0.5, **hyper)
    assert matched(method, pictures) > matched(untrained, pictures) + 0.05


@pytest.mark.parametrize(
    ("name", "among", "hyper"), [("simclr", 2 * 32 - 1, {}), ("moco", 65, {"queue": 64}), ("nnclr", 32, {"queue": 64})]
)
def test_contrast_bounds_the_information_between_views(name, among, hyper, params, pictures, tmp_path):
    _, curve = pretrained(pictures, params, name, tmp_path, 60, **hyper)
    for point in curve:
        assert point["information"] == pytest.approx(math.log(among) - point["loss"], abs=1e-4)
    if name != "moco":  # its queue begins as noise, from which pictures are easily told
        assert curve[-1]["information"] > curve[0]["information"] > -1


def test_rotation_learns_which_way_is_up(params, pictures, tmp_path):
    _, curve = pretrained(pictures, params, "rotation", tmp_path, 60)
    assert curve[-1]["accuracy"] > 0.9


def test_supervised_learns_the_labels(params, pictures, tmp_path):
    _, curve = pretrained(pictures, params, "supervised", tmp_path, 80, strength=0)
    assert curve[-1]["accuracy"] > 0.9


def test_autoencoder_draws_better_than_the_mean_picture(params, pictures, tmp_path):
    _, curve = pretrained(pictures, params, "autoencoder", tmp_path, 240, lr=1e-2)
    mean_picture = (pictures.float() / 255).var(0, correction=0).mean().item()
    assert curve[-1]["loss"] < 0.9 * mean_picture


def test_mae_paints_hidden_patches_better_than_their_mean(params, pictures, tmp_path):
    _, curve = pretrained(pictures, params, "mae", tmp_path, 120)
    assert curve[-1]["loss"] < 0.8  # a patch's own mean leaves its unit variance


def test_mae_never_sees_what_it_must_paint(params, pictures):
    """The tokens of the visible patches do not change when the hidden ones do."""
    encoder = build_encoder(SMALL["ViT"], FACTS).eval()
    x, keep = pictures[:2].float() / 255, torch.tensor([[0, 5, 9], [1, 2, 15]])
    hidden = torch.ones(2, 16).scatter(1, keep, 0.0).view(2, 1, 4, 4)
    changed = torch.where(F.interpolate(hidden, scale_factor=4) == 1, torch.rand_like(x), x)
    torch.testing.assert_close(encoder.tokens(x, keep), encoder.tokens(changed, keep))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_torchs_and_so_is_its_gradient(kind, masked):
    torch.manual_seed(0)
    ours, theirs = (torch.randn(3, 2, 4, 6, 8).to(kind).requires_grad_() for _ in range(2))
    theirs.data.copy_(ours.data)
    seen = (torch.rand(2, 1, 6, 6) < 0.5) | torch.eye(6, dtype=torch.bool) if masked else None
    found, expected = attend(*ours, seen), F.scaled_dot_product_attention(*theirs, seen)
    near = {"rtol": 1e-5, "atol": 1e-5} if kind is torch.float32 else {"rtol": 0.03, "atol": 0.03}
    assert found.dtype == kind
    torch.testing.assert_close(found, expected, **near)
    weight = torch.randn_like(found)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, **near)


def test_all_tokens_in_any_order_are_the_same_tokens(pictures):
    encoder, x = build_encoder(SMALL["ViT"], FACTS).eval(), pictures[:2].float() / 255
    order = torch.stack([torch.randperm(16), torch.randperm(16)])
    whole = encoder.tokens(x).gather(1, order[:, :, None].expand(-1, -1, 32))
    torch.testing.assert_close(encoder.tokens(x, order), whole, rtol=1e-4, atol=1e-5)


def test_pca_is_scikit_learns(params, pictures, tmp_path):
    method, _ = pretrained(pictures, params, "pca", tmp_path, 8)
    pixels = method.encoder.pixels(pictures.float() / 255)
    ours = method.encoder(pictures.float() / 255).detach()
    theirs = torch.from_numpy(PCA(8, svd_solver="full").fit_transform(pixels.numpy())).float()
    torch.testing.assert_close(ours.abs(), theirs.abs(), rtol=1e-3, atol=1e-3)  # an axis may point either way


def test_moco_queues_the_newest_keys_first(params, pictures):
    method = build_method(small(params.entry("image", "moco"), queue=20), FACTS, seed=0).train()
    old = method.queue.clone()
    method(next(batches(pictures, 1)))
    method.after_step()
    torch.testing.assert_close(method.queue[:8], method.keys)
    torch.testing.assert_close(method.queue[8:], old[:12])


def test_byols_teacher_slows_down_with_progress(params, pictures):
    method = build_method(small(params.entry("image", "byol"), tau=0.5), FACTS, seed=0)
    start = next(method.teacher.parameters()).clone()
    with torch.no_grad():
        for p in method.online.parameters():
            p += 1
    method.progress = 1.0
    method.after_step()
    assert torch.equal(next(method.teacher.parameters()), start)
    method.progress = 0.0
    method.after_step()
    torch.testing.assert_close(next(method.teacher.parameters()), start + 0.5)


def test_a_method_without_a_labels_column_gets_none(tmp_path, params, pictures, sentences, films):
    for name, column in {"image": pictures, **sentences, **films}.items():
        np.save(tmp_path / f"{name}.npy", column[: len(films["label"])].numpy())
    labelled = {"supervised", "supervised_text", "supervised_av", "supcon", "semi_supcon"}
    for name in {params.entry(*pair).method for pair in ENTRIES}:
        method = ssl_methods.load(name)
        batch = Columns(tmp_path, method.columns, torch.device("cpu")).rows(torch.arange(2)) if method.columns else {}
        assert ("label" in batch) == (name in labelled)
