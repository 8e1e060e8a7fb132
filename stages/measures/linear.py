"""The linear probe: multinomial logistic regression on standardised features.

    minimise over W, b    mean cross-entropy(W x + b, label) + strength / 2 * |W|^2

which is scikit-learn's LogisticRegression with C = 1 / (rows * strength). The minimum is unique, so unlike a probe
trained by SGD it has no learning rate, no schedule and no seed to choose.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from . import Labelled, accuracy, best, joined, varying

ITERATIONS = 500  # of L-BFGS: it takes a tenth, but where features all but separate the classes
GRADIENT = 1e-6  # the largest entry of the gradient at which it stops; 1e-5 gives the same accuracies, 1e-4 does not
EXACT = 1e-9  # the change of the loss at which it stops too: none but rounding
COARSE = 1e-5  # the same where there are many fits or classes: a third of the time, and accuracies within 0.2 points


@dataclass(frozen=True)
class Classifier:
    """A linear map of standardised features to the scores of classes."""

    mean: Tensor  # (D,)
    scale: Tensor  # (D,)
    weight: Tensor  # (C, D)
    bias: Tensor  # (C,)

    def predict(self, features: Tensor) -> Tensor:
        """(N, D) -> (N,) int64"""
        return F.linear((features - self.mean) / self.scale, self.weight, self.bias).argmax(1)


@dataclass(frozen=True)
class Chosen:
    """What validation says of each strength of the penalty, and the classifier that it prefers."""

    curve: dict[float, float]  # accuracy in percent, the strongest first
    classifier: Classifier  # at the best strength, trained on train

    @property
    def strength(self) -> float:
        return best(self.curve)


@dataclass(frozen=True)
class Probe:
    """What a linear probe says of features. Accuracies are in percent."""

    strength: float  # of the L2 penalty, chosen on validation data
    validation: float  # accuracy, trained on train
    test: float  # accuracy, trained on train and validation
    curve: dict[float, float]  # validation accuracy for each strength, the strongest first
    predicted: Tensor = field(compare=False, repr=False)  # the classes of the test rows (N,)


def fit(
    data: Labelled,
    *,
    strengths: Iterable[float],
    classes: int,
    change: float = EXACT,
    start: Classifier | None = None,
) -> Iterator[tuple[float, Classifier]]:
    """(strength, classifier) for each strength, strongest first, each started where the last one ended.

    The first starts from `start`, or from zero. It is a matter of time alone: the minimum is unique.

    L-BFGS works in coordinates in which the loss curves alike in all directions: at W = 0 its second derivative along
    a principal axis of the features is curvature / classes + strength, and along a bias 1 / classes. That takes a sixth
    to a third of the steps.
    """
    features, labels = data
    wide = features.double()
    mean, scale = wide.mean(0), torch.where(varying(wide), wide.std(0, correction=0), 1)
    x = ((wide - mean) / scale).float()  # (N, D)
    curvature, axes = torch.linalg.eigh(x.T @ x / len(x))  # (D,), (D, D)
    x = x @ axes
    weight, bias = x.new_zeros(classes, x.shape[1]), x.new_zeros(classes)  # (C, D), (C,)
    if start:
        weight, bias = start.weight @ axes, start.bias
    for strength in sorted(strengths, reverse=True):
        stretch = (curvature.clamp(min=0) / classes + strength).rsqrt()
        weight, bias = minimise(x, labels, weight, bias, strength, stretch, change)
        yield strength, Classifier(mean.float(), scale.float(), weight @ axes.T, bias)


def minimise(
    x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, strength: float, stretch: Tensor, change: float
) -> tuple[Tensor, Tensor]:
    """The weight (C, D) and bias (C,) of the least loss, started from those given, found as weight / stretch."""
    widen = len(bias) ** 0.5  # the bias's stretch
    inner, shift = (weight / stretch).requires_grad_(), (bias / widen).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [inner, shift],
        max_iter=ITERATIONS,
        tolerance_grad=GRADIENT,
        tolerance_change=change,
        history_size=30,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        weight = inner * stretch
        each = F.cross_entropy(F.linear(x, weight, shift * widen), labels, reduction="none")  # (N,)
        # The mean in doubles: float32 cannot tell losses apart that are nearer than 1e-7.
        found = each.double().mean() + strength / 2 * weight.square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    return inner.detach() * stretch, shift.detach() * widen


def choose(
    train: Labelled, validation: Labelled, *, strengths: Iterable[float], classes: int, change: float = EXACT
) -> Chosen:
    """Trains on train, at each strength, and has validation choose; of equals, the one with most penalty."""
    features, labels = validation
    path = dict(fit(train, strengths=strengths, classes=classes, change=change))
    curve = {strength: accuracy(classifier.predict(features), labels) for strength, classifier in path.items()}
    return Chosen(curve, path[best(curve)])


def read(
    chosen: Chosen, train: Labelled, validation: Labelled, test: Labelled, *, classes: int, change: float = EXACT
) -> Probe:
    """Trains on train and validation together, at the chosen strength, and then reads test, once."""
    both, strength = joined(train, validation), chosen.strength
    ((_, classifier),) = fit(both, strengths=[strength], classes=classes, change=change, start=chosen.classifier)
    predicted = classifier.predict(test[0])
    return Probe(
        strength=strength,
        validation=chosen.curve[strength],
        test=accuracy(predicted, test[1]),
        curve=dict(chosen.curve),
        predicted=predicted,
    )
