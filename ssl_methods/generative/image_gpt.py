"""Image GPT: patch after patch, in the order of reading, what comes next must be told from what came before.

Chen et al. Generative Pretraining from Pixels (iGPT). ICML 2020. https://proceedings.mlr.press/v119/chen20s.html
in the form of AIM: El-Nouby et al. Scalable Pre-training of Large Autoregressive Image Models. ICML 2024.
https://arxiv.org/abs/2401.08541

    p(x) = product over k of p(x_k | x_1 ... x_{k-1})                      iGPT section 2.1, AIM section 4.1
    L = mean over k > S of || x_k - g(f(x_1 ... x_{k-1})) ||^2 / (values in a patch)      x_k: normalised pixels
    S ~ uniform on 1 ... K - 1                                             AIM section 4.2: the first S tokens see each
                                                                           other, the others what came before them

Departs from the papers: the head g is not told positions again; crops are those of MAE. Evaluation lets every token
see every other, as the prefix does, and takes the mean of the last layer's tokens; AIM pools by attention, iGPT takes a
middle layer's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Count, Method, NonNegative
from ..encoders.transformers import ViT, patchify, unpatchify
from ..modalities import image
from ..parts.losses import in_float32, masked_mean


def prefix_causal(prefix: Tensor, length: int) -> Tensor:
    """Whether token i may see token j: where j <= i, or both are in the prefix. (N,) -> (N, L, L)."""
    place = torch.arange(length, device=prefix.device)
    return (place <= place[:, None]) | (place < prefix[:, None, None])


@in_float32
def next_patch_error(predicted: Tensor, patches: Tensor, prefix: Tensor) -> Tensor:
    """L: what token k predicts against normalised patch k + 1, behind the prefix. (N, L, P), (N, L, P), (N,)."""
    target = F.layer_norm(patches, patches.shape[-1:], eps=1e-6)
    error = (predicted[:, :-1] - target[:, 1:]).square().mean(-1)  # (N, L - 1)
    counts = torch.arange(1, patches.shape[1], device=prefix.device) >= prefix[:, None]  # (N, L - 1)
    return masked_mean(error, counts)


class Perceptron(nn.Module):
    """Two layers with a residual connection, on each token alone."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, h: Tensor) -> Tensor:  # (N, L, W)
        return h + self.mlp(self.norm(h))


class ImageGPT(Method):
    """AIM, section 4; needs the parts of the ViT."""

    columns = ("image",)

    def __init__(self, encoder: ViT, *, width: Count = 2048, depth: Count = 12, strength: NonNegative = 1.0):
        super().__init__()
        self.encoder = encoder  # f
        enter, leave = nn.Linear(encoder.dim, width), nn.Linear(width, 3 * encoder.patch**2)
        self.head = nn.Sequential(enter, *(Perceptron(width) for _ in range(depth)), nn.LayerNorm(width), leave)  # g
        self.strength = strength

    def forward(self, batch):
        x = image.light_view(image.unit(batch["image"]), self.strength)  # (N, 3, H, W)
        prefix = torch.randint(1, self.encoder.length, (len(x),), device=x.device)  # (N,)
        return next_patch_error(self.predict(x, prefix), patchify(x, self.encoder.patch), prefix), {}

    def predict(self, x: Tensor, prefix: Tensor) -> Tensor:
        """What each token says of the next patch: (N, 3, H, W), (N,) -> (N, L, P)."""
        seen = prefix_causal(prefix, self.encoder.length)  # (N, L, L)
        return self.head(self.encoder.transformer(self.encoder.enter(x), seen))

    def draw(self, batch):
        """Each patch as told from all true ones before it, with its own mean and deviation; the first is given."""
        x = image.unit(batch["image"])  # (N, 3, H, W)
        patches = patchify(x, self.encoder.patch)  # (N, L, P)
        predicted = self.predict(x, torch.ones(len(x), dtype=torch.long, device=x.device))[:, :-1]
        later = patches[:, 1:]
        deviation, mean = torch.std_mean(later, -1, correction=0, keepdim=True)
        drawn = torch.cat([patches[:, :1], predicted * deviation + mean], dim=1)
        return {"output": unpatchify(drawn, self.encoder.patch), "truth": x}
