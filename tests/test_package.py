"""The package as others get it: what importing it costs, what the wheel holds, and what the README promises."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import require_commands
from torch.utils.data import DataLoader

import dimdata
from dimdata.artifact import bundled, holdout, load, read_config
from dimdata.dataset import GeneratedDataset
from dimdata.students.score import accuracy
from dimdata.students.train import train

ROOT = Path(__file__).parent.parent
MOST_BYTES = {"dim-mnist": 1_500_000, "dim-fashion-mnist": 1_500_000, "dim-cifar10": 2_500_000}


def python(code: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    ).stdout


@pytest.mark.parametrize("name", sorted(bundled()))
def test_what_is_bundled_names_its_rights(name):
    """CIFAR-10 has no licence that could stand beside the weights."""
    licence = {"mnist": "LICENSE-MNIST", "fashion-mnist": "LICENSE-Fashion-MNIST", "cifar10": None}
    wanted = licence[read_config(bundled()[name]).generator.dataset]
    assert [path.name for path in bundled()[name].glob("LICENSE*")] == [wanted] * (wanted is not None)
    assert re.search(rf"dimdata/zoo/{name}[,/\s]", (ROOT / "NOTICE").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The package's wheel, unpacked."""
    from hatchling.builders.wheel import WheelBuilder

    folder = tmp_path_factory.mktemp("wheel")
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_import_pulls_in_little():
    code = "import sys, dimdata, dimdata.dataset\nprint([m for m in sys.modules if '.' not in m])"
    loaded = set(re.findall(r"'(\w+)'", python(code)))
    assert not loaded & {"torchvision", "huggingface_hub", "accelerate", "matplotlib", "typer", "rich", "PIL"}
    assert "torch" not in python(
        "import sys, dimdata, dimdata.errors; print('torch' if 'torch' in sys.modules else '')"
    )


def test_public_names():
    assert set(dimdata.__all__) <= set(dir(dimdata))
    for name in dimdata.__all__:
        assert callable(getattr(dimdata, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = dimdata.nonsense


def test_submodules_do_not_hide_functions_of_their_names():
    code = (
        "import dimdata.distill.config, dimdata.evaluate\n"
        "from dimdata import distill, evaluate\n"
        "import dimdata\n"
        "print(callable(distill), callable(evaluate), callable(dimdata.distill), callable(dimdata.evaluate))"
    )
    assert python(code).split() == ["True"] * 4


def test_version_is_in_the_changelog():
    assert f"## [{dimdata.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_console_script_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, function = project["scripts"]["dimdata"].split(":")
    assert callable(getattr(__import__(module, fromlist=[function]), function))


def test_the_package_itself_is_the_command_line():
    def call(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "dimdata", *words], capture_output=True, text=True)

    assert call("--version").stdout.strip() == dimdata.__version__
    shown = call("--help")
    assert shown.returncode == 0
    assert shown.stdout.startswith("Usage: dimdata ")
    assert call("lst").returncode == 2
    code = (
        "import runpy, sys\nsys.argv[1:] = ['--help']\n"
        "try: runpy.run_module('dimdata', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as done: print('code', done.code, 'torch' in sys.modules)"
    )
    assert python(code).splitlines()[-1] == "code 0 False"


def test_wheel_holds_what_is_needed_and_no_more(wheel):
    files = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*") if path.is_file()}
    top = {name.split("/")[0] for name in files}
    assert top == {"dimdata", f"dimdata-{dimdata.__version__}.dist-info"}
    source = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "dimdata").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert source <= files
    assert {"dimdata/py.typed", "dimdata/data/digits.safetensors", "dimdata/data/LICENSE-digits"} <= files
    licences = {name.rpartition("/licenses/")[2] for name in files if "/licenses/" in name}
    assert {"LICENSE", "NOTICE", "dimdata/data/LICENSE-digits"} <= licences


def test_wheel_works_without_its_repository(wheel, tmp_path):
    code = "import json, dimdata; from dimdata.cli.main import main; print(dimdata.__file__); main(['list', '--json'])"
    out = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(wheel)},
    ).stdout
    where, _, listing = out.partition("\n")
    assert where.startswith(str(wheel))
    assert [row["name"] for row in json.loads(listing)["generators"]] == list(bundled())


@pytest.mark.parametrize("name", MOST_BYTES)
def test_bundled_generators_are_small_scored_and_documented(name):
    folder = bundled()[name]
    config = read_config(folder)
    assert config.weights.bytes <= MOST_BYTES[name]
    assert load(name).spec.num_classes == 10
    assert {score["ipc"] for score in config.scores if score["what"] == "generator"} >= {1, 10, 50}
    for file in ("README.md", "preview.png"):
        assert (folder / file).stat().st_size > 0
    assert name in (ROOT / "README.md").read_text()


