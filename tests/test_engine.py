"""Device, precision and compilation."""

import logging

import pytest
import torch

from dimdata.engine import Engine, _can_compile, _Fallback, find_device, keep_freed_memory
from dimdata.errors import ArgumentError, DeviceError
from dimdata.students.compiling import worth


def test_auto_finds_a_device_that_works():
    engine = Engine.of()
    assert torch.ones(2, device=engine.device).sum().item() == 2
    assert set(engine.describe()) == {"device", "precision", "compiled", "threads", "torch"}


@pytest.mark.parametrize("name", ["gpu", "cuda:x", ""])
def test_a_word_that_is_no_device(name):
    with pytest.raises(DeviceError, match="no device"):
        find_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_absent_names_the_remedy():
    with pytest.raises(DeviceError, match=r"no CUDA device is present.*--device cpu"):
        find_device("cuda")


@pytest.mark.parametrize("name", ["meta", "xpu", "mtia"])
def test_a_device_that_cannot_compute_is_refused(name):
    with pytest.raises(DeviceError, match=f"{name} cannot be computed on here"):
        Engine.of(name)


def test_an_engine_may_be_given_as_a_device():
    assert Engine.given(torch.device("cpu")).device == torch.device("cpu")
    assert Engine.given("cpu") == Engine.given(torch.device("cpu"))
    assert Engine.given(None) == Engine.of()
    with pytest.raises(DeviceError):
        Engine.given(torch.device("meta"))
    with pytest.raises(ArgumentError, match="engine is 3"):
        Engine.given(3)


def test_unknown_words_are_refused():
    with pytest.raises(ArgumentError, match="fp8"):
        Engine.of("cpu", precision="fp8")
    with pytest.raises(ArgumentError, match="maybe"):
        Engine.of("cpu", compile="maybe")


def test_precision_is_what_was_asked_for():
    def product(engine):
        with engine.autocast():
            return torch.ones(2, 2) @ torch.ones(2, 2)

    assert product(Engine.of("cpu", "fp32", "off")).dtype == torch.float32
    assert product(Engine.of("cpu", "bf16", "off")).dtype == torch.bfloat16


def test_what_cannot_be_compiled_runs_as_it_is(caplog):
    """A compiler that is missing or broken costs speed, not the run."""
    import torch._dynamo.exc
    import torch._inductor.exc

    calls = []

    def broken(x):
        calls.append(x)
        raise torch._dynamo.exc.BackendCompilerFailed(lambda: None, RuntimeError("no compiler"), None)

    function = _Fallback(broken, lambda x: x + 1)
    with caplog.at_level(logging.WARNING, logger="dimdata"):
        assert [function(1), function(2)] == [2, 3]
    assert calls == [1]
    assert "going on without" in caplog.text


def test_what_cannot_be_compiled_backwards_runs_as_it_is(caplog, monkeypatch):
    """The backward pass is compiled with the forward pass, while there is still a way back."""
    from torch._dynamo.backends.common import aot_autograd

    def broken(graph, inputs):
        raise RuntimeError("no room for the kernel")

    compiler = aot_autograd(fw_compiler=lambda graph, inputs: graph.forward, bw_compiler=broken)
    monkeypatch.setattr(torch._inductor, "compile", compiler)
    function = Engine(torch.device("cpu"), compiled=True).compile(lambda x: x.sin().sum())
    x = torch.ones(3, requires_grad=True)
    with caplog.at_level(logging.WARNING, logger="dimdata"):
        function(x).backward()
    assert torch.equal(x.grad, torch.ones(3).cos())
    assert "no room for the kernel" in caplog.text
    assert "going on without" in caplog.text


def test_errors_of_the_function_itself_are_not_swallowed():
    def wrong(x):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        _Fallback(wrong, lambda x: x)(1)


def test_keeping_freed_memory_is_harmless():
    keep_freed_memory()
    assert torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0)).sum().isfinite()


def test_only_devices_that_have_it_are_asked_for_autocast_and_fused_optimisers():
    assert Engine.of("cpu").fused
    without_arithmetic = Engine(torch.device("meta"))
    assert not without_arithmetic.fused
    with without_arithmetic.autocast():
        assert torch.ones(2, 2, device="meta").matmul(torch.ones(2, 2, device="meta")).dtype == torch.float32


def test_exact_convolutions_whatever_was_allowed_and_then_as_before():
    """The switches are PyTorch's own, and are there without a GPU."""
    cudnn, cuda = torch.backends.cudnn, Engine(torch.device("cuda"))
    before = (cudnn.allow_tf32, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision)
    try:
        for allowed in (True, False):
            cudnn.allow_tf32 = allowed
            with cuda.exact():
                assert cudnn.conv.fp32_precision == "ieee"
                assert not cudnn.allow_tf32
            assert cudnn.allow_tf32 is allowed
            with Engine(torch.device("cpu")).exact():
                assert cudnn.allow_tf32 is allowed
        for said in ("tf32", "ieee"):  # by the newer name, after which the older one may refuse to be read
            cudnn.conv.fp32_precision = said
            with cuda.exact():
                assert cudnn.conv.fp32_precision == "ieee"
            assert cudnn.conv.fp32_precision == said
    finally:
        cudnn.allow_tf32 = before[0]
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = before[1:]


def test_what_is_worth_compiling_depends_on_the_device():
    cpu, cuda = Engine(torch.device("cpu")), Engine(torch.device("cuda"))
    assert worth(cpu, 10_000, 50)
    assert not worth(cpu, 9_999, 50)
    assert worth(cuda, 20_000 * 50, 50)
    assert not worth(cuda, 20_000 * 50 - 1, 50)


def test_float32_that_is_not_computed_as_such_is_told(monkeypatch):
    """Of a GPU as it would be: nothing is computed on it."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    full, half = Engine(torch.device("cuda")), Engine(torch.device("cuda"), bf16=True)
    convolutions = torch.backends.cudnn.conv
    before = convolutions.fp32_precision
    try:
        convolutions.fp32_precision = "tf32"  # PyTorch's default
        assert (full.describe()["precision"], full.describe()["convolutions"]) == ("fp32", "tf32")
        assert "convolutions" not in half.describe()
        convolutions.fp32_precision = "ieee"
        assert "convolutions" not in full.describe()
    finally:
        convolutions.fp32_precision = before


def test_without_triton_nothing_is_compiled_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for there in (object(), None):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, there=there: there)
        assert _can_compile(torch.device("cuda")) == (there is not None)
