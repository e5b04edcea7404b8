"""Gradient descent unrolled: the gradient of a loss after training with respect to what was trained on.

A network takes T steps of plain gradient descent on given batches, and a real batch then judges it. The gradient with
respect to the batches' images and targets and to each step size flows back through the whole trajectory (Maclaurin et
al., ICML 2015; Wang et al., arXiv 1811.10959). Only the weights of each step are kept: on the way back each step is
taken again, so memory grows with T times the weights, and not with the activations.

With g the gradient of the training loss l at a step, w' = w - s g, and v the gradient of the final loss with respect to
w', that step contributes

    v - s d(g.v)/dw to the gradient of w, -s d(g.v)/dx to that of its images x, and -g.v to that of s.

g.v is the derivative of l along v. It is computed forwards, and its gradient backwards: a forward pass of twice the
size and one ordinary backward pass, with no second derivative of a convolution's backward pass, and compilable.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, jvp, vmap
from torch.nn import functional as F

from dimdata.engine import Engine
from dimdata.errors import ArgumentError

Weights = dict[str, Tensor]

_SMALL = 2**19  # values of the patches of a batch


@dataclass(frozen=True)
class Gradients:
    """What `Unroll.gradients` returns; means over the networks whose loss and gradients are finite.

    Attributes:
        loss: The loss after training, a scalar.
        images: Its gradient with respect to the images, of their shape.
        targets: With respect to the targets, likewise.
        sizes: With respect to the step sizes, likewise.
        trajectory_bytes: Memory of the stored weights.
    """

    loss: Tensor
    images: Tensor
    targets: Tensor
    sizes: Tensor
    trajectory_bytes: int


class Unroll:
    """Trains networks of one kind by plain gradient descent, and differentiates through it.

    Batches are images `[S, B, C, H, W]`, normalised, and targets `[S, B, K]` (distributions, or any weights of the
    classes); step t of the step sizes `[T]` uses batch t mod S. Everything is computed in the precision of the
    tensors given, never under autocast.

    Args:
        network: A network of the kind, for its structure alone.
        engine: Whether the steps are compiled, and where they run.

    Raises:
        ArgumentError: If training the network is more than a function of its weights and the batch: running
            statistics, or dropout.
    """

    def __init__(self, network: nn.Module, engine: Engine) -> None:
        require_pure(network)
        self._network = network.train()
        self._unfolded: nn.Module | None = None  # the same, for the way back
        self._ranks = {name: parameter.ndim for name, parameter in network.named_parameters()}
        each = (0, None, None, None)
        self._step = engine.compile(self._step_)
        self._steps = engine.compile(vmap(self._step_, in_dims=each))
        self._back = engine.compile(self._back_)
        self._backs = engine.compile(vmap(self._back_, in_dims=(*each, 0)))
        # On a CPU, what the compiler makes of pooling large batches is slower than the library's own.
        on_cpu = engine.device.type == "cpu"
        self._judge = self._judge_ if on_cpu else engine.compile(self._judge_)
        # Several networks share the cost of calls, which a compiled step on a CPU has nearly none of.
        self._together = not (on_cpu and engine.compiled)
        self._small = _SMALL if on_cpu else 0

    def _loss(self, weights: Weights, images: Tensor, targets: Tensor, network: nn.Module | None = None) -> Tensor:
        return F.cross_entropy(functional_call(network or self._network, weights, (images,)), targets)

    # The functions with a trailing underscore are of one network; those without are compiled, or of several.

    def _step_(self, weights: Weights, images: Tensor, targets: Tensor, size: Tensor) -> Weights:
        slope = grad(self._loss)(weights, images, targets)
        return {name: weight - size * slope[name] for name, weight in weights.items()}

    def _back_(
        self, weights: Weights, images: Tensor, targets: Tensor, size: Tensor, after: Weights
    ) -> tuple[Weights, Tensor, Tensor, Tensor]:
        """Return the gradients of weights, images, targets and size, given that of the weights after the step."""

        def along(weights: Weights, images: Tensor, targets: Tensor) -> Tensor:
            slope: Tensor = jvp(lambda w: self._loss(w, images, targets, self._unfolded), (weights,), (after,))[1]
            return slope

        (of_weights, of_images, of_targets), slope = grad_and_value(along, argnums=(0, 1, 2))(weights, images, targets)
        before = {name: value - size * of_weights[name] for name, value in after.items()}
        return before, -size * of_images, -size * of_targets, -slope

    def _judge_(self, weights: Weights, images: Tensor, labels: Tensor) -> tuple[Weights, Tensor]:
        slope, loss = grad_and_value(self._loss)(weights, images, labels)
        return slope, loss

    def trajectory(
        self, weights: Sequence[Mapping[str, Tensor]], images: Tensor, targets: Tensor, sizes: Tensor
    ) -> list[Weights]:
        """Return the weights before each step and after the last, T + 1 in all.

        Args:
            weights: Of one network or more. Where there are several, the tensors returned have a first axis for them.
            images: See the class.
            targets: See the class.
            sizes: See the class.
        """
        several = len(weights) > 1
        step = self._steps if several else self._step
        if several:
            now = {name: torch.stack([w[name] for w in weights]) for name in weights[0]}
        else:
            now = {name: _in_channels_last(weight) for name, weight in weights[0].items()}
        path = [now]
        with torch.no_grad():
            for t, size in enumerate(sizes.unbind()):
                batch = t % len(images)
                now = step(now, images[batch], targets[batch], size)
                path.append(now)
        return path

    def gradients(
        self,
        weights: Sequence[Mapping[str, Tensor]],
        images: Tensor,
        targets: Tensor,
        sizes: Tensor,
        real: Tensor,
        labels: Tensor,
        *,
        window: int = 0,
        limit: float = 0.0,
    ) -> Gradients:
        """Train networks, judge them by the cross-entropy of a real batch, and return its gradients.

        Args:
            weights: The first weights of one network or more, as `named_parameters` names them.
            images: See the class.
            targets: See the class.
            sizes: See the class.
            real: Normalised images `[M, C, H, W]`. Several networks share them out in their order, M / N each:
                networks differ more than batches do.
            labels: int64 `[M]`, or distributions `[M, K]`.
            window: Go back through so many of the last steps only, as if the weights before them were given; 0 = all.
            limit: Cut the gradient of a network, for images, targets and step sizes each, to so many times the median
                norm of those of all networks, so that one on the edge of divergence does not decide; 0 = never.
        """
        count = len(weights)
        if self._unfolded is None:
            self._unfolded = unfolded(self._network, images[0], self._small)
        path = self.trajectory(weights, images, targets, sizes)
        stored = sum(t.numel() * t.element_size() for point in path for t in point.values())
        after, loss = self._verdict(path.pop(), count, real, labels)
        of_images = images.new_zeros(count, *images.shape)
        of_targets = targets.new_zeros(count, *targets.shape)
        of_sizes = sizes.new_zeros(count, *sizes.shape)
        with torch.no_grad():
            for t in reversed(range(max(0, len(sizes) - window) if window else 0, len(sizes))):
                batch = t % len(images)
                step = (images[batch], targets[batch], sizes[t])
                after, image, target, size = self._backwards(path.pop(), step, after, count)
                of_images[:, batch] += image
                of_targets[:, batch] += target
                of_sizes[:, t] = size
        if limit and count > 1:
            of_images, of_targets, of_sizes = (_cut_to_median(x, limit) for x in (of_images, of_targets, of_sizes))
        mean = _mean_of_finite(loss, of_images, of_targets, of_sizes)
        return Gradients(mean[0], mean[1], mean[2], mean[3], stored)

    def _backwards(
        self, weights: Weights, step: tuple[Tensor, Tensor, Tensor], after: Weights, count: int
    ) -> tuple[Weights, Tensor, Tensor, Tensor]:
        """Return what `_back_` does, with a first axis where there are several networks."""
        if count == 1:
            return self._back(weights, *step, after)
        if self._together:
            return self._backs(weights, *step, after)
        each = [self._back(_one(weights, k), *step, _one(after, k)) for k in range(count)]
        before = {name: torch.stack([found[0][name] for found in each]) for name in after}
        images, targets, sizes = (torch.stack(found) for found in list(zip(*each, strict=True))[1:])
        return before, images, targets, sizes

    def losses(self, last: Weights, real: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy `[N]` of the networks that `trajectory` ends with, on their shares of a batch."""
        name, tensor = next(iter(last.items()))
        count = len(tensor) if tensor.ndim > self._ranks[name] else 1
        return self._verdict(last, count, real, labels)[1]

    def _verdict(self, last: Weights, count: int, real: Tensor, labels: Tensor) -> tuple[Weights, Tensor]:
        """Return the gradients of the last weights, and the loss of each network `[N]` on its share of the batch."""
        with torch.no_grad():
            if count == 1:
                slope, loss = self._judge(last, real, labels)
                return slope, loss[None]
            # One by one: on a large batch several networks at once are slower, and need the memory of all.
            shares = zip(real.tensor_split(count), labels.tensor_split(count), strict=True)
            each = [self._judge(_one(last, k), *share) for k, share in enumerate(shares)]
            return {n: torch.stack([slope[n] for slope, _ in each]) for n in last}, torch.stack([x for _, x in each])


