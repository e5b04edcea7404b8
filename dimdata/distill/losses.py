"""Matching losses: how far generated images are from real ones in the eyes of a network.

Every loss takes what the network says of paired batches (position i of both has the same label) and returns a scalar.
Register another with `MATCHING.register(name)`, from any package through the entry-point group `dimdata.matching`; mark
a function that is nothing for a class with one image in the batch with `of_pairs`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dimdata.registry import Registry


@dataclass(frozen=True)
class View:
    """What a network says of a batch.

    Attributes:
        logits: float32 `[B, K]`.
        features: The input of the last linear layer, float32 `[B, D]`.
        labels: int64 `[B]`.
    """

    logits: Tensor
    features: Tensor
    labels: Tensor


MATCHING: Registry[Callable[[View, View], Tensor]] = Registry("matching loss", "dimdata.matching")

Loss = TypeVar("Loss", bound=Callable[[View, View], Tensor])


def of_pairs(loss: Loss) -> Loss:
    """Mark a matching loss that is nothing for a class with fewer than two images in the batch."""
    loss.of_pairs = True  # type: ignore[attr-defined]
    return loss


@MATCHING.register("logit")
def logit(real: View, fake: View) -> Tensor:
    """Mean squared difference of log-softmax outputs, position by position (DiM, arXiv 2303.04707)."""
    return F.mse_loss(F.log_softmax(fake.logits, 1), F.log_softmax(real.logits, 1))


@MATCHING.register("kl")
def kl(real: View, fake: View, temperature: float = 2.0) -> Tensor:
    """KL divergence of z-scored logits, softened by a temperature (the standardised logits of Li et al., ICASSP 2025).

    It is multiplied by the squared temperature, so that gradients keep their size (Hinton et al., 2015).
    """

    def soft(logits: Tensor) -> Tensor:
        centred = logits - logits.mean(1, keepdim=True)
        return F.log_softmax(centred / (centred.std(1, keepdim=True) + 1e-6) / temperature, 1)

    divergence = F.kl_div(soft(fake.logits), soft(real.logits), log_target=True, reduction="batchmean")
    return divergence * temperature**2


def _class_means(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    weights = F.one_hot(labels, classes).to(values.dtype)
    return (weights.T @ values) / weights.sum(0).clamp_min(1)[:, None]


@MATCHING.register("feature")
def feature(real: View, fake: View) -> Tensor:
    """Mean squared distance of class-wise feature means (Zhao and Bilen, WACV 2023), scaled by the real variance."""
    classes = real.logits.shape[1]
    difference = _class_means(fake.features, fake.labels, classes) - _class_means(real.features, real.labels, classes)
    return difference.square().sum(1).mean() / (real.features.var(0).sum() + 1e-6)


@MATCHING.register("feature-unbiased")
@of_pairs
def feature_unbiased(real: View, fake: View) -> Tensor:
    """Squared distance of class-wise feature means, without the bias of a batch, scaled by the real variance.

    The distance of two means of n samples is, on average, that of the laws' means *plus the variance of each mean*.
    `feature` therefore also asks for generated images of little variance, and the losses that compare position by
    position, where both images are random ones of a class, ask for it n times as strongly. Here the differences d_i of
    position i are multiplied with those of other positions of the class only, <d_i, d_j> with i != j: all ways of
    taking two independent halves at once (a U-statistic, as in the unbiased MMD of Gretton et al., JMLR 2012). Its
    average is the distance of the laws' means alone, so variety costs nothing.

    It can be negative in a batch, and is noisier than `feature`. Classes with one image in the batch do not count.
    Networks that normalise by the batch (batch norm) make the images of a batch depend on one another a little.
    """
    difference = fake.features - real.features
    members = F.one_hot(real.labels, real.logits.shape[1]).to(difference.dtype)
    count = members.sum(0)
    pairs = count * (count - 1)
    products = (members.T @ difference).square().sum(1) - members.T @ difference.square().sum(1)
    distance = (products / pairs.clamp_min(1)).sum() / (pairs > 0).sum().clamp_min(1)
    return distance / (real.features.var(0).sum() + 1e-6)


@MATCHING.register("kernel")
@of_pairs
def kernel(real: View, fake: View) -> Tensor:
    """Squared maximum mean discrepancy of the features of each class, without the bias of a batch.

    Where `feature-unbiased` compares the mean of a class alone, this compares all moments, hence also how varied the
    class is and where it overlaps with others (dataset distillation by MMD: Zhang et al., AAAI 2024). Gaussian kernels
    of a half, one and two times the mean squared distance of real features are averaged; pairs of a position with
    itself are left out (the U-statistic of Gretton et al., JMLR 2012), so the value can be negative in a batch.
    Classes with one image in the batch do not count.
    """
    count = len(real.labels)
    values = torch.cat([real.features, fake.features])
    norms = values.square().sum(1)
    distance = (norms[:, None] + norms[None] - 2 * values @ values.T).clamp_min(0)
    scale = distance[:count, :count].detach().sum() / (count * (count - 1)) + 1e-12
    like = torch.stack([torch.exp(-distance / (scale * width)) for width in (0.5, 1.0, 2.0)]).mean(0)
    real_real, real_fake, fake_fake = like[:count, :count], like[:count, count:], like[count:, count:]
    pairs = (real.labels[:, None] == real.labels[None]).to(values.dtype).fill_diagonal_(0)
    members = pairs.sum(1)
    weights = pairs / (members * (members + 1)).clamp_min(1)[:, None]  # each class counts the same
    total = (weights * (real_real + fake_fake - real_fake - real_fake.T)).sum()
    return total / weights.sum().clamp_min(1e-12)


@MATCHING.register("gradient")
def gradient(real: View, fake: View) -> Tensor:
    """Distance of the gradients that the two batches give the last linear layer (after Zhao et al., ICLR 2021).

    The gradient of cross entropy with respect to that layer has a closed form, so that no second backward pass is
    needed: the mean over the batch of (softmax - one-hot) times the features.
    """

    def last_layer(view: View) -> Tensor:
        error = F.softmax(view.logits, 1) - F.one_hot(view.labels, view.logits.shape[1])
        return error.T @ view.features / len(error)

    expected, given = last_layer(real), last_layer(fake)
    return (1 - F.cosine_similarity(given, expected, dim=1, eps=1e-8)).mean()


@MATCHING.register("label")
def label(real: View, fake: View) -> Tensor:
    """Cross entropy of generated images under their labels: no real image takes part. For comparison."""
    return F.cross_entropy(fake.logits, fake.labels)


@dataclass(frozen=True)
class Adversarial:
    """The two sides of an adversarial game on scores `[B]` of paired real and generated images.

    Attributes:
        discriminator: From scores of real and of generated images to the critic's loss.
        generator: From the same to the generator's.
        relative: Whether the generator's loss looks at the scores of real images.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]
    relative: bool = True


