"""Video with sound: views, two towers, what each method must learn, and retrieval."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ssl_methods
from ssl_methods import build_encoder
from ssl_methods.cross_modal.avc import correspondence
from ssl_methods.modalities import video_audio
from ssl_methods.parts.losses import info_nce
from stages.common.settings import Entry, Modality, Settings, Training
from stages.measures.retrieval import retrieval
from stages.training.loop import build_method, descend
from stages.training.optimizers import optimizer_of

TRAINED = ["supervised_av", "avc", "av_contrastive"]
ENCODER = {"name": "small", "architecture": "AudioVisual", "width": 8, "blocks": [1, 1], "stride": 1, "shared": 6}
FACTS = {"classes": 3, "films": 96}
TRAINING = Training(encoder="small", epochs=1, batch_size=32, optimizer="adamw", lr=3e-3, precision="float32")


@pytest.fixture
def made(params: Settings):
    """A method by its name, with a small encoder."""
    bench = Modality(data="atari", training="laptop_av", methods=["untrained", *TRAINED])
    settings = params.model_copy(update={"benchmark": {**params.benchmark, "video_audio": bench}})

    def make(name: str, seed: int = 0, **hyper) -> ssl_methods.Method:
        entry: Entry = settings.entry("video_audio", name)
        hyper = {**entry.hyper, **hyper}
        return build_method(entry.model_copy(update={"encoder": ENCODER, "hyper": hyper}), FACTS, seed).train()

    return make


def batch_of(films: dict[str, Tensor], index: Tensor, device: str = "cpu") -> dict[str, Tensor]:
    return {"index": index.to(device), **{name: column[index].to(device) for name, column in films.items()}}


def trained(method: ssl_methods.Method, films: dict[str, Tensor], steps: int) -> ssl_methods.Method:
    """After `steps` steps on the films but for the last 32."""
    optimizer = optimizer_of(method, TRAINING)
    torch.manual_seed(1)
    for _ in range(steps):
        loss, _ = method(batch_of(films, torch.randperm(64)[:32]))
        descend(optimizer, loss, TRAINING.lr, clip=None)
    return method.eval()


# What is looked for


def test_partners_are_those_of_a_game_and_of_neighbouring_seconds():
    shared = torch.arange(5.0)[:, None]
    towers = {"sound": {"shared": shared, "last": shared * 0}, "video": {"shared": -shared, "last": shared * 0}}
    columns = {"label": torch.tensor([0, 0, 0, 1, 1]), "clip": torch.tensor([4, 4, 4, 5, 5])}
    found = video_audio.partners(towers, columns | {"time": torch.tensor([6, 7, 8, 3, 5])})
    assert list(found) == ["sound to film", "film to sound", "in step"]
    queries, gallery, groups = (found["film to sound"][part] for part in ("queries", "gallery", "among"))
    assert (queries.equal(-shared), gallery.equal(shared), groups.equal(columns["label"])) == (True, True, True)
    queries, gallery, groups = (found["in step"][part] for part in ("queries", "gallery", "among"))
    assert queries[:, 0].tolist() == [0, 1]  # seconds 6 and 7; 8, 3 and 5 have no neighbour of their pair
    assert groups[0] == groups[1]
    apart = video_audio.partners(towers, columns | {"time": torch.tensor([0, 2, 4, 6, 8])})
    assert "in step" not in apart


# The encoder


def test_it_embeds_sound_first_and_the_last_depth_is_the_features(films):
    encoder, batch = build_encoder(ENCODER, FACTS).eval(), batch_of(films, torch.arange(5))
    video, sound = batch["video"] / 255, batch["sound"] / 255
    towers = video_audio.embed(encoder, batch)
    assert list(towers) == ["sound", "video"]
    for depths, features, shared in zip(
        towers.values(), (encoder.sound(sound), encoder.video(video)), reversed(encoder(video, sound)), strict=True
    ):
        assert list(depths) == ["stage 1", "shared", "stage 2"]
        assert features.shape == (5, encoder.dim)
        assert shared.shape == (5, ENCODER["shared"])
        torch.testing.assert_close(depths["stage 2"], features)
        torch.testing.assert_close(depths["shared"], shared)


def test_a_films_features_are_the_mean_of_its_frames(films):
    encoder, x = build_encoder(ENCODER, FACTS).eval(), films["video"][:3] / 255
    frames = torch.stack([encoder.eye(x[:, frame]) for frame in range(x.shape[1])])
    torch.testing.assert_close(encoder.video(x), frames.mean(0))
    assert not frames[0].allclose(frames[1])


# Views


def test_views_of_no_strength_change_nothing(films):
    batch = batch_of(films, torch.arange(8))
    video, sound = video_audio.views(batch, 0.0)
    assert video.equal(batch["video"] / 255)
    assert sound.equal(batch["sound"] / 255)


def test_all_frames_of_a_film_get_one_view_and_films_get_their_own(films):
    torch.manual_seed(0)
    frame = films["video"][:1, :1] / 255
    x = frame.expand(16, 4, 3, 16, 16)
    seen = video_audio.video_view(x)
    assert seen.shape == x.shape
    torch.testing.assert_close(seen, seen[:, :1].expand_as(seen))
    assert len({film.numpy().tobytes() for film in seen}) == 16


def test_shifted_sound_is_late_or_early_and_its_end_lasts():
    x = torch.arange(5.0)[None, :, None].expand(3, 5, 2)
    found = video_audio.shifted(x, torch.tensor([0.0, 2.0, -1.0]))
    expected = torch.tensor([[0.0, 1, 2, 3, 4], [0, 0, 0, 1, 2], [1, 2, 3, 4, 4]])
    assert found.equal(expected[:, :, None].expand(3, 5, 2))


@pytest.mark.parametrize("axis", [1, 2])
def test_hidden_spans_become_the_mean(axis):
    x, start, length = torch.rand(4, 6, 5), torch.tensor([0.0, 2, 4, 1]), torch.tensor([0.0, 3, 1, 4])
    found = video_audio.hidden_span(x, axis, start, length)
    for row, (first, count) in enumerate(zip(start.int().tolist(), length.int().tolist(), strict=True)):
        expected = x[row].clone()
        if axis == 1:
            expected[first : first + count] = x[row].mean()
        else:
            expected[:, first : first + count] = x[row].mean()
        torch.testing.assert_close(found[row], expected)


def test_a_sound_view_hides_up_to_a_quarter_of_either_axis():
    """Of a sound that is the same at all ticks, only what is hidden changes."""
    torch.manual_seed(0)
    x = (torch.arange(32.0) / 40).expand(500, 40, 32)
    changed = video_audio.sound_view(x) != x
    ticks, mels = changed.all(2).sum(1), changed.all(1).sum(1)  # (N,) each
    assert set(ticks.tolist()) == set(range(11))
    assert set(mels.tolist()) == set(range(9))
    alone = changed & ~changed.all(2, keepdim=True) & ~changed.all(1, keepdim=True)
    assert not alone.any()


# Losses


def test_correspondence_of_pairs_and_of_neighbours():
    zv, zs = torch.eye(3), torch.tensor([[2.0, 0, 0], [0, 0, 3], [0, 1, 1]])
    own, other = correspondence(zv, zs, torch.tensor(4.0), torch.tensor(-1.0))
    half = 4 * 0.5**0.5 - 1
    torch.testing.assert_close(own, torch.tensor([3.0, -1.0, half]))
    torch.testing.assert_close(other, torch.tensor([-1.0, -1.0, 3.0]))  # with the sound of the row before


def test_avc_is_the_cross_entropy_of_belonging(made, films):
    method, batch = made("avc", strength=0.0), batch_of(films, torch.arange(16))
    loss, extras = method(batch)
    own, other = correspondence(*method.encoder(batch["video"] / 255, batch["sound"] / 255), method.slope, 0.0)
    p, q = own.sigmoid(), other.sigmoid()
    torch.testing.assert_close(loss, -(p.log() + (1 - q).log()).mean())
    assert extras["accuracy"].item() == pytest.approx(((p > 0.5).float() + (q <= 0.5).float()).mean().item() / 2)


def test_info_nce_among_groups_is_that_of_each_group(views):
    z1, z2 = views
    groups = torch.tensor([4, 4, 1, 4, 1, 9])
    expected = []
    for i in range(6):
        s = {j: F.cosine_similarity(z1[i], z2[j], dim=0) / 0.2 for j in range(6) if groups[j] == groups[i]}
        expected.append(-(s[i].exp() / sum(value.exp() for value in s.values())).log())
    torch.testing.assert_close(info_nce(z1, z2, 0.2, groups), torch.stack(expected).mean())
    assert expected[5] == 0  # it is alone in its group
    torch.testing.assert_close(info_nce(z1, z2, 0.2, torch.zeros(6)), info_nce(z1, z2, 0.2))


def test_av_contrastive_adds_the_rows_of_one_play_as_hard_negatives(made, films):
    batch = batch_of(films, torch.randperm(96)[:24])
    method = made("av_contrastive", strength=0.0, hard=0.5)
    loss, extras = method(batch)
    z = method.encoder(batch["video"] / 255, batch["sound"] / 255)
    both = [(info_nce(*z, 0.07, groups) + info_nce(*z[::-1], 0.07, groups)) / 2 for groups in (None, batch["clip"])]
    torch.testing.assert_close(loss, both[0] + 0.5 * both[1])
    torch.testing.assert_close(extras["information"], math.log(24) - both[0].detach())


# What they learn


def test_avc_learns_what_belongs_together(made, films):
    method = trained(made("avc", strength=0.0), films, 60)
    batch = batch_of(films, torch.arange(64, 96))
    with torch.no_grad():
        zv, zs = method.encoder(batch["video"] / 255, batch["sound"] / 255)
        height = batch["sound"].float().mean(1).argmax(1)  # (N,)
        others = height[:, None] != height
        s = method.slope * F.normalize(zv, dim=1) @ F.normalize(zs, dim=1).T + method.offset
    assert (s.diagonal() > 0).float().mean() > 0.8
    assert (s[others] <= 0).float().mean() > 0.8


def test_av_contrastive_finds_the_sound_of_a_film_it_has_not_seen(made, films):
    batch = batch_of(films, torch.arange(64, 96))
    unit = batch["video"] / 255, batch["sound"] / 255
    method = trained(made("av_contrastive", strength=0.0), films, 60)
    with torch.no_grad():
        found, guessed = (retrieval(*encoder(*unit)) for encoder in (method.encoder, made("untrained").eval().encoder))
    assert found["median_rank"] < 5 < guessed["median_rank"]


def test_supervised_av_learns_the_labels_from_sound(made, films):
    method = trained(made("supervised_av", strength=0.0), films, 40)
    _, extras = method(batch_of(films, torch.arange(64, 96)))
    assert extras["accuracy"] > 0.9


def test_supervised_av_passes_over_rows_without_a_label(made, films):
    method, batch = made("supervised_av", strength=0.0).eval(), batch_of(films, torch.arange(6))
    whole = method({**batch, "label": torch.tensor([2, 0, 1, -1, -1, -1])})[0]
    torch.testing.assert_close(whole, method(batch_of(films, torch.arange(3)) | {"label": torch.tensor([2, 0, 1])})[0])
    assert method({**batch, "label": torch.full((6,), -1)})[0] == 0
