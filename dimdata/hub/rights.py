"""Whose the source data is: licences, identifiers and citations of real datasets, for cards."""

from __future__ import annotations

from dataclasses import dataclass

from dimdata.real.known import KNOWN, load_digits


@dataclass(frozen=True, kw_only=True)
class Source:
    """A real dataset, as a card speaks of it.

    Attributes:
        title: Its name in print.
        licence: A licence identifier of the Hub.
        licence_name: What `other` stands for.
        licence_link: Where that is said.
        hub_id: The dataset on the Hub.
        url: Its home.
        citation: BibTeX.
        rights: What to tell users of a generator.
    """

    title: str
    licence: str = "unknown"
    licence_name: str | None = None
    licence_link: str | None = None
    hub_id: str | None = None
    url: str = ""
    citation: str = ""
    rights: str = ""


_HUB_IDS = {
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "svhn": "ufldl-stanford/svhn",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
}

_RIGHTS = {
    "cc-by-sa-3.0": "The images are licensed CC BY-SA 3.0: pass on what you make of them with attribution and under "
    "the same terms.",
    "cc-by-4.0": "The images are licensed CC BY 4.0: attribute them.",
    "mit": "The images are licensed MIT: keep their notice.",
    "other": "The images come without a licence of their own: ask their authors before uses beyond research.",
    "unknown": "The licence of the images is not known to dimdata: ask whoever made them.",
}


def source_of(dataset: str) -> Source:
    """Return what is known of a dataset; little, for one that is not known by name."""
    known = load_digits() if dataset == "digits" else KNOWN.get(dataset)
    if known is None:
        return Source(title=dataset or "an unnamed dataset", rights=_RIGHTS["unknown"])
    other = known.licence == "other"
    return Source(
        title=known.title,
        licence=known.licence,
        licence_name="none-stated" if other else None,
        licence_link=known.url if other else None,
        hub_id=_HUB_IDS.get(dataset),
        url=known.url,
        citation=known.citation,
        rights=_RIGHTS[known.licence],
    )