def test_bundled_holdout_of_mnist_is_balanced_and_licensed():
    images, labels = holdout(bundled()["dim-mnist"])
    assert images.shape == (1000, 1, 28, 28)
    assert labels.bincount().tolist() == [100] * 10
    assert any(path.name.startswith("LICENSE") for path in bundled()["dim-mnist"].iterdir())


@pytest.mark.parametrize(("name", "count"), [("dd-mnist-fixed", 10), ("dd-mnist-soft", 10), ("dd-mnist-five", 5)])
def test_a_few_bundled_images_teach_what_their_card_says(name, count):
    """By the stored order, step sizes and start; the card's score is of 10,000 test images, these are 1,000 of them."""
    generator = load(name)
    assert generator.images == count
    images, labels = holdout(bundled()["dim-mnist"])
    results = [train("lenet", generator, seed=seed) for seed in (0, 1)]
    for one, other in zip(*(result.network.parameters() for result in results), strict=True):
        assert torch.equal(one, other)
    reached = 100 * accuracy(results[0].network, images, labels, generator.spec.mean, generator.spec.std)
    said = next(s["mean"] for s in read_config(bundled()[name]).scores if s["what"] == "generator")
    assert abs(reached - said) < 2.5  # four deviations of a share of 1,000 images


def test_a_hundred_bundled_images_teach_new_networks():
    generator = load("dd-mnist-random")
    assert generator.images == 100
    images, labels = holdout(bundled()["dim-mnist"])
    students = [train("lenet", generator, seed=seed).network for seed in range(3)]
    assert not torch.equal(next(students[0].parameters()), next(students[1].parameters()))
    reached = [100 * accuracy(s, images, labels, generator.spec.mean, generator.spec.std) for s in students]
    (said,) = (s for s in read_config(bundled()["dd-mnist-random"]).scores if s["what"] == "generator")
    assert abs(sum(reached) / 3 - said["mean"]) < 4  # networks differ by its deviation, and 1,000 images by 1.2 points


@pytest.mark.parametrize(("name", "stages", "ipc"), [("pdd-fashion-mnist", 3, None), ("pdd-dim-fashion-mnist", 2, 4)])
def test_any_prefix_of_bundled_stages_is_a_smaller_generator(name, stages, ipc):
    whole, sizes = load(name), []
    assert whole.stages == stages
    for stage in range(1, stages + 1):
        dataset = GeneratedDataset(name, ipc=ipc, stage=stage)
        images, labels = next(iter(DataLoader(dataset, batch_size=len(dataset))))
        assert labels.bincount().tolist() == [len(dataset) // 10] * 10
        assert images.shape[1:] == (1, 28, 28)
        assert images.std(0).mean() > 0.1, "images differ"
        sizes.append(whole.view(stage=stage).nbytes)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == whole.nbytes
    walked = [s for s in read_config(bundled()[name]).scores if s["what"] == "generator" and s.get("stages")]
    assert walked, "its card shows the accuracy after each stage"
    assert all(len(score["stages"]) == stages for score in walked)


def test_code_at_the_top_of_the_readme_runs():
    first = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(first[1].strip().splitlines()) <= 12
    python(first[1], HF_HUB_OFFLINE="1")


def test_commands_of_the_readme_exist(capsys):
    """With their options, in blocks and between words."""
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"(?:^|`)dimdata ([a-z][^`#\n]*)", text, re.MULTILINE)
    assert len(commands) >= 15
    require_commands(commands, capsys)
    for path in re.findall(r"^sh (\S+)", text, re.MULTILINE):
        assert (ROOT / path).is_file()


def test_names_that_the_readme_imports_exist():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line for block in blocks for line in re.findall(r"^(?:from|import) .*dimdata.*$", block, re.MULTILINE)]
    assert len(lines) >= 3
    for line in lines:
        exec(line, {})


def test_entry_points_of_the_readme_are_all_there_are():
    text = (ROOT / "README.md").read_text()
    listed = text[text.index("Other packages add theirs") :]
    promised = re.findall(r"`(?:dimdata)?\.(\w+)`", listed[: listed.index(")")])
    made = [path.read_text() for path in (ROOT / "dimdata").rglob("*.py")]
    groups = [group for code in made for group in re.findall(r'Registry\(\s*"[^"]+",\s*"dimdata\.(\w+)"', code)]
    assert sorted(promised) == sorted(groups)


def test_tree_of_the_readme_is_the_tree():
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"\b(\w+\.py)\b", text[text.index("## Where things are") :]))
    there = {path.name for folder in ("dimdata", "examples") for path in (ROOT / folder).rglob("*.py")}
    assert named <= there, named - there
    assert there - {"__init__.py", "__main__.py"} <= named, there - named
