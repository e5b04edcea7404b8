"""One network with a code for each stage: what a stage has of its own, and what it leaves as it is."""

import dataclasses
import json
import random

import pytest
import torch
from conftest import recipe
from safetensors.torch import load_file, save_file
from test_fuzz import MAY_LOAD, MUST_FAIL, attempt

import dimdata
from dimdata import artifact, latents
from dimdata.artifact import METADATA
from dimdata.dataset import GeneratedDataset
from dimdata.distill.staging import walk
from dimdata.errors import ArgumentError, DimdataError, FormatError
from dimdata.files import CONFIG, MODEL
from dimdata.generators.base import shapes_only
from dimdata.generators.coded import CodedGenerator
from dimdata.generators.network import NetworkGenerator
from dimdata.recipe import Leg, Recipe
from dimdata.spec import Spec, canonical_json

SPEC = Spec(
    kind="network",
    method="dim",
    dataset="digits",
    classes=tuple("0123456789"),
    image_shape=(1, 12, 8),
    mean=(0.13,),
    std=(0.31,),
    latent=6,
    options={"name": "subpixel-coded", "width": 12, "mid": 12, "stem": 8},
)
PLAIN = Recipe(legs=(Leg(epochs=6, batch_size=10),))


def values(shape, *key):
    count = torch.Size(shape).numel()
    return latents.normal(latents.fold(latents.stream("test"), *key), torch.arange(count), 1).view(shape) * 0.3


def stage(number, spec=SPEC):
    """A stage by itself: what is shared is the same for all numbers."""
    with shapes_only():
        generator = NetworkGenerator(spec, PLAIN)
    codes = {f"network.{name}" for name in generator.network.codes()}
    return generator.restore(
        {
            name: values(tensor.shape, place, number if name in codes else 1000)
            for place, (name, tensor) in enumerate(generator.state_dict().items())
        }
    )


def coded(count=3):
    """The stages, and the one generator of all."""
    parts = [stage(number) for number in range(count)]
    return parts, NetworkGenerator.joined(parts, walk([PLAIN] * count, [None] * count), "pdd")


def draw(generator, count):
    index = torch.arange(count)
    return generator.draw(latents.latents(0, 0, index, generator.spec.latent), index)


def test_stages_are_drawn_from_in_turn_each_as_by_itself():
    parts, whole = coded()
    assert isinstance(whole, CodedGenerator)
    images, labels = draw(whole, 70)
    assert labels.tolist() == list(range(10)) * 7
    for slot in range(7):
        rows = slice(slot * 10, slot * 10 + 10)
        alone, _ = draw(parts[slot % 3], 70)
        torch.testing.assert_close(images[rows], alone[rows])
        other, _ = draw(parts[(slot + 1) % 3], 70)
        assert (images[rows] - other[rows]).abs().max() > 0.01
    index = torch.tensor([41, 3, 59, 10])
    few, _ = whole.draw(latents.latents(0, 0, index, 6), index)
    torch.testing.assert_close(few, images[index])


def test_a_prefix_is_a_smaller_generator_in_the_same_memory():
    parts, whole = coded()
    for count in (1, 2):
        part = whole.view(stage=count)
        joined = NetworkGenerator.joined(parts[:count], whole.recipe.upto(count), "pdd")
        assert part.stages == count
        assert [leg.stage for leg in part.recipe.legs] == list(range(1, count + 1))
        assert torch.equal(draw(part, 40)[0], draw(joined, 40)[0])
        own = {tensor.untyped_storage().data_ptr() for tensor in whole.state_dict().values()}
        assert {tensor.untyped_storage().data_ptr() for tensor in part.state_dict().values()} <= own
    assert whole.view(stage=3) is whole
    for number in (0, 4):
        with pytest.raises(ArgumentError, match="3 stages"):
            whole.view(stage=number)


def test_a_stage_adds_the_bytes_of_its_code_alone():
    parts, whole = coded()
    code = 4 * sum(tensor.numel() for tensor in parts[0].network.codes().values())
    assert whole.nbytes - whole.view(stage=2).nbytes == code
    assert whole.nbytes == parts[0].nbytes + 2 * code
    wide = dataclasses.replace(SPEC, image_shape=(1, 28, 28), latent=64, options={"name": "subpixel-coded"})
    with shapes_only():
        default = NetworkGenerator(wide, PLAIN)
    assert 10 < default.nbytes / (4 * sum(tensor.numel() for tensor in default.network.codes().values())) < 15


def test_a_code_beside_the_latent_alone(tmp_path):
    spec = dataclasses.replace(SPEC, options={**SPEC.options, "condition": "concat"})
    network = NetworkGenerator(spec, PLAIN).network
    assert network.codes().keys() == {"mix", "label.weight"}
    with pytest.raises(FormatError, match="statistics"):
        NetworkGenerator(dataclasses.replace(SPEC, options={**SPEC.options, "condition": "norm"}), PLAIN)


