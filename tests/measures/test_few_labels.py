"""Probes with few labels, and fine-tuning."""

import numpy as np
import pytest
import torch
from torch import nn

from ssl_methods import build_encoder, load_modality
from stages.common.settings import FineTuning
from stages.measures import accuracy, finetune, linear, low_label

LABELS = torch.tensor([0] * 100 + [1] * 40 + [2] * 3)
STRENGTHS = [1e-3, 1e-1]


# ---- Few labels


def test_budgets_are_stratified_and_never_without_a_class():
    found = low_label.budgets(LABELS, [0.01, 0.1, 1], [1, 5])
    assert list(found) == ["1 %", "10 %", "100 %", "1 per class", "5 per class"]
    assert {name: wanted.tolist() for name, wanted in found.items()} == {
        "1 %": [1, 1, 1],
        "10 %": [10, 4, 1],
        "100 %": [100, 40, 3],
        "1 per class": [1, 1, 1],
        "5 per class": [5, 5, 5],
    }
    assert "0.5 %" in low_label.budgets(LABELS, [0.005], [])


def test_the_index_sets_are_as_published():
    """The recipe of the docstring, written anew."""
    for draw in range(3):
        expected, taken = [], {0: 0, 1: 0, 2: 0}
        for row in np.random.RandomState(draw).permutation(len(LABELS)):
            if taken[LABELS[row].item()] < 5:
                taken[LABELS[row].item()] += 1
                expected.append(row)
        found = low_label.rows_of(LABELS, draw, torch.tensor([5, 5, 5]))
        assert found.tolist() == sorted(expected)
        assert len(found) == 13  # the third class has but three
    # Fixed for ever: who changes these numbers changes every published result.
    assert low_label.rows_of(LABELS, 0, torch.tensor([2, 2, 2])).tolist() == [16, 45, 108, 118, 140, 141]


def test_draws_differ_and_small_sets_are_parts_of_large_ones():
    small, large = torch.tensor([2, 2, 2]), torch.tensor([9, 9, 9])
    sets = [set(low_label.rows_of(LABELS, draw, small).tolist()) for draw in range(5)]
    assert len({frozenset(rows) for rows in sets}) == 5
    assert all(rows <= set(low_label.rows_of(LABELS, draw, large).tolist()) for draw, rows in enumerate(sets))


def made(rows, seed, noise=1.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (rows,), generator=generator)
    return 2 * torch.eye(6)[labels] + noise * torch.randn(rows, 6, generator=generator), labels


BUDGETS = {"shares": [0.05, 1.0], "per_class": [1], "draws": 3, "strengths": STRENGTHS, "classes": 3}


def test_a_few_labels_are_all_that_is_trained_on():
    train, validation, test = made(300, 0), made(100, 1), made(200, 2)
    chosen = low_label.choose(train, validation, **BUDGETS)
    found = low_label.read(chosen, test)
    assert [budget["rows"] for budget in found.values()] == [15, 300, 3]
    for budget in found.values():
        assert budget["accuracy"] == pytest.approx(sum(budget["draws"]) / 3)
        assert len(budget["draws"]) == 3
    assert found["100 %"]["accuracy"] > found["5 %"]["accuracy"] > found["1 per class"]["accuracy"] > 100 / 3
    assert len(set(found["1 per class"]["draws"])) > 1
    assert len(set(found["100 %"]["draws"])) == 1


def test_the_strength_is_chosen_on_validation_alone():
    train, test = made(300, 0, noise=2.0), made(200, 2, noise=2.0)
    for seed in range(3):
        validation = made(100, 10 + seed, noise=2.0)
        chosen = low_label.choose(train, validation, **BUDGETS)
        for name, wanted in low_label.budgets(train[1], BUDGETS["shares"], BUDGETS["per_class"]).items():
            for draw, probe in enumerate(chosen[name].probes):
                rows = low_label.rows_of(train[1], draw, wanted)
                few = train[0][rows], train[1][rows]
                path = linear.fit(few, strengths=STRENGTHS, classes=3, change=linear.COARSE)
                heights = [accuracy(other.predict(validation[0]), validation[1]) for _, other in path]
                assert accuracy(probe.predict(validation[0]), validation[1]) == max(heights)
    scrambled = low_label.read(chosen, (test[0], test[1].roll(1)))
    assert scrambled != low_label.read(chosen, test)


