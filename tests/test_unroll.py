"""Gradients through a whole training, against autograd through its graph and against finite differences."""

import pytest
import torch
from plain_unroll import plain_gradients
from torch import nn
from torch.nn import functional as F

from dimdata.distill.unroll import UnfoldedConv2d, Unroll, require_pure, unfolded
from dimdata.engine import Engine
from dimdata.errors import ArgumentError
from dimdata.students import make_student
from dimdata.students.source import InitLaw

CPU = Engine.of("cpu", "fp32", "off")
CLASSES = 4


class Smooth(nn.Module):
    """A network without kinks, for finite differences."""

    def __init__(self, image_shape=(2, 6, 6), num_classes=CLASSES):
        super().__init__()
        self.conv = nn.Conv2d(image_shape[0], 3, 3)
        self.norm = nn.GroupNorm(1, 3)
        self.line = nn.Linear(3 * 16, num_classes)

    def forward(self, images):
        return self.line(F.softplus(self.norm(self.conv(images))).flatten(1))


def problem(student, shape, count=1, dtype=torch.float64, batches=2, per_batch=5, steps=5):
    networks = [InitLaw(student, shape, CLASSES, "xavier").network(number).to(dtype) for number in range(count)]
    random = torch.Generator().manual_seed(1)
    given = {
        "images": torch.randn(batches, per_batch, *shape, generator=random),
        "targets": torch.rand(batches, per_batch, CLASSES, generator=random).softmax(-1),
        "sizes": torch.rand(steps, generator=random) * 0.1 + 0.01,
        "real": torch.randn(7, *shape, generator=random),
    }
    given = {name: tensor.to(dtype) for name, tensor in given.items()}
    given["labels"] = torch.randint(0, CLASSES, (7,), generator=random)
    weights = [{name: p.detach() for name, p in network.named_parameters()} for network in networks]
    return networks[0], weights, given


def values(found):
    return found.loss, found.images, found.targets, found.sizes


@pytest.mark.parametrize(
    ("student", "shape"),
    [
        ("lenet", (1, 28, 28)),
        ("convnet2-w8", (3, 8, 8)),
        ("mlp", (1, 5, 5)),
        ("alexcifarnet", (3, 16, 16)),
        (Smooth, (2, 6, 6)),
    ],
)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_gradients_are_those_of_the_plain_unroll(student, shape, dtype, bound):
    network, weights, given = problem(student, shape, dtype=dtype, steps=4)
    found = Unroll(network, CPU).gradients(weights, **given)
    expected = plain_gradients(network, weights[0], **given)
    for ours, plain in zip(values(found), expected, strict=True):
        assert ours.dtype == dtype
        assert ours.shape == plain.shape
        assert (ours - plain).norm() <= bound * plain.norm()


