"""Where the images of a generator come from, by method: how a card puts it, and which paper to cite."""

from __future__ import annotations

from dataclasses import dataclass

from dimdata.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A method, as a card speaks of it.

    Attributes:
        made: What was done to the source data, to go on after its name: "distilled with DiM".
        title: The paper, in print.
        url: Where it can be read.
        citation: BibTeX.
        rights: What holds beside the terms of the source data, in one sentence.
        learned: Whether the images were learned; a recipe may have learned step sizes where they were not.
    """

    made: str
    title: str = ""
    url: str = ""
    citation: str = ""
    rights: str = ""
    learned: bool = True


ORIGINS: Registry[Origin] = Registry("origin of images", "dimdata.origins")


def origin_of(method: str) -> Origin:
    """Return what is known of a method; its name alone, for one that nobody registered."""
    return ORIGINS[method] if method in ORIGINS else Origin(made=f"made by the method {method}")


for _method, _origin in {
    "dim": Origin(
        made="distilled with DiM",
        title="DiM: Distilling Dataset into Generative Model",
        url="https://arxiv.org/abs/2303.04707",
        citation="""@article{wang2023dim,
  title = {{DiM}: Distilling Dataset into Generative Model},
  author = {Wang, Kai and Gu, Jianyang and Zhou, Daquan and Zhu, Zheng and Jiang, Wei and You, Yang},
  journal = {arXiv preprint arXiv:2303.04707},
  year = {2023}
}""",
    ),
    "dd": Origin(
        made="distilled with Dataset Distillation (DD)",
        title="Dataset Distillation",
        url="https://arxiv.org/abs/1811.10959",
        citation="""@article{wang2018dataset,
  title = {Dataset Distillation},
  author = {Wang, Tongzhou and Zhu, Jun-Yan and Torralba, Antonio and Efros, Alexei A.},
  journal = {arXiv preprint arXiv:1811.10959},
  year = {2018}
}""",
    ),
    "pdd": Origin(
        made="distilled with Progressive Dataset Distillation (PDD)",
        title="Data Distillation Can Be Like Vodka: Distilling More Times For Better Quality",
        url="https://arxiv.org/abs/2310.06982",
        citation="""@inproceedings{chen2024data,
  title = {Data Distillation Can Be Like Vodka: Distilling More Times For Better Quality},
  author = {Chen, Xuxi and Yang, Yu and Wang, Zhangyang and Mirzasoleiman, Baharan},
  booktitle = {International Conference on Learning Representations},
  year = {2024}
}""",
    ),
    "dm": Origin(
        made="distilled by distribution matching (DM)",
        title="Dataset Condensation with Distribution Matching",
        url="https://arxiv.org/abs/2110.04181",
        citation="""@inproceedings{zhao2023dataset,
  title = {Dataset Condensation with Distribution Matching},
  author = {Zhao, Bo and Bilen, Hakan},
  booktitle = {IEEE/CVF Winter Conference on Applications of Computer Vision},
  year = {2023}
}""",
    ),
    "mtt": Origin(
        made="distilled by matching training trajectories (MTT)",
        title="Dataset Distillation by Matching Training Trajectories",
        url="https://arxiv.org/abs/2203.11932",
        citation="""@inproceedings{cazenavette2022dataset,
  title = {Dataset Distillation by Matching Training Trajectories},
  author = {Cazenavette, George and Wang, Tongzhou and Torralba, Antonio and Efros, Alexei A. and Zhu, Jun-Yan},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2022}
}""",
    ),
    "idc": Origin(
        made="distilled with IDC",
        title="Dataset Condensation via Efficient Synthetic-Data Parameterization",
        url="https://arxiv.org/abs/2205.14959",
        citation="""@inproceedings{kim2022dataset,
  title = {Dataset Condensation via Efficient Synthetic-Data Parameterization},
  author = {Kim, Jang-Hyun and Kim, Jinuk and Oh, Seong Joon and Yun, Sangdoo and Song, Hwanjun and
            Jeong, Joonhyun and Ha, Jung-Woo and Song, Hyun Oh},
  booktitle = {International Conference on Machine Learning},
  year = {2022}
}""",
    ),
    "real": Origin(made="a choice of its images, or averages of them", learned=False),
    "wrapped": Origin(
        made="a set of images that was made elsewhere",
        rights="Whoever made this set may have terms of their own.",
        learned=False,
    ),
}.items():
    ORIGINS.register(_method)(_origin)
