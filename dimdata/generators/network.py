"""Generators that are networks: unlimited images from noise (DiM, arXiv 2303.04707)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from dimdata.errors import FormatError
from dimdata.generators.base import GENERATORS, Generator
from dimdata.recipe import Recipe
from dimdata.registry import Registry
from dimdata.spec import Record, Spec, require

ARCHITECTURES: Registry[type[Architecture]] = Registry(
    "generator network",
    "dimdata.architectures",
    tuple(f"dimdata.generators.{name}" for name in ("acgan", "coded", "pyramid")),
)


MAX_VALUES = 2**28  # of the largest map of an image, 16 x 4,096 x 4,096: 1 GiB


def require_room(channels: int, height: int, width: int) -> None:
    """Refuse a map of an image that would take too much memory: few weights can ask for any amount.

    Raises:
        FormatError: If it has over `MAX_VALUES` values.
    """
    count = channels * height * width
    require(
        count <= MAX_VALUES,
        f"generator.options and image_shape imply a map of {channels:,} x {height:,} x {width:,} values for each "
        f"image; {MAX_VALUES:,} are the most.",
    )


class Architecture(nn.Module, ABC):
    """A network from latents and labels to images; a subclass registers itself and declares its `Config`."""

    Config: type[Record]

    def __init__(self, config: Record, spec: Spec) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        """Map latents `[B, Z]` and labels int64 `[B]` to images `[B, C, H, W]` in the value range."""

    def start_at(self, mean: Sequence[float]) -> None:
        """Let an untrained network draw images of about this mean of each channel, in [0, 1], where it knows how."""

    def start_varied(self) -> None:
        """Let an untrained network draw images that differ from latent to latent, where it knows how.

        Under torch's own initial weights each layer passes on a sixth of the variance, so that they are all but alike.
        """

    def shared(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters that the first stage of a progressive distillation trains for all.

        There are none where each stage is a whole network.
        """
        return ()

    @classmethod
    def joined(cls, parts: Sequence[Generator], recipe: Recipe, method: str) -> Generator:
        """Return generators of one such network each as the stages of one; see `Generator.joined`."""
        from dimdata.generators.staged import join  # which builds on this module

        return join(parts, recipe, method)


@GENERATORS.register("network")
class NetworkGenerator(Generator):
    """A class-conditional network; `spec.options` is {"name": architecture, ...its config}."""

    kind = "network"

    def __init__(
        self,
        spec: Spec,
        recipe: Recipe,
        recipe_tensors: dict[str, Tensor] | None = None,
    ) -> None:
        super().__init__(spec, recipe, recipe_tensors)
        require(spec.images is None, "generator.images must be null: a network draws without limit.")
        require(spec.latent > 0, "generator.latent must be positive: a network draws from noise.")
        require(spec.storage != "uint8", "generator.storage of a network is float32 or float16.")
        require(spec.targets == "hard", "generator.targets of a network are hard.")
        self.network = build(spec)

    def _draw(self, latent: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        labels = self.labels(index)
        return self.network(latent, labels).float(), labels

    @classmethod
    def joined(cls, parts: Sequence[Generator], recipe: Recipe, method: str) -> Generator:
        """Return networks as the stages of one generator, which draws from them in turn; see `Generator.joined`."""
        kind = next(type(part.network) for part in parts if isinstance(part, NetworkGenerator))
        return kind.joined(parts, recipe, method)


def build(spec: Spec) -> Architecture:
    """Build the network that `spec.options` names."""
    options = dict(spec.options)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise FormatError("generator.options lacks the name of the network.")
    architecture = ARCHITECTURES[name]
    config = architecture.Config.from_json(options, f"generator.options ({name})")
    return architecture(config, spec)
