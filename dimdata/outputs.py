"""The forms in which a dataset hands out its images."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from dimdata.errors import ArgumentError, nearest
from dimdata.generators.base import Generator
from dimdata.spec import Spec
from dimdata.whitening import Whitening

Output = Literal["tensor", "normalized", "uint8", "pil"]


@dataclass(frozen=True)
class Normalize:
    """A transform of images in [0, 1] to what students see; it can be pickled.

    Args:
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        whitening: What whitens images, instead of mean and deviation.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    whitening: Whitening | None = None

    @classmethod
    def of(cls, generator: Generator) -> Normalize:
        """Return the transform that a generator's own recipe asks for."""
        spec = generator.spec
        return cls(spec.mean, spec.std, Whitening.of(generator.recipe, generator.recipe_tensors))

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise floating images `[C, H, W]` or `[B, C, H, W]`; the result is a new tensor.

        Raises:
            ArgumentError: If the images are not floating, or have another number of channels; or are of another size
                than what whitens them.
        """
        if not isinstance(images, Tensor) or not images.is_floating_point():
            what = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise ArgumentError(
                f"normalize was given {what}; it works on float tensors in [0, 1].",
                "Put torchvision's ToTensor() before it, or divide uint8 by 255.",
            )
        if images.ndim not in (3, 4) or images.shape[-3] != len(self.mean):
            raise ArgumentError(
                f"normalize was given shape {list(images.shape)}; it works on [C, H, W] and [B, C, H, W] "
                f"with C = {len(self.mean)}."
            )
        if self.whitening is not None:
            if images.shape[-3:] != self.whitening.mean.shape:
                raise ArgumentError(
                    f"normalize was given images of shape {list(images.shape[-3:])}; it whitens images of shape "
                    f"{list(self.whitening.mean.shape)}."
                )
            return self.whitening(images).to(images.dtype)
        mean = _column(self.mean, images.dtype, images.device)
        return (images - mean).div_(_column(self.std, images.dtype, images.device))


@functools.lru_cache(maxsize=64)
def _column(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """One value a channel, `[C, 1, 1]`."""
    with torch.inference_mode(False):  # it is kept, and later ones may be differentiated through
        return torch.tensor(values, dtype=dtype, device=device)[:, None, None]


def to_uint8(images: Tensor) -> Tensor:
    """Round float images in [0, 1] to uint8 in 0..255; what lies beyond is clipped."""
    return (images * 255).round_().clamp_(0, 255).to(torch.uint8)


def to_pil(image: Tensor) -> Any:
    """Return a uint8 image `[C, H, W]` as a PIL image, mode L or RGB."""
    from PIL import Image

    array = image.cpu().permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def converter(output: str, spec: Spec, normalize: Normalize) -> Callable[[Tensor], Tensor] | None:
    """Return what turns float images `[B, C, H, W]` of a generator into an output form; none where nothing is to do.

    PIL images are made from uint8 ones, image by image, by `to_pil`.

    Args:
        output: The form.
        spec: What the generator is.
        normalize: Its transform, for `normalized`.

    Raises:
        ArgumentError: If there is no such form, or the images do not fit it.
    """
    if output not in get_args(Output):
        raise ArgumentError(f"output is {output!r}.", nearest(str(output), get_args(Output)))
    if output == "pil" and spec.image_shape[0] not in (1, 3):
        raise ArgumentError(
            f"PIL images have 1 or 3 channels here, and these have {spec.image_shape[0]}.", 'Use output="tensor".'
        )
    if output == "tensor":
        return None
    return normalize if output == "normalized" else to_uint8