@pytest.mark.parametrize("what", ["images", "targets", "sizes"])
def test_gradients_are_finite_differences(what):
    network, weights, given = problem(Smooth, (2, 6, 6), steps=6)
    unroll = Unroll(network, CPU)
    gradient = getattr(unroll.gradients(weights, **given), what)
    direction = torch.randn(gradient.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def loss(distance):
        moved = given | {what: given[what] + distance * direction}
        last = unroll.trajectory(weights, moved["images"], moved["targets"], moved["sizes"])[-1]
        return unroll.losses(last, moved["real"], moved["labels"])[0]

    step = 1e-5
    slope = (loss(step) - loss(-step)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-6)


@pytest.mark.parametrize("together", [True, False])
def test_several_networks_are_the_mean_of_each(together):
    network, weights, given = problem("convnet2-w8", (1, 8, 8), count=3)
    unroll = Unroll(network, CPU)
    unroll._together = together
    together = values(unroll.gradients(weights, **given))
    each = []
    for one, real, labels in zip(weights, given["real"].tensor_split(3), given["labels"].tensor_split(3), strict=True):
        each.append(values(unroll.gradients([one], **given | {"real": real, "labels": labels})))
    for ours, singles in zip(together, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(ours, sum(singles) / 3, rtol=1e-10, atol=1e-12)


def test_a_network_that_diverges_is_left_out():
    network, weights, given = problem("mlp", (1, 5, 5), count=3)
    weights[1] = {name: tensor * float("inf") for name, tensor in weights[1].items()}
    unroll = Unroll(network, CPU)
    with_it = values(unroll.gradients(weights, **given))
    kept = torch.tensor([0, 1, 2, 5, 6])  # of 7 images shared out as 3, 2 and 2
    rest = given | {"real": given["real"][kept], "labels": given["labels"][kept]}
    without = values(unroll.gradients([weights[0], weights[2]], **rest))
    for ours, other in zip(with_it, without, strict=True):
        torch.testing.assert_close(ours, other)
    assert unroll.gradients([weights[1]], **given).loss.isnan()


def test_a_window_is_a_training_that_begins_late():
    network, weights, given = problem("convnet2-w8", (1, 8, 8), count=2, batches=2, steps=6)
    unroll = Unroll(network, CPU)
    found = unroll.gradients(weights, **given, window=4)
    after = unroll.trajectory(weights, given["images"], given["targets"], given["sizes"])[2]
    late = [{name: tensor[number] for name, tensor in after.items()} for number in range(2)]
    expected = unroll.gradients(late, **given | {"sizes": given["sizes"][2:]})
    for name in ("loss", "images", "targets"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.sizes[2:], expected.sizes, rtol=1e-10, atol=1e-12)
    assert not found.sizes[:2].any()
    assert found.images.ne(unroll.gradients(weights, **given).images).any()


def test_one_network_on_the_edge_does_not_decide():
    network, weights, given = problem("mlp", (1, 5, 5), count=3)
    unroll = Unroll(network, CPU)
    shares = list(zip(given["real"].tensor_split(3), given["labels"].tensor_split(3), strict=True))
    norms = [
        [float(value.norm()) for value in values(unroll.gradients([one], **given | {"real": x, "labels": y}))[1:]]
        for one, (x, y) in zip(weights, shares, strict=True)
    ]
    most = torch.tensor(norms).median(0).values
    cut = values(unroll.gradients(weights, **given, limit=0.01))[1:]
    for value, bound in zip(cut, most, strict=True):
        assert 0 < float(value.norm()) <= 0.01 * float(bound) * (1 + 1e-6)
    plain = unroll.gradients(weights, **given)
    for ours, other in zip(values(unroll.gradients(weights, **given, limit=1e6)), values(plain), strict=True):
        assert torch.equal(ours, other)


def test_the_trajectory_is_gradient_descent():
    network, weights, given = problem("lenet", (1, 28, 28), batches=2, steps=3)
    path = Unroll(network, CPU).trajectory(weights, given["images"], given["targets"], given["sizes"])
    assert len(path) == 4
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    for step, batch in enumerate((0, 1, 0)):
        optimizer.param_groups[0]["lr"] = float(given["sizes"][step])
        optimizer.zero_grad()
        F.cross_entropy(network(given["images"][batch]), given["targets"][batch]).backward()
        optimizer.step()
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(path[step + 1][name], parameter.detach(), rtol=1e-10, atol=1e-12)


def test_memory_is_that_of_the_weights_of_each_step():
    network, weights, given = problem("mlp", (1, 5, 5), count=2, steps=7)
    size = sum(p.numel() for p in network.parameters()) * 8
    unroll = Unroll(network, CPU)
    assert unroll.gradients(weights, **given).trajectory_bytes == 2 * 8 * size
    assert unroll.gradients(weights[:1], **given).trajectory_bytes == 8 * size


def test_what_is_given_stays_as_it_is():
    network, weights, given = problem("mlp", (1, 5, 5))
    before = {name: tensor.clone() for name, tensor in (given | weights[0]).items()}
    random = torch.get_rng_state()
    Unroll(network, CPU).gradients(weights, **given)
    assert all(torch.equal(tensor, before[name]) for name, tensor in (given | weights[0]).items())
    assert torch.equal(torch.get_rng_state(), random)


def test_networks_that_are_more_than_their_weights_are_refused():
    with pytest.raises(ArgumentError, match="running statistics"):
        require_pure(make_student("vgg11", (3, 32, 32), 10))
    with pytest.raises(ArgumentError, match="dropout"):
        require_pure(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))
    require_pure(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0)))


@pytest.mark.parametrize(
    "settings", [{}, {"padding": (2, 1)}, {"stride": 2, "bias": False}, {"dilation": 2, "stride": (1, 3)}]
)
def test_an_unfolded_convolution_is_the_convolution(settings):
    plain = nn.Conv2d(3, 4, (3, 5), dtype=torch.float64, **settings)
    images = torch.randn(2, 3, 12, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    copied = unfolded(plain, images)
    assert type(copied) is UnfoldedConv2d
    assert type(plain) is nn.Conv2d
    torch.testing.assert_close(copied(images), plain(images))


def test_what_the_images_reach_first_and_what_is_small_is_unfolded():
    network, images = make_student("lenet", (1, 28, 28), 10), torch.zeros(2, 1, 28, 28)
    small = 2 * 6 * 25 * 10 * 10  # patches of conv2
    for bound, second in ((0, nn.Conv2d), (small - 1, nn.Conv2d), (small, UnfoldedConv2d)):
        kinds = {name: type(module) for name, module in unfolded(network, images, bound).named_modules()}
        assert kinds["conv1"] is UnfoldedConv2d
        assert kinds["conv2"] is second
    grouped = nn.Conv2d(2, 2, 3, groups=2)
    assert type(unfolded(grouped, torch.zeros(1, 2, 5, 5))) is nn.Conv2d
