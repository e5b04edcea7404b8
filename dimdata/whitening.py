"""ZCA whitening: the linear map of images that gives all directions of pixel space about the same variance.

It takes the place of normalisation by mean and deviation where a recipe asks for it (MTT on CIFAR; Cazenavette et al.,
CVPR 2022): students see whitened images, generated and real test images alike, and are augmented after it. Images
themselves stay images; what whitens them is stored with the generator, so that nobody has to fit it anew.

With the mean m of the real images and the principal components u_k of variance v_k, an image x becomes

    (x - m) / sqrt(eps)  +  sum over k of (1 / sqrt(v_k + eps) - 1 / sqrt(eps)) (u_k . (x - m)) u_k

which is the product with (covariance + eps)^(-1/2) once all components are taken. Those of a variance below a
twentieth of `eps` are left out: there the factor is 1 / sqrt(eps) within 2.5 percent. The map stays invertible, and
what has to be kept is components x pixels instead of pixels x pixels: 4.2 MB for CIFAR-10 at eps = 0.1, not 18.9 MB.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dimdata.errors import ArgumentError, FormatError
from dimdata.recipe import WHITENING, Recipe, WhiteningSpec

NEGLIGIBLE = 0.05  # a component of a smaller share of eps is left out
MAX_SIZE = 3 * 72 * 72  # values of an image: beyond, a fit takes more than 2 GB, and minutes
_ROWS = 4096  # images at a time of a fit
_NAMES = ("mean", "components", "variances")


class Whitening:
    """A fitted whitening; immutable, cheap to copy and to pickle beside its tensors.

    Args:
        spec: Regularisation and number of components.
        mean: float32 `[C, H, W]`, of images in [0, 1].
        components: float16 `[K, C, H, W]`, unit vectors of pixel space.
        variances: float32 `[K]`, of the images along these.

    Raises:
        FormatError: If the tensors do not fit one another or the spec, or hold values that no fit gives.
    """

    def __init__(self, spec: WhiteningSpec, mean: Tensor, components: Tensor, variances: Tensor) -> None:
        shapes = spec.shapes(tuple(mean.shape))
        for name, tensor in zip(_NAMES, (mean, components, variances), strict=True):
            dtype, shape = shapes[name]
            if (tensor.dtype, tuple(tensor.shape)) != (dtype, shape):
                raise FormatError(
                    f"{WHITENING}{name} is {tensor.dtype} {list(tensor.shape)}, not {dtype} {list(shape)}."
                )
        if not bool((variances >= 0).all()) or not bool((components.abs() <= 1).all()):
            raise FormatError("The whitening is none: its components are no unit vectors, or a variance is negative.")
        self.spec, self.mean, self.components, self.variances = spec, mean, components, variances
        self._placed: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    @classmethod
    def fit(cls, images: Tensor, eps: float, device: torch.device | str = "cpu") -> Whitening:
        """Fit to real images.

        Args:
            images: uint8 `[N, C, H, W]`, at least two.
            eps: What is added to each variance, in squares of pixel values in [0, 1]; MTT's is 0.1.
            device: Where to compute.

        Returns:
            The whitening, on the CPU.

        Raises:
            ArgumentError: If images have more than `MAX_SIZE` values, C * H * W.
        """
        device = _precise(torch.device(device))
        shape, size = images.shape[1:], images[0].numel()
        if size > MAX_SIZE:
            raise ArgumentError(
                f"Whitening images of {size:,} values takes a matrix of {8 * size**2 / 1e9:,.0f} GB; {MAX_SIZE:,} "
                "values are the most.",
                "Resize the images (--size), or leave out zca.",
            )
        parts = torch.split(images.flatten(1), _ROWS)
        total = torch.stack([part.to(torch.int64).sum(0) for part in parts]).sum(0)
        mean = total.to(device, torch.float64) / len(images) / 255
        covariance = torch.zeros(size, size, dtype=torch.float64, device=device)
        for part in parts:
            rows = (part.to(device, torch.float64) / 255 - mean).to(torch.float32)
            covariance += rows.T @ rows
        variances, vectors = torch.linalg.eigh(covariance / (len(images) - 1))  # rising
        kept = max(1, int((variances > NEGLIGIBLE * eps).sum()))
        variances, vectors = variances.flip(0)[:kept].clamp(min=0), vectors.flip(1)[:, :kept].T
        return cls(
            WhiteningSpec(eps=eps, components=kept),
            mean.to("cpu", torch.float32).view(shape),
            vectors.to("cpu", torch.float16).reshape(kept, *shape),
            variances.to("cpu", torch.float32),
        )

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean `[P]`, components `[K, P]` and what each adds to the factor 1 / sqrt(eps), `[K]`, in float32."""
        if device not in self._placed:
            with torch.inference_mode(False):  # they are kept, and later calls may be differentiated
                mean, components, variances = (t.to(device, torch.float32, copy=True) for t in self._tensors())
                gains = (variances + self.spec.eps).rsqrt() - self.spec.eps**-0.5
                unit = F.normalize(components.flatten(1))  # as they were before they were rounded
                self._placed[device] = (mean.flatten(), unit, gains)
        return self._placed[device]

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.mean, self.components, self.variances

    def __call__(self, images: Tensor) -> Tensor:
        """Whiten images `[C, H, W]` or `[B, C, H, W]`, floating in [0, 1]; differentiable."""
        mean, components, gains = self._on(images.device)
        with torch.autocast(images.device.type, enabled=False):
            rows: Tensor = images.to(torch.float32).reshape(-1, len(mean)) - mean
            rows = rows * self.spec.eps**-0.5 + (rows @ components.T * gains) @ components
        return rows.view(images.shape)

    def inverse(self, whitened: Tensor) -> Tensor:
        """Return the images float32 `[C, H, W]` or `[B, C, H, W]` that become the given ones."""
        device = _precise(whitened.device)
        mean, components, gains = self._on(device)
        with torch.autocast(device.type, enabled=False):
            rows: Tensor = whitened.to(device, torch.float32).reshape(-1, len(mean))
            # (c + U'GU)^-1 = (1 - U'G (c + UU'G)^-1 U) / c, exact for components that are rounded to float16, too.
            scale = self.spec.eps**-0.5
            inner = components.double() @ components.double().T * gains.double()
            inner.diagonal().add_(scale)
            found = torch.linalg.solve(inner, (rows @ components.T).double().T).T.to(torch.float32)
            rows = (rows - found * gains @ components) / scale + mean
        return rows.view(whitened.shape).to(whitened.device)

    def tensors(self) -> dict[str, Tensor]:
        """Return what a recipe stores, by name; see `Whitening.of`."""
        return {f"{WHITENING}{name}": tensor for name, tensor in zip(_NAMES, self._tensors(), strict=True)}

    @classmethod
    def of(cls, recipe: Recipe, tensors: Mapping[str, Tensor]) -> Whitening | None:
        """Return the whitening that a recipe asks for; none where it asks for none.

        Args:
            recipe: The recipe.
            tensors: Those that it names.

        Raises:
            FormatError: If they are missing or do not fit.
        """
        if recipe.whitening is None:
            return None
        missing = [name for name in _NAMES if f"{WHITENING}{name}" not in tensors]
        if missing:
            raise FormatError(f"The recipe's whitening lacks the tensor {WHITENING}{missing[0]}.")
        return cls(recipe.whitening, *(tensors[f"{WHITENING}{name}"] for name in _NAMES))

    def __reduce__(self) -> Any:
        return type(self), (self.spec, *self._tensors())

    def __deepcopy__(self, memo: dict[int, Any]) -> Whitening:
        return self


def _precise(device: torch.device) -> torch.device:
    """Return the device, or the CPU for one that has no float64."""
    return torch.device("cpu") if device.type == "mps" else device