ADVERSARIAL: Registry[Adversarial] = Registry("adversarial loss", "dimdata.adversarial")

ADVERSARIAL.register("hinge")(
    Adversarial(  # Lim and Ye, arXiv 1705.02894
        discriminator=lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(),
        generator=lambda real, fake: -fake.mean(),
        relative=False,
    )
)
ADVERSARIAL.register("wasserstein")(
    Adversarial(  # Arjovsky et al., ICML 2017; needs a penalty, see `dimdata.distill.penalties`
        discriminator=lambda real, fake: fake.mean() - real.mean(),
        generator=lambda real, fake: -fake.mean(),
        relative=False,
    )
)
ADVERSARIAL.register("relativistic")(
    Adversarial(  # Huang et al., NeurIPS 2024
        discriminator=lambda real, fake: F.softplus(fake - real).mean(),
        generator=lambda real, fake: F.softplus(real - fake).mean(),
    )
)


def flatness(score: Tensor, moved: Tensor, distance: float) -> Tensor:
    """Squared slope of the discriminator along a random direction, `[B]` scores at both ends, `distance` apart.

    Its mean is the zero-centred gradient penalty of Mescheder et al. (ICML 2018) by finite differences; needs no
    second backward pass, hence compiles.
    """
    return ((moved - score) / distance).square().mean()
