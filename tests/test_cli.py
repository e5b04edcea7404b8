"""The command line: what it prints where, its exit codes, and what it does with bad input."""

import importlib
import json
import logging
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_network, make_table
from test_report import make_row

import dimdata
from dimdata import artifact
from dimdata.cli.main import _compiler_to_itself, _typed, main
from dimdata.cli.output import _parts, duration, plain
from dimdata.generators.cost import cost
from dimdata.preview import png
from dimdata.real.known import KNOWN
from dimdata.recipe import Leg, Recipe
from dimdata.scores import aggregate
from dimdata.students.train import load_student

COMMANDS = (
    *("list", "info", "preview", "train", "evaluate", "compare", "distill", "wrap"),
    *("export", "pull", "push", "verify", "doctor"),
)
TINY = [
    *("--set", "network.width=16", "--set", "network.mid=16", "--set", "network.stem=8", "--set", "latent=8"),
    *("--set", "critic=8", "--set", "batch_size=20", "--set", 'pool=["convnet1-w8"]'),
    *("--device", "cpu", "--precision", "fp32", "--compile", "off"),
]
PLAIN = ["--compile", "off", "--precision", "fp32", "--device", "cpu"]


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run a command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIMDATA_DATA", str(tmp_path / "no-data"))

    def call(*words: object) -> Result:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def digits_generator(tmp_path):
    """A generator of 8x8 images of the digits' classes, with a hold-out."""
    from dimdata.real import load_real, random_real

    real = load_real("digits")
    table = random_real(real, 5, seed=0, recipe=Recipe(legs=(Leg(epochs=2, batch_size=25),)))
    holdout = {"images": real.test.images[:50], "labels": real.test.labels[:50]}
    return artifact.save(table, tmp_path / "digits-generator", holdout=holdout)


@pytest.fixture
def image_folder(tmp_path):
    """Two classes of three 8x8 PNG files each."""
    from PIL import Image

    for name, value in (("cat", 50), ("dog", 200)):
        for number in range(3):
            path = tmp_path / "pets" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), value + number, np.uint8)).save(path)
    return tmp_path / "pets"


MAIN = "import sys; from dimdata.cli.main import main; sys.exit(main())"


def child(*words: str, cwd: Path, **keywords: object) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *words],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **keywords,
    )


# --- help ---------------------------------------------------------------------------------------------------------


