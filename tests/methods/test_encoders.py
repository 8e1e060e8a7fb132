"""How encoders are found, and what any of them has."""

import pytest
import torch
from torch import nn

from ssl_methods import architectures, families, load, load_architecture


def test_an_architecture_is_a_class_in_one_of_the_files():
    assert load_architecture("ViT").__module__ == "ssl_methods.encoders.transformers"
    assert load_architecture("AudioVisual").__module__ == "ssl_methods.encoders.pairs"
    assert {"ResNet", "TextTransformer", "Dictionary"} <= architectures().keys()
    assert architectures().keys().isdisjoint({"Block", "Attention", "Transformer"})  # an encoder has `depths`


def test_an_unknown_architecture_is_named_beside_the_nearest():
    with pytest.raises(ValueError, match="unknown architecture 'VIT'; did you mean 'ViT'\\? known: AudioVisual, "):
        load_architecture("VIT")


def test_what_methods_share_is_no_method():
    assert not {"encoders", "parts", "modalities"} & set(families().values())
    for name in ("heads", "convolutional", "image"):
        with pytest.raises(ValueError, match=f"unknown method '{name}'"):
            load(name)


def test_weights_have_the_names_of_plain_layers():
    """Published weights load by these names, and a seed draws them in this order."""
    torch.manual_seed(0)
    encoder = load_architecture("ResNet")(width=4, blocks=[1, 1])
    convolutions = [name for name, layer in encoder.named_modules() if type(layer) is nn.Conv2d]
    assert convolutions == [
        "stem",
        "stages.0.0.conv1",
        "stages.0.0.conv2",
        "stages.1.0.conv1",
        "stages.1.0.conv2",
        "stages.1.0.shortcut.0",
    ]
    assert not any(layer.bias is not None for layer in encoder.modules() if isinstance(layer, nn.Conv2d))