def _one(weights: Weights, number: int) -> Weights:
    """Return the weights of one of several networks."""
    return {name: tensor[number] for name, tensor in weights.items()}


def _in_channels_last(weight: Tensor) -> Tensor:
    """Return the weight of a convolution in the memory order that it runs fastest in, and others as they are."""
    return weight.contiguous(memory_format=torch.channels_last) if weight.ndim == 4 else weight


def _cut_to_median(gradients: Tensor, limit: float) -> Tensor:
    """Shorten the gradients `[N, ...]` that are longer than `limit` times the median of those that are finite."""
    norms = torch.linalg.vector_norm(gradients.flatten(1), dim=1)
    most = limit * torch.where(norms.isfinite(), norms, torch.nan).nanmedian()
    scale: Tensor = (most / norms.clamp_min(1e-30)).clamp(max=1.0)
    return gradients * scale.view(-1, *(1,) * (gradients.ndim - 1))


def _mean_of_finite(loss: Tensor, *gradients: Tensor) -> tuple[Tensor, ...]:
    """Return means over the first axis, without the networks whose training diverged; NaN where all did."""
    fine = loss.isfinite()
    for gradient in gradients:
        fine = fine & gradient.flatten(1).isfinite().all(1)
    weight = fine.to(loss.dtype) / fine.sum()
    return tuple(
        torch.where(fine.view(-1, *(1,) * (t.ndim - 1)), t, 0).mul(weight.view(-1, *(1,) * (t.ndim - 1))).sum(0)
        for t in (loss, *gradients)
    )


