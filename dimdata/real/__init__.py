"""Real images: where they come from, how they are split and batched, and the baselines made of them."""

from dimdata.real.baselines import all_real, class_mean, distinct_real, kmeans_real, random_real, selected_real
from dimdata.real.batches import Batches
from dimdata.real.choice import balanced, subset, validation_split
from dimdata.real.data import RealData, Split
from dimdata.real.sources import load_real, names, require_classes

__all__ = [
    "Batches",
    "RealData",
    "Split",
    "all_real",
    "balanced",
    "class_mean",
    "distinct_real",
    "kmeans_real",
    "load_real",
    "names",
    "random_real",
    "require_classes",
    "selected_real",
    "subset",
    "validation_split",
]