# ---- Fine-tuning

RECIPE = FineTuning(epochs=4, batch_size=16, lr=5e-3, weight_decay=0.01)
FACTS = {"size": 8, "vocabulary": 40, "length": 12}
ENCODERS = {
    "resnet": ("image", {"architecture": "ResNet", "width": 4, "blocks": [1, 1], "stride": 2}),
    "noisy": ("image", {"architecture": "ResNet", "width": 4, "blocks": [1, 1], "stride": 2, "noise": [0.2]}),
    "vit": ("image", {"architecture": "ViT", "patch": 4, "width": 16, "depth": 2, "heads": 2}),
    "projection": ("image", {"architecture": "Projection", "side": 8, "width": 8}),
    "dictionary": ("image", {"architecture": "Dictionary", "patch": 3, "width": 4}),
    "text": ("text", {"architecture": "TextTransformer", "width": 16, "depth": 2, "heads": 2}),
    "causal": ("text", {"architecture": "TextTransformer", "width": 16, "depth": 2, "heads": 2, "causal": True}),
    "words": ("text", {"architecture": "BagOfWords", "width": 8}),
    "image_text": (
        "image_text",
        {
            "architecture": "ImageText",
            "width": 4,
            "blocks": [1, 1],
            "stride": 2,
            "words": 16,
            "depth": 1,
            "heads": 2,
            "shared": 8,
        },
    ),
    "image_only": ("image_text", {"architecture": "ResNet", "width": 4, "blocks": [1, 1], "stride": 2}),
    "audio_visual": (
        "video_audio",
        {"architecture": "AudioVisual", "width": 4, "blocks": [1, 1], "stride": 2, "shared": 8},
    ),
}


