"""Encoders with two towers, one for each side of a pair: pictures with captions, video with sound."""

from collections.abc import Sequence

from torch import Tensor, nn

from .. import Count
from .convolutional import ResNet, SoundResNet
from .transformers import TextTransformer


class AudioVisual(nn.Module):
    """Two towers, one for pictures and one for sound, and a linear map from each into a space that both share.

    Films are (N, F, 3, H, W) and spectrograms (N, T, M), both in [0, 1]. A film's features are the mean of its frames'.
    Both towers' features are `dim` wide; alone in the space of width `shared` do sight and sound compare.
    """

    def __init__(
        self,
        *,
        width: Count = 64,
        blocks: Sequence[Count] = (2, 2, 2, 2),
        stride: Count = 1,
        shared: Count = 128,
    ):
        super().__init__()
        self.eye = ResNet(width=width, blocks=blocks, stride=stride)
        self.ear = SoundResNet(width=width, blocks=blocks, stride=stride)
        self.dim = self.ear.dim
        self.share_video, self.share_sound = nn.Linear(self.dim, shared), nn.Linear(self.dim, shared)

    def video(self, x: Tensor) -> Tensor:
        return self.eye(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)  # (N, D)

    def sound(self, x: Tensor) -> Tensor:
        return self.ear(x)  # (N, D)

    def depths(self, video: Tensor, sound: Tensor) -> dict[str, dict[str, Tensor]]:
        """Of each tower, sound first. What enters the shared space is a depth too, but the features are the last."""
        frames = self.eye.depths(video.flatten(0, 1))
        seen = {depth: h.unflatten(0, video.shape[:2]).mean(1) for depth, h in frames.items()}
        return {
            "sound": with_shared(self.ear.depths(sound), self.share_sound),
            "video": with_shared(seen, self.share_video),
        }

    def forward(self, video: Tensor, sound: Tensor) -> tuple[Tensor, Tensor]:
        return self.share_video(self.video(video)), self.share_sound(self.sound(sound))  # (N, S), (N, S)


class ImageText(nn.Module):
    """Two towers, one for pictures and one for text, and a linear map from each into a space that both share.

    Alone in that space, of width `shared`, do pictures and text compare. `words` is the width of the text tower, and
    `depth` and `heads` are its transformer's; its features are the mean of its tokens.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        length: int,
        width: Count = 64,
        blocks: Sequence[Count] = (2, 2, 2, 2),
        stride: Count = 1,
        words: Count = 512,
        depth: Count = 12,
        heads: Count = 8,
        shared: Count = 512,
    ):
        super().__init__()
        self.eye = ResNet(width=width, blocks=blocks, stride=stride)
        self.reader = TextTransformer(
            vocabulary=vocabulary, length=length, width=words, depth=depth, heads=heads, dropout=0.0
        )
        self.dim = self.eye.dim
        self.share_image, self.share_text = nn.Linear(self.dim, shared), nn.Linear(words, shared)

    def image(self, x: Tensor) -> Tensor:
        return self.share_image(self.eye(x))  # (N, S)

    def text(self, ids: Tensor) -> Tensor:
        return self.share_text(self.reader(ids))  # (N, S)

    def depths(self, x: Tensor, ids: Tensor) -> dict[str, dict[str, Tensor]]:
        """Of each tower, pictures first. What enters the shared space is a depth too, but the features are the last."""
        return {
            "image": with_shared(self.eye.depths(x), self.share_image),
            "text": with_shared(self.reader.depths(ids), self.share_text),
        }

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.image(x), self.text(ids)  # (N, S), (N, S)


def with_shared(depths: dict[str, Tensor], share: nn.Module) -> dict[str, Tensor]:
    """A tower's depths, and before the last what enters the space that it shares with another."""
    *earlier, (last, h) = depths.items()
    return dict([*earlier, ("shared", share(h)), (last, h)])