class UnfoldedConv2d(nn.Conv2d):
    """A convolution as one product of its weight with the patches of its input.

    The derivative of a convolution along its weight also convolves the derivative of its input, be that all zeros as
    for images that are given. A product leaves it out, forwards and backwards.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` as the convolution does."""
        if isinstance(self.padding, str):
            return super().forward(images)
        patches = F.unfold(images, self.kernel_size, self.dilation, self.padding, self.stride)
        out = self.weight.flatten(1) @ patches
        if self.bias is not None:
            out = out + self.bias[:, None]
        sides = zip(images.shape[2:], self.kernel_size, self.dilation, self.padding, self.stride, strict=True)
        rows, columns = (
            (side + 2 * pad - gap * (kernel - 1) - 1) // step + 1 for side, kernel, gap, pad, step in sides
        )
        return out.view(len(images), -1, rows, columns)


def unfolded(network: nn.Module, images: Tensor, small: int = 0) -> nn.Module:
    """Return a copy of a network in which some convolutions are unfolded.

    Args:
        network: The network.
        images: A batch `[B, C, H, W]` of the size that it will be given.
        small: Patches of so many values or fewer are worth a product wherever they are. Beyond, only the convolutions
            that the images reach first are unfolded, as no weight has had a say in their input.
    """
    copied = copy.deepcopy(network).requires_grad_()
    chosen: list[nn.Conv2d] = []

    def look(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        if type(module) is nn.Conv2d and module.groups == 1 and not isinstance(module.padding, str):
            values = len(images) * module.weight[0].numel() * out[0, 0].numel()
            if module.padding_mode == "zeros" and (values <= small or not given[0].requires_grad):
                chosen.append(module)

    hooks = [module.register_forward_hook(look) for module in copied.modules()]
    with torch.enable_grad():
        copied(images.detach()[:1])
    for hook in hooks:
        hook.remove()
    for module in chosen:
        module.__class__ = UnfoldedConv2d
    return copied


def require_pure(network: nn.Module) -> None:
    """Refuse a network whose training is more than a function of weights and batch.

    Raises:
        ArgumentError: If it keeps running statistics, or has dropout.
    """
    kind = type(network).__name__
    running = any(True for _ in network.buffers())
    dropout = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in network.modules())
    if running or dropout:
        what = "keeps running statistics (batch normalisation)" if running else "has dropout"
        raise ArgumentError(
            f"{kind} {what}, so its training cannot be unrolled.",
            "Use a student without, such as lenet or convnet3 (instance normalisation).",
        )