def rows_of_all_kinds(rows, seed):
    """Every column that a modality reads; the label is in each: a colour, a topic, a loud band."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(rows) % 3
    image = torch.randint(0, 120, (rows, 3, 8, 8), generator=generator, dtype=torch.uint8)
    image[torch.arange(rows), label] += 80
    words = 5 + 10 * label[:, None] + torch.randint(10, (rows, 10), generator=generator)
    edge = torch.ones(rows, 1, dtype=torch.int64)
    sound = torch.randint(0, 60, (rows, 8, 9), generator=generator, dtype=torch.uint8)
    for band in range(3):
        sound[label == band, :, 3 * band : 3 * band + 3] += 120
    return {
        "image": image,
        "token": torch.cat([edge, words, 2 * edge], dim=1).int(),
        "sound": sound,
        "video": image[:, None].expand(rows, 2, 3, 8, 8),
    }, label


def examples(rows, seed):
    columns, label = rows_of_all_kinds(rows, seed)
    return finetune.Examples(lambda at: {name: column[at] for name, column in columns.items()}, label)


def made_encoder(name):
    modality, settings = ENCODERS[name]
    torch.manual_seed(1)
    return load_modality(modality), build_encoder(settings, FACTS)


def tuned(look, encoder, train, validation, recipe=RECIPE):
    with torch.no_grad():
        frozen = look.features(encoder.eval(), train.batch(torch.arange(len(train.labels))))
    kind = {"recipe": recipe, "frozen": frozen, "classes": 3, "precision": torch.float32, "block": 20}
    kind["advance"] = lambda share: None
    return finetune.tune(encoder, look.features, train, validation, **kind)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_features_to_tune_are_the_deepest_of_the_first_tower(name):
    look, encoder = made_encoder(name)
    batch, _ = rows_of_all_kinds(10, 0)
    *_, deepest = next(iter(look.embed(encoder.eval(), batch).values())).values()
    torch.testing.assert_close(look.features(encoder, batch), deepest)
    assert deepest.shape[1] == encoder.dim


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_learns_end_to_end_and_is_itself_left_as_it_was(name):
    look, encoder = made_encoder(name)
    before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
    train, validation, test = examples(120, 0), examples(48, 1), examples(60, 2)
    found = tuned(look, encoder, train, validation)
    assert all(tensor.equal(before[key]) for key, tensor in encoder.state_dict().items())
    moved = {key for key, tensor in found.network.encoder.state_dict().items() if not tensor.equal(before[key])}
    first = next(iter(dict(tower_of(encoder).named_parameters())))
    assert any(key.endswith(first) for key in moved), "the gradient reached no early weight"
    assert finetune.score(found.network, test, block=7) > 60


def tower_of(encoder: nn.Module) -> nn.Module:
    """The tower that is tuned."""
    return next((getattr(encoder, tower) for tower in ("ear", "eye") if hasattr(encoder, tower)), encoder)


def test_the_other_tower_is_not_touched():
    look, encoder = made_encoder("audio_visual")
    found = tuned(look, encoder, examples(60, 0), examples(30, 1))
    for name, weight in found.network.encoder.eye.named_parameters():
        assert weight.equal(encoder.eye.get_parameter(name))


def test_an_encoder_without_weights_is_not_tuned():
    encoder = build_encoder({"architecture": "Pixels", "side": 8}, FACTS)
    assert tuned(load_modality("image"), encoder, examples(60, 0), examples(30, 1)) is None


def test_tuning_is_the_same_every_time_whatever_was_drawn_before():
    modality, settings = ENCODERS["text"]
    look, encoder = load_modality(modality), build_encoder({**settings, "dropout": 0.3}, FACTS)
    runs = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        runs.append(tuned(look, encoder, examples(60, 0), examples(30, 1)))
    assert runs[0].curve == runs[1].curve
    weights, others = (run.network.state_dict() for run in runs)
    assert all(tensor.equal(others[name]) for name, tensor in weights.items())


def test_the_best_epoch_is_kept_and_test_is_not_asked():
    """Validation's labels are those of an untaught network's guess, so that its accuracy falls with every epoch."""
    look, encoder = made_encoder("resnet")
    train = examples(120, 0)
    one = tuned(look, encoder, train, examples(48, 1), RECIPE.model_copy(update={"epochs": 1}))
    batch = examples(48, 1).batch
    with torch.inference_mode():
        guess = one.network.eval()(batch(torch.arange(48))).argmax(1)
    wrong = finetune.Examples(batch, (guess + 1) % 3)
    found = tuned(look, encoder, train, wrong)
    best = max(found.curve, key=found.curve.get)
    assert found.epoch == best
    assert len(set(found.curve.values())) > 1
    assert finetune.score(found.network, wrong, block=20) == found.curve[best]


def test_the_features_scale_does_not_matter():
    class Scaled(nn.Module):
        def __init__(self, encoder, factor):
            super().__init__()
            self.encoder, self.factor, self.dim = encoder, factor, encoder.dim

        def forward(self, x):
            return self.factor * self.encoder(x)

    look, encoder = made_encoder("vit")
    curves = [
        tuned(look, Scaled(encoder, factor), examples(120, 0), examples(48, 1)).curve for factor in (1e-2, 1, 1e2)
    ]
    assert curves[0] == pytest.approx(curves[2], abs=5)
    assert min(curve[4] for curve in curves) > 60


def test_batches_larger_than_the_data_are_all_of_it():
    look, encoder = made_encoder("resnet")
    found = tuned(look, encoder, examples(40, 0), examples(30, 1), RECIPE.model_copy(update={"batch_size": 999}))
    assert list(found.curve) == [1, 2, 3, 4]