def test_help_of_every_command_imports_no_torch():
    code = (
        "import sys\nfrom dimdata.cli.main import main\n"
        f"for words in [[]] + [[name] for name in {COMMANDS!r}]:\n"
        "    for flag in ('--help', '-h'):\n"
        "        assert main([*words, flag]) == 0\n"
        "assert main(['--version']) == 0\n"
        "assert main(['distill', '--stepz']) == 2\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_help_is_fast():
    def seconds(*words: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    help_page = min(seconds("-c", MAIN, "distill", "--help") for _ in range(3))
    torch = min(seconds("-c", "import torch") for _ in range(2))
    assert help_page < torch / 2  # of processor time, whatever the machine


def test_help_names_every_command_and_bare_call_shows_it(run):
    shown = run("--help")
    assert shown.code == 0
    assert all(f"\n  {name} " in shown.out for name in COMMANDS)
    assert max(map(len, shown.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("train dim-mnist --ipc 0", "Use --ipc 10, say."),
        ("train dim-mnist --ipc 10 --stage 2", "Leave stage out."),
        ("preview pdd-mnist --stage 9", "Use --stage 1 to 3, or leave it out."),
        ("evaluate ./digits-generator --real digits --ipc 99", "Use --ipc 5, or leave it out"),
        ("evaluate ./digits-generator --real digits --seeds 0", "Use --seeds 3, say;"),
        ("distill digits --method idc -o run --set factor=2 --set zca=0.1", "Choose factor=1 with zca"),
    ],
)
def test_hints_are_in_words_of_the_command_line(run, digits_generator, words, told):
    result = run(*words.split())
    assert result.code == 2
    assert told in result.err


def test_hints_that_are_commands_or_paths_are_left_as_they_are():
    words = ["distill", "digits"]
    copied = "Go on with: dimdata distill digits -o runs/seed=0 --set=seed=3 --resume"
    assert _typed(copied, words) == copied
    assert _typed("See runs/seed=0 and 'seed=0'.", words) == "See runs/seed=0 and 'seed=0'."
    assert _typed("Use seed=0, or --set ipc=1.", words) == "Use --seed 0, or --set ipc=1."
    assert _typed("Use seed=0.", ["no-such-command"]) == "Use seed=0."


def test_version(run):
    assert run("--version").out.strip() == dimdata.__version__


# --- reading commands ---------------------------------------------------------------------------------------------


def test_list_names_what_is_bundled(run):
    rows = json.loads(run("list", "--json").out)["generators"]
    assert [row["name"] for row in rows] == sorted(artifact.bundled())
    for row in rows:
        stored = artifact.read_config(artifact.bundled()[row["name"]]).generator.images
        assert (row["all images"] == "-") == (stored is None), "what is stored is scored as a whole"
        assert (row["IPC 10"] == "-") == (stored is not None)


@pytest.mark.parametrize(
    ("words", "told"), [(["mnist"], True), (["mnist", "--config", "dim-mnist"], False), (["svhn"], False)]
)
def test_distilling_without_a_configuration_says_which_one_there_is(run, words, told):
    result = run("distill", *words, "--size", 8)  # which ends before anything is downloaded
    assert result.code == 2
    assert ("--config dim-mnist" in result.err) == told


def test_list_of_everything_else(run):
    found = json.loads(run("list", "--methods", "--students", "--datasets", "--presets", "--json").out)
    assert set(found) == {"methods", "students", "datasets", "presets"}
    names = {kind: [row["name"] for row in rows] for kind, rows in found.items()}
    assert "dim" in names["methods"]
    assert {"convnet3", "lenet", "resnet18-thin"} <= set(names["students"])
    assert {"mnist", "fashion-mnist", "svhn", "cifar10", "cifar100", "digits"} == set(names["datasets"])
    text = run("list", "--students").out
    assert any(line.split()[:2] == ["convnet3", "320,010"] for line in text.splitlines())


def test_info(run, generator_folder):
    text = run("info", generator_folder).out
    config = artifact.read_config(generator_folder)
    assert config.weights.sha256 in text
    assert "10: 0, 1, 2" in text
    data = json.loads(run("info", generator_folder, "--json").out)
    assert data["weights"]["sha256"] == config.weights.sha256
    assert data["files"]["model.safetensors"] == config.weights.bytes
    assert f"{data['flop_per_image'] / 1e6:.1f} MFLOP an image" in text
    assert data["flop_per_image"] == cost(config.generator).flop > 0


def test_control_characters_of_strangers_do_not_reach_the_terminal(run, tmp_path, table):
    spec = table.spec.to_json() | {"classes": ["\x1b[31mred", "[bold]b[/bold]", *"cdefghij"], "options": {}}
    table.spec = type(table.spec).from_json(spec)
    artifact.save(table, tmp_path / "odd", provenance={"note": "\x1b]0;title\x07"})
    shown = run("info", tmp_path / "odd")
    assert shown.code == 0
    assert "\x1b" not in shown.out + shown.err
    assert "\\x1b[31mred" in shown.out
    assert "[bold]b[/bold]" in shown.out
    assert plain("a\x1b[2J\nb") == "a\\x1b[2J\nb"


def test_preview_writes_a_picture(run, generator_folder, tmp_path):
    from PIL import Image

    shown = run("preview", generator_folder, "-o", "grid.png", "--rows", "2", "--columns", "3")
    assert (shown.code, shown.out) == (0, "grid.png\n")
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.width > picture.height


def test_preview_of_the_first_stages_shows_no_other(run, tmp_path):
    table = make_table(stages=(10, 10))
    artifact.save(table, tmp_path / "staged")
    for stage in (1, 2):
        assert run("preview", tmp_path / "staged", "-o", f"{stage}.png", "--stage", stage).code == 0
        assert (tmp_path / f"{stage}.png").read_bytes() == png(table.view(stage=stage))
    assert (tmp_path / "1.png").read_bytes() != (tmp_path / "2.png").read_bytes()
    shown = run("preview", tmp_path / "staged", "--stage", 3)
    assert shown.code == 2
    assert "has 2 stages, not 3" in shown.err


def test_wrap_makes_a_generator(run, tmp_path):
    images = np.arange(20, dtype=np.uint8)[:, None, None] + np.zeros((20, 28, 28), np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(20) % 10)
    shown = run("wrap", "set.npz", "made", "--dataset", "mnist")
    assert (shown.code, shown.out) == (0, f"{tmp_path / 'made'}\n")
    made = dimdata.load(tmp_path / "made")
    assert made.images == 20
    assert made.spec.mean == (0.1307,)  # MNIST's own


def test_wrap_takes_images_that_are_stored_normalised(run, tmp_path):
    images = np.linspace(0, 1, 20 * 28 * 28, dtype=np.float32).reshape(20, 28, 28)
    np.savez(tmp_path / "set.npz", images=(images - 0.1307) / 0.3081, labels=np.arange(20) % 10)
    assert run("wrap", "set.npz", "made", "--dataset", "mnist", "--normalized").code == 0
    table = dimdata.load(tmp_path / "made").table
    assert (table.min().item(), table.max().item()) == pytest.approx((0, 1), abs=1e-6)
    assert "--normalized" in run("wrap", "set.npz", "other", "--dataset", "mnist").err
    assert_refused(run("wrap", "set.npz", "other", "--normalized"), "normalised by is not known")


def test_wrap_writes_over_nothing_but_its_own(run, tmp_path, generator_folder):
    np.savez(tmp_path / "set.npz", images=np.arange(640, dtype=np.uint8).reshape(10, 8, 8), labels=np.arange(10))
    for _ in range(2):
        assert run("wrap", "set.npz", "made").code == 0
    before = {path: path.read_bytes() for path in generator_folder.iterdir()}
    for place in (generator_folder, "set.npz"):
        assert_refused(run("wrap", "set.npz", place), "holds something else")
    assert {path: path.read_bytes() for path in generator_folder.iterdir()} == before


def test_a_place_that_cannot_be_written_is_told_before_the_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # which is always granted to root
    for words in (("train", "dim-mnist", "-o", "a.safetensors"), ("evaluate", "dim-mnist", "-o", "a.jsonl")):
        result = run(*words)
        assert result.code == 1
        assert "cannot be written: permission denied" in result.err
        assert "Traceback" not in result.err


def test_a_holdout_that_is_asked_for_must_be_there(run):
    assert_refused(run("train", "dd-mnist-fixed", "--real", "holdout"), "comes without test images")


def test_wrap_knows_datasets_however_they_are_written(run, tmp_path):
    from dimdata.real import load_real

    np.savez(tmp_path / "set.npz", images=np.arange(640, dtype=np.uint8).reshape(10, 8, 8), labels=np.arange(10))
    for given, stored in (("MNIST", "mnist"), ("Digits", "digits")):
        assert run("wrap", "set.npz", stored, "--dataset", given).code == 0
        spec, real = dimdata.load(tmp_path / stored).spec, KNOWN.get(stored) or load_real(stored)
        assert (spec.dataset, spec.mean, spec.std) == (stored, real.mean, real.std)
    assert run("wrap", "set.npz", "own", "--dataset", "My Own").code == 0
    assert dimdata.load(tmp_path / "own").spec.dataset == "My Own"


# --- computing commands -------------------------------------------------------------------------------------------


def test_train_saves_a_student_and_prints_json_alone_on_stdout(run, digits_generator):
    shown = run(
        "train", digits_generator, "--student", "convnet1-w8", "--epochs", 3, "-o", "s.safetensors", "--json", *PLAIN
    )
    assert shown.code == 0
    facts = json.loads(shown.out)
    assert facts["images_seen"] == 3 * 50
    assert facts["test"] == "50 held-out images of digits"
    assert facts["draw"] == "fixed"  # stored images have no other
    assert 0 <= facts["accuracy"] <= 100
    assert "train" in shown.err
    network, info = load_student("s.safetensors")
    assert info.student == "convnet1-w8"
    assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_train_tests_on_real_images_by_name(run, digits_generator):
    shown = run("train", digits_generator, "--student", "convnet1-w8", "--epochs", 2, "--real", "digits", *PLAIN)
    assert "% right on real images: 500 test images of digits." in shown.out


def test_a_folder_called_like_a_dataset_is_not_taken_for_it(run, digits_generator, image_folder):
    Path("digits").mkdir()
    words = ["--student", "convnet1-w8", "--epochs", 2, *PLAIN]
    for name in ("digits", "Digits"):
        shown = run("train", digits_generator, "--real", name, *words)
        assert "500 test images of digits." in shown.out, shown.err
        shown = run("evaluate", digits_generator, "--real", name, "--seeds", 1, "--baselines", "none", "--json", *words)
        assert json.loads(shown.out)[0]["test"] == "digits test (500)", shown.err


def test_train_without_augmentation_says_so(run, digits_generator):
    words = ["train", digits_generator, "--student", "convnet1-w8", "--epochs", 1, "--json", *PLAIN]
    assert "no augmentation" in json.loads(run(*words, "--augment", "none").out)["recipe"]
    assert "augment flip (each)" in json.loads(run(*words, "--augment", "flip").out)["recipe"]


def test_evaluate(run, digits_generator):
    words = [
        "evaluate",
        digits_generator,
        "--student",
        "convnet1-w8",
        "--epochs",
        2,
        "--seeds",
        2,
        "-o",
        "rows.jsonl",
        *PLAIN,
    ]
    shown = run(*words, "--baselines", "random", "--json")
    assert shown.code == 0
    generator, random = json.loads(shown.out)
    assert (generator["what"], random["what"]) == ("generator", "random")
    assert generator["seeds"] == [0, 1]
    assert len(Path("rows.jsonl").read_text().splitlines()) == 4
    again = run(*words, "--baselines", "random")
    assert again.out.splitlines()[0].split()[:3] == ["student", "budget", "draw"]
    assert f"{generator['mean']:.2f}" in again.out
    assert "Recipe:" in again.err
    assert len(Path("rows.jsonl").read_text().splitlines()) == 4  # nothing was trained again


def test_a_plot_of_what_there_will_not_be_is_refused_before_training(run, digits_generator, tmp_path):
    staged = artifact.save(make_table(), tmp_path / "staged")  # its recipe is of all stages at once
    holdout = {"images": torch.zeros(2, 1, 28, 28, dtype=torch.uint8), "labels": torch.arange(2)}
    artifact.save(make_table(), staged, holdout=holdout)
    result = run("train", staged, "--student", "convnet1-w8", "--epochs", 1, "--plot", "p.svg")
    assert (result.code, "does not walk its stages" in result.err) == (2, True)
    np.savez(tmp_path / "odd.npz", images=np.zeros((37, 8, 8), np.uint8), labels=np.arange(37) % 10)
    assert run("wrap", tmp_path / "odd.npz", tmp_path / "odd", "--dataset", "digits").code == 0
    result = run("evaluate", tmp_path / "odd", "--real", "digits", "--plot", "p.svg")
    assert (result.code, "unequal numbers of images" in result.err) == (2, True)
    assert "seed 0" not in result.err
    assert not Path("p.svg").exists()


@pytest.mark.parametrize(
    ("epochs", "told"),
    [(1000, None), (7, "no figure at a number of"), (None, "no figure at a number")],
)
def test_a_plot_of_a_fresh_draw_needs_a_thousand_epochs(run, tmp_path, monkeypatch, epochs, told):
    """Whoever says them: the recipe, here of six, or an option."""
    folder = artifact.save(make_network(image_shape=(1, 8, 8)), tmp_path / "network")

    def begun(*arguments, **more):
        raise RuntimeError("begun")

    monkeypatch.setattr(importlib.import_module("dimdata.evaluate"), "evaluate", begun)
    more = [] if epochs is None else ["--epochs", epochs]
    shown = run("evaluate", folder, "--real", "digits", "--ipc", 1, "--plot", "p.svg", *more, *PLAIN)
    assert (told or "begun") in shown.err


def test_baselines_need_real_images(run, tmp_path):
    holdout = {"images": torch.zeros(2, 1, 28, 28, dtype=torch.uint8), "labels": torch.arange(2)}
    folder = artifact.save(make_network(), tmp_path / "network", holdout=holdout)
    words = ["evaluate", folder, "--ipc", 1, "--epochs", 1, "--seeds", 1, "--student", "convnet1-w4", *PLAIN]
    shown = run(*words, "--real", "holdout", "--baselines", "distinct")
    assert (shown.code, "--baselines needs real training images" in shown.err) == (2, True)
    assert run(*words, "--real", "holdout").code == 0
    assert run(*words, "--real", "holdout", "--baselines", "none").code == 0


def test_the_users_folder_is_meant_wherever_it_is_written(run, tmp_path, monkeypatch, generator_folder):
    """Shells leave the ~ of --out=~/runs as it is."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert run("preview", generator_folder, "--out=~/grid.png").code == 0
    assert (tmp_path / "home" / "grid.png").is_file()
    np.savez(tmp_path / "home" / "set.npz", images=np.zeros((10, 8, 8), np.uint8), labels=np.arange(10))
    assert run("wrap", "~/set.npz", "~/mine").code == 0
    assert (tmp_path / "home" / "mine" / "config.json").is_file()
    assert not Path("~").exists()


def test_evaluate_tells_an_ipc_only_where_it_is_one(run, tmp_path):
    folder = artifact.save(make_network(image_shape=(1, 8, 8)), tmp_path / "network")
    words = ["evaluate", folder, "--real", "digits", "--student", "convnet1-w8", "--seeds", 1, "--ipc", 2, *PLAIN]
    shown = run(*words, "--epochs", 3, "--draw", "fresh,fixed", "--baselines", "distinct")
    told = [line for line in shown.err.splitlines() if "seed 0:" in line]
    assert [line.split(":")[0] for line in told] == [
        "generator, convnet1-w8, 60 images fresh, seed 0",
        "distinct real, convnet1-w8, 60 images fresh, seed 0",
        "generator, convnet1-w8, IPC 2 fixed, seed 0",
    ]


def test_info_of_a_score_by_a_protocol_of_a_newer_version(run, digits_generator):
    path = digits_generator / "config.json"
    score = aggregate([make_row(protocol="dim-paper-2")])[0].to_json()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scores": [score]}))
    shown = run("info", digits_generator)
    assert (shown.code, "98.00" in shown.out) == (0, True)
    assert "dim-paper-2 is not known to this version." in shown.err


def test_the_command_on_a_card_tells_nothing_of_this_machine_and_makes_it_in_one_sitting(run, image_folder):
    here = image_folder.resolve().parent
    (here / "own.toml").write_text("pool_lr = 0.02\n")
    where = ("--root", here, "--config", here / "own.toml", "-o", here / "one")
    begun = ("distill", image_folder.resolve(), *where, *TINY)
    assert run(*begun, "--steps", 4).code == 0
    assert run(*begun, "--resume").code == 0
    told = artifact.read_config(here / "one/generator").provenance["command"]
    data = f"./{image_folder.name}"
    assert shlex.split(told) == [
        *("dimdata", "distill", data, "--steps", "4", "--config", "./own.toml", *TINY, "-o", "runs/one"),
    ]
    for name in ("config.json", "README.md"):
        assert str(here) not in (here / "one/generator" / name).read_text()
    brief = json.loads(run("distill", "digits", "--minutes", "0.02", "-o", "two", "--json", *TINY).out)
    assert brief["provenance"]["command"].startswith("dimdata distill digits")
    assert "--minutes 0.02 " in brief["provenance"]["command"]


def test_distill_and_resume(run):
    shown = run("distill", "digits", "--steps", 4, "-o", "run one", *TINY)
    assert shown.code == 0
    made = Path(shown.out.strip())
    assert made == Path("run one/generator").resolve()
    assert dimdata.load(made).spec.dataset == "digits"
    assert "dimdata evaluate './run one/generator'" in shown.err
    assert shlex.split(artifact.read_config(made).provenance["command"])[:3] == ["dimdata", "distill", "digits"]
    refused = run("distill", "digits", "--steps", 6, "-o", "run one", *TINY)
    assert refused.code == 2
    assert "--resume" in refused.err
    changed = run("distill", "digits", "--steps", 6, "-o", "run one", *TINY, "--resume", "--set", "critic=9")
    assert changed.code == 2
    assert "critic: 8 -> 9" in changed.err
    longer = run("distill", "digits", "--steps", 6, "-o", "run one", *TINY, "--resume", "--json")
    assert json.loads(longer.out)["provenance"]["plan"]["steps"] == 6


@pytest.mark.parametrize("budget", [("--steps", 0), ("--steps", -5), ("--minutes", 0), ("--minutes", "inf")])
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_budgets_that_no_run_can_have(run, budget, more):
    shown = run("distill", "digits", *budget, *more, *TINY)
    assert shown.code == 2
    assert f"{budget[0].lstrip('-')} is {budget[1]}" in shown.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("distill", "cifar10", "--method", "nope"), "nope"),
        (("distill", "cifar10", "--config", "nope"), "nope"),
        (("distill", "cifar10", "--set", "lr=0"), "config.lr is 0"),
        (("distill", "cifar10", "--device", "nope"), "nope"),
        (("distill", "cifar10", "--compile", "nope"), "nope"),
        (("distill", "cifar10", "--method", "pdd", "--base", "dm", "--stages", 7), "7 stages"),
        (("distill", "cifar10", "--resume", "-o", "empty"), "empty"),
        (("evaluate", "dim-cifar10", "--real", "cifar10", "--seeds", 0), "seeds is 0"),
        (("evaluate", "dim-cifar10", "--real", "cifar10", "--device", "nope"), "nope"),
        (("evaluate", "dim-cifar10", "--real", "cifar10", "--protocol", "nope"), "nope"),
        (("evaluate", "dim-cifar10", "--real", "cifar10", "--epochs", 0), "epochs is 0"),
        (("evaluate", "pdd-mnist", "--real", "mnist", "--ipc", 10), "IPC 10"),
        (("compare", "dim-cifar10", "--real", "cifar10", "--device", "nope"), "nope"),
        (("compare", "dim-cifar10", "--real", "cifar10", "--seeds", 0), "seeds is 0"),
        (("compare", "dim-cifar10", "--real", "cifar10", "--epochs", 0), "epochs is 0"),
        (("verify", "dim-cifar10", "--real", "cifar10", "--budget", 0), "--budget is 0"),
        (("verify", "dim-cifar10", "--real", "cifar10", "--seeds", 0), "--seeds is 0"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_can_be_refused_is_refused_before_a_dataset_is_fetched(words, told, run, monkeypatch):
    def fetch(*_, **__):
        raise AssertionError("a dataset was asked for")

    monkeypatch.setattr("dimdata.real.known._open", fetch)
    result = run(*words)
    assert result.code == 2
    assert told in result.err


@pytest.mark.parametrize("size", ["tensor", "bytes"])
def test_memory_that_runs_out_is_told_in_words(size, run, monkeypatch):
    ask = {"tensor": lambda *_, **__: torch.empty(10**15), "bytes": lambda *_, **__: bytearray(10**15)}[size]
    monkeypatch.setattr("dimdata.preview.png", ask)
    result = run("preview", "dim-mnist")
    assert result.code == 1
    assert "too little free memory" in result.err
    assert "foreseen" not in result.err
    assert "hint: Stop what else uses it" in result.err


def test_dry_run_sets_images_aside_for_probes_as_a_run_does(run):
    words = ("distill", "digits", "--steps", 10, "--dry-run", "--json", *TINY)
    whole, part = (json.loads(run(*words, *more).out)["data"]["images"] for more in ((), ("--probes", 2)))
    assert part == pytest.approx(0.9 * whole, rel=0.02)


def test_dry_run_plans_and_writes_nothing(run, tmp_path):
    before = set(tmp_path.rglob("*"))
    plan = json.loads(run("distill", "digits", "--steps", 10, "--dry-run", "--json", *TINY).out)
    assert plan["steps"] == 10
    assert sum(phase["steps"] for phase in plan["phases"].values()) == 10
    assert plan["generator"]["parameters"] > 0
    text = run("distill", "digits", "--minutes", 3, "--dry-run", *TINY).out
    assert "as many steps as fit in 3 minutes" in text
    assert set(tmp_path.rglob("*")) == before


def test_settings_win_over_the_config_file(run, tmp_path):
    (tmp_path / "mine.toml").write_text('lr = 0.5\n[network]\nname = "subpixel"\nwidth = 24\n')
    words = ["distill", "digits", "--dry-run", "--json", "--config", "mine.toml", *TINY]
    assert json.loads(run(*words).out)["config"]["network"]["width"] == 16
    assert json.loads(run(*words).out)["config"]["lr"] == 0.5


def test_distill_of_a_folder_of_images(run, image_folder):
    shown = run("distill", image_folder, "--steps", 2, "-o", "r", *TINY)
    assert shown.code == 0
    assert dimdata.load(Path("r/generator")).spec.classes == ("cat", "dog")


# --- bad input: one sentence, the remedy, the exit code, and nothing half-written ------------------------------------


def damage(folder: Path, kind: str) -> None:
    model, config = folder / "model.safetensors", folder / "config.json"
    data = json.loads(config.read_text())
    if kind == "truncated":
        model.write_bytes(model.read_bytes()[:-7])
    elif kind == "flipped":
        content = bytearray(model.read_bytes())
        content[-5] ^= 16
        model.write_bytes(content)
    elif kind == "no config":
        config.unlink()
    elif kind == "newer":
        config.write_text(json.dumps(data | {"format": "2.0"}))
    elif kind == "shape":
        data["generator"]["image_shape"] = [1, 32, 32]
        config.write_text(json.dumps(data))
    elif kind == "classes":
        data["generator"]["classes"] = list("012345678")
        config.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", "damaged"),
        ("flipped", "damaged"),
        ("no config", "no config.json"),
        ("newer", "newer dimdata"),
        ("shape", "do not belong together"),
        ("classes", "do not belong together"),
    ],
)
def test_damaged_generator(run, generator_folder, kind, words):
    damage(generator_folder, kind)
    shown = run("train", generator_folder, "--ipc", 1)
    assert_refused(shown, words)


def assert_refused(shown: Result, words: str, code: int = 2) -> None:
    assert (shown.code, shown.out) == (code, "")
    lines = shown.err.strip().splitlines()
    assert lines[0].startswith("error: ")
    assert words in shown.err
    assert "Traceback" not in shown.err
    assert len(lines) <= 2
    assert all(line.startswith("hint: ") for line in lines[1:])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "dim-mnits"], "There is no bundled generator called 'dim-mnits'."),
        (["train", "./nothing"], "There is no folder"),
        (["train", "a/b/c"], "names no generator"),
        (["train", "GENERATOR", "--ipc", "0"], "ipc is 0; images per class must be a whole number from 1"),
        (["train", "GENERATOR", "--ipc", "-3"], "ipc is -3; images per class must be a whole number from 1"),
        (["train", "GENERATOR", "--ipc", "999999999999999999"], "images per class must be a whole number from 1"),
        (["train", "GENERATOR", "--student", "convnet33"], "Did you mean convnet3"),
        (["train", "GENERATOR", "--draw", "frehs"], "Did you mean fresh?"),
        (["train", "GENERATOR", "--epochs", "0"], "epochs is 0"),
        (["train", "GENERATOR", "--precision", "fp8"], "precision is 'fp8'"),
        (["train", "GENERATOR", "--real", "digits"], "the generator has 10 of (1, 28, 28)"),
        (["train", "GENERATOR", "-o", "no/such/folder.safetensors"], "There is no folder"),
        (["train", "GENERATOR", "-o", "."], "is a folder"),
        (["preview", "GENERATOR", "-o", "."], "is a folder"),
        (["preview", "GENERATOR", "-o", "grid.jpg"], "grid.jpg does not end in .png"),
        (["train", "GENERATOR", "-o", "student.pt"], "student.pt does not end in .safetensors"),
        (["evaluate", "GENERATOR", "--plot", "."], "is a folder"),
        (["evaluate", "GENERATOR", "--ipc", "1,1.5"], "whole numbers from 1"),
        (["evaluate", "GENERATOR", "--student", "lenett"], "Did you mean lenet"),
        (["evaluate", "GENERATOR", "--real", "digits"], "the generator draws (1, 28, 28)"),
        (["evaluate", "GENERATOR", "--real", "./absent", "--draw", ","], "No draw is given."),  # before data is read
        (["evaluate", "GENERATOR", "--real", "./absent", "--baselines", "al"], "no baseline called 'al'"),
        (["compare", "GENERATOR", "--real", "./absent", "--draw", "frehs"], "'frehs' is no draw."),
        (["preview", "GENERATOR", "--rows", "0"], "0 rows were asked for"),
        (["preview", "GENERATOR", "-o", "no/such/folder.png"], "There is no folder"),
        (["distill", "mnits"], "Did you mean mnist?"),
        (["distill", "digits", "--method", "dimm"], "Did you mean dim or dm?"),
        (["distill", "digits", "--steps", "0"], "steps is 0"),
        (["distill", "digits", "--minutes", "nan"], "minutes is nan"),
        (["distill", "digits", "--minutes", "1", "--steps", "1"], "Both --minutes and --steps"),
        (["distill", "digits", "--set", "learning_rate=1"], "unknown field 'learning_rate'"),
        (["distill", "digits", "--set", "lr"], "is no setting"),
        (["distill", "digits", "--config", "absent.toml"], "There is no configuration"),
        (["distill", "digits", "--resume"], "no run to resume"),
        (["wrap", "absent.npz", "out"], "There is no file absent.npz."),
    ],
)
def test_bad_words(run, generator_folder, tmp_path, words, said):
    before = set(tmp_path.rglob("*"))
    shown = run(*(str(generator_folder) if word == "GENERATOR" else word for word in words))
    assert_refused(shown, said)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
@pytest.mark.parametrize("words", [["train", "GENERATOR"], ["distill", "digits"]])
def test_cuda_where_there_is_none(run, generator_folder, words):
    words = [str(generator_folder) if word == "GENERATOR" else word for word in words]
    assert_refused(run(*words, "--device", "cuda"), "cuda was asked for, but no CUDA device is present")


def test_usage_errors_exit_with_2(run):
    for words in (["trian"], ["train"], ["train", "x", "--ipc", "1.5"], ["train", "x", "--nonsense"], []):
        shown = run(*words)
        assert shown.code == 2
        assert "Traceback" not in shown.err
    assert "Did you mean 'train'?" in run("trian").err


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("mixed sizes", "wide.png is 9x8"),
        ("empty class", "bird"),
        ("unreadable", "broken.png"),
        ("one class", "1 class"),
    ],
)
def test_bad_folder_of_images(run, image_folder, tmp_path, kind, said):
    from PIL import Image

    if kind == "mixed sizes":
        Image.fromarray(np.zeros((9, 8), np.uint8)).save(image_folder / "cat" / "wide.png")
    elif kind == "empty class":
        (image_folder / "bird").mkdir()
    elif kind == "unreadable":
        (image_folder / "dog" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n rubbish")
    else:
        for path in (image_folder / "dog").iterdir():
            path.unlink()
        (image_folder / "dog").rmdir()
    assert_refused(run("distill", image_folder, "--steps", 2, "-o", "r", *TINY), said)
    assert not (tmp_path / "r").exists()


def test_wrap_of_unequal_arrays(run, tmp_path):
    np.savez(tmp_path / "set.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(3))
    assert_refused(run("wrap", "set.npz", "made"), "4 images but 3 labels")
    assert not (tmp_path / "made").exists()


def test_unforeseen_failures_ask_for_debug(run, generator_folder, monkeypatch):
    def fail(*words: object) -> None:
        raise ZeroDivisionError("first line\nsecond line")

    monkeypatch.setattr(artifact, "read_config", fail)
    shown = run("info", generator_folder)
    assert_refused(shown, "ZeroDivisionError: first line", code=1)
    assert "--debug" in shown.err
    traced = run("info", generator_folder, "--debug")
    assert traced.code == 1
    assert "Traceback" in traced.err
    assert "error: ZeroDivisionError: first line" in traced.err


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    limit = 64 * 1024  # bytes a file: the checkpoint of the run does not fit

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = child("distill", "digits", "--steps", "2", "-o", "r", *TINY, cwd=tmp_path, preexec_fn=small_files)
    out, err = process.communicate(timeout=120)
    said = "\n".join(line for line in err.splitlines() if not line.startswith(("gan", "match")))  # progress aside
    shown = Result(process.returncode, out, said)
    assert_refused(shown, "Writing r/checkpoint.safetensors failed", code=1)
    assert not (tmp_path / "r" / "generator").exists()
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(tmp_path):
    process = child("distill", "digits", "--steps", "100000", "-o", "r", *TINY, cwd=tmp_path)
    metrics = tmp_path / "r" / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert (tmp_path / "r" / "checkpoint.safetensors").exists()
    hint = err.strip().splitlines()[-1]
    assert hint.startswith("hint: Go on with: dimdata distill digits --steps 100000 -o r")
    assert hint.endswith("--resume")


def test_ctrl_c_elsewhere_exits_with_130(run, generator_folder, monkeypatch):
    def interrupt(*words: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(artifact, "read_config", interrupt)
    shown = run("info", generator_folder)
    assert (shown.code, shown.out, shown.err.strip()) == (130, "", "Interrupted.")


def test_a_reader_that_leaves_early_is_no_failure(tmp_path):
    process = child("list", "--students", "--datasets", cwd=tmp_path)
    process.stdout.close()
    err = process.stderr.read()
    process.wait(timeout=60)
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


# --- output -------------------------------------------------------------------------------------------------------


def test_wide_tables_are_printed_in_parts():
    assert _parts([8, 10, 10, 10], keep=1, room=80) == [[0, 1, 2, 3]]
    assert _parts([8, 10, 10, 10], keep=1, room=32) == [[0, 1, 2], [0, 3]]
    assert _parts([8, 90, 10], keep=1, room=32) == [[0, 1], [0, 2]]


def test_durations():
    assert [duration(s) for s in (0.4, 89, 600, 7260)] == ["0 s", "89 s", "10 min", "2 h 1 min"]


@pytest.mark.parametrize(("debug", "shown"), [(False, []), (True, ["within torch"])])
def test_what_the_compiler_says_of_itself_is_for_debugging(debug, shown, caplog):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with _compiler_to_itself(debug):
            warnings.warn_explicit("within torch", FutureWarning, "_script.py", 1, module="torch.jit._script")
            warnings.warn_explicit("of the user's", FutureWarning, "mine.py", 1, module="torchlike")
            logging.getLogger("torch.utils.cpp_extension").warning("no CUDA")
    assert [str(warning.message) for warning in caught] == [*shown, "of the user's"]
    assert ("no CUDA" in caplog.text) == debug
    assert logging.getLogger("torch.utils.cpp_extension").level == logging.NOTSET
