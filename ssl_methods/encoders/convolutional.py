"""Residual networks, for pictures and for sound.

Pictures come in [0, 1], and the encoder centres them itself, so that no method can forget to.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import Count, Fraction


def centre(x: Tensor) -> Tensor:
    """Pictures in [0, 1] to about zero mean and unit variance, the same for every data set."""
    return (x - 0.5) * 4


class Block(nn.Module):
    """The basic residual block. He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. CVPR 2016.

    https://arxiv.org/abs/1512.03385
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(self.conv1(x)).relu_()  # in place, for no backward pass needs what comes out of a norm
        return self.norm2(self.conv2(h)).add_(self.shortcut(x)).relu_()


class ResNet(nn.Module):
    """A residual network for small pictures: a 3x3 stem with padding 1 (5x5 where its stride is 4), no max-pooling.

    `width` 64 and `blocks` [2, 2, 2, 2] is the ResNet-18 of the CIFAR literature. `stride` in the stem makes everything
    that follows cheaper, by its square, which suits a laptop. `noise` lists shares of variance, of pictures from -1 to
    1: its depths are then also the features of pictures in that much noise, where a denoiser has something to look for.
    """

    def __init__(
        self,
        *,
        width: Count = 64,
        blocks: Sequence[Count] = (2, 2, 2, 2),
        stride: Count = 1,
        noise: Sequence[Fraction] = (),
    ):
        super().__init__()
        self.noise = noise
        side = max(3, stride | 1)  # odd, and at least the stride, so that no pixel is passed over
        self.stem = nn.Conv2d(3, width, side, stride, padding=side // 2, bias=False)
        self.norm = nn.BatchNorm2d(width)
        stages, inputs = [], width
        for depth, count in enumerate(blocks):
            outputs = width * 2**depth
            first = Block(inputs, outputs, stride=2 if depth else 1)
            stages.append(nn.Sequential(first, *(Block(outputs, outputs, stride=1) for _ in range(count - 1))))
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.dim = inputs

    def maps(self, x: Tensor) -> list[Tensor]:
        """The feature maps (N, D, h, w) after each stage; each stage doubles the width and halves the sides."""
        h = centre(x).contiguous(memory_format=torch.channels_last)  # (N, 3, H, W)
        h = self.norm(self.stem(h)).relu_()
        return [h := stage(h) for stage in self.stages]

    def depths(self, x: Tensor) -> dict[str, Tensor]:
        *earlier, last = ((f"stage {i}", h.mean((2, 3))) for i, h in enumerate(self.maps(x), 1))
        return dict([*earlier, *((f"noise {s}", self(self.noisy(x, s))) for s in self.noise), last])

    def noisy(self, x: Tensor, share: float) -> Tensor:
        """The same noise in every picture, so that what is beside it in a batch does not matter."""
        noise = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x)  # (3, H, W)
        return ((1 - share) ** 0.5 * (2 * x - 1) + share**0.5 * noise + 1) / 2

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x)[-1].mean((2, 3))  # (N, D)


class SoundResNet(ResNet):
    """The same network for spectrograms (N, T, M) in [0, 1], which are pictures of one channel."""

    def __init__(self, *, width: Count = 64, blocks: Sequence[Count] = (2, 2, 2, 2), stride: Count = 1):
        super().__init__(width=width, blocks=blocks, stride=stride)
        self.stem = nn.Conv2d(1, width, self.stem.kernel_size, stride, self.stem.padding, bias=False)

    def maps(self, x: Tensor) -> list[Tensor]:
        return super().maps(x[:, None])