def test_saved_loaded_and_seen_by_stage(tmp_path):
    _, whole = coded()
    folder = artifact.save(whole, tmp_path / "generator")
    read = artifact.load(folder)
    assert isinstance(read, CodedGenerator)
    assert torch.equal(draw(read, 30)[0], draw(whole, 30)[0])
    dataset = GeneratedDataset(folder, ipc=4, stage=2, draw="fixed")
    images, labels = dataset[list(range(40))]
    part = GeneratedDataset(whole.view(stage=2), ipc=4, draw="fixed")
    assert torch.equal(images, part[list(range(40))][0])
    assert labels.tolist() == list(range(10)) * 4
    with pytest.raises(ArgumentError, match="3 stages, not 4"):
        GeneratedDataset(folder, ipc=4, stage=4)


def test_in_half_precision_prefixes_stay_the_same(tmp_path):
    parts = [stage(number, dataclasses.replace(SPEC, storage="float16")) for number in range(2)]
    whole = NetworkGenerator.joined(parts, walk([PLAIN] * 2, [None] * 2), "pdd")
    first = NetworkGenerator.joined(parts[:1], PLAIN, "pdd")
    read, alone = (artifact.load(artifact.save(g, tmp_path / name)) for name, g in (("two", whole), ("one", first)))
    assert torch.equal(draw(read.view(stage=1), 20)[0], draw(alone, 20)[0])


def test_stages_that_share_nothing_are_refused():
    other = stage(0)
    with torch.no_grad():
        other.network.body.weight += 1
    with pytest.raises(ArgumentError, match=r"differ in network\.body\.weight"):
        NetworkGenerator.joined([stage(0), other], recipe(), "pdd")


@pytest.mark.parametrize(
    "change",
    [
        {"images": 10},
        {"latent": 0},
        {"storage": "uint8"},
        {"targets": "soft"},
        {"options": {"stages": 0, "network": SPEC.options}},
        {"options": {"stages": 1001, "network": SPEC.options}},
        {"options": {"stages": 2}},
        {"options": {"stages": 2, "network": {}}},
        {"options": {"stages": 2, "network": SPEC.options, "codes": 3}},
        {"options": {"stages": 2, "network": {"name": "subpixel"}}},
        {"options": {"stages": 2, "network": {"name": "acgan"}}},
        {"options": {"stages": 2, "network": {"name": "absent"}}},
        {"options": {"stages": 2, "network": {**SPEC.options, "stages": 2}}},
    ],
)
def test_a_spec_that_fits_nothing_is_refused(change):
    _, whole = coded(2)
    with pytest.raises(DimdataError), shapes_only():
        CodedGenerator(Spec.from_json(whole.spec.to_json() | change), recipe())


@pytest.mark.parametrize("stages", [1, 3, 1000])
def test_a_file_that_says_another_number_of_stages_is_refused(stages, tmp_path):
    _, whole = coded(2)
    folder = artifact.save(whole, tmp_path / "generator")
    config = json.loads((folder / CONFIG).read_text())
    config["generator"]["options"]["stages"] = stages
    tensors = load_file(folder / MODEL)
    text = canonical_json({"generator": config["generator"], "recipe": config["recipe"]})
    save_file(tensors, folder / MODEL, metadata={METADATA: text})
    config["weights"]["bytes"] = (folder / MODEL).stat().st_size
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(FormatError, match="implies"):
        artifact.load(folder)


def test_pushed_and_pulled_it_draws_the_same_stages(hub, tmp_path):
    folder = artifact.save(coded(3)[1], tmp_path / "made")
    pushed = dimdata.push(folder, "owner/pdd-digits")
    commit = pushed.revision
    for stage in (1, 3):
        here = GeneratedDataset(folder, ipc=2, stage=stage)
        there = GeneratedDataset("owner/pdd-digits", ipc=2, stage=stage, revision=commit)
        for mine, theirs in zip(here, there, strict=True):
            assert torch.equal(mine[0], theirs[0])
            assert mine[1] == theirs[1]
    assert "There are 3 stages" in hub.repository("owner/pdd-digits").files(commit)["README.md"].decode()


@pytest.mark.parametrize("damage", [*MUST_FAIL, *MAY_LOAD], ids=lambda damage: damage.__name__)
def test_a_damaged_folder_does_no_harm(damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = artifact.save(coded(2)[1], tmp_path / "honest")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert attempt(files, must_fail=True) == "loaded"
    for case in range(8):
        changed = damage(random.Random(f"coded {damage.__name__} {case}"), files)
        assert attempt(changed, damage in MUST_FAIL) == "", case
