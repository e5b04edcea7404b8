"""Where and how numbers are computed: device, precision, compilation."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from dimdata.errors import ArgumentError, DeviceError

log = logging.getLogger("dimdata")

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Engine:
    """A device and a way to compute on it; make one with `Engine.of`.

    Attributes:
        device: Where tensors live.
        bf16: Whether convolutions and products run in bfloat16 under autocast.
        compiled: Whether hot functions go through `torch.compile`.
    """

    device: torch.device
    bf16: bool = False
    compiled: bool = False

    @classmethod
    def of(cls, device: str = "auto", precision: str = "auto", compile: str = "auto") -> Engine:
        """Choose an engine.

        Args:
            device: `auto` (CUDA, else Apple's GPU, else CPU) or a torch device name.
            precision: `fp32`, `bf16`, or `auto`: bf16 where the device computes it faster.
            compile: `on`, `off`, or `auto`: on where a compiler is at hand. A function that fails to compile runs as
                it is, with a warning.

        Raises:
            DeviceError: If the device is absent.
            ArgumentError: If a word is none of those above.
        """
        for what, word, known in (
            ("precision", precision, ("auto", "fp32", "bf16")),
            ("compile", compile, ("auto", "on", "off")),
        ):
            if word not in known:
                raise ArgumentError(f"{what} is {word!r}.", f"Use {', '.join(known)}.")
        chosen = find_device(device)
        compiled = compile == "on" or (compile == "auto" and _can_compile(chosen))
        bf16 = precision == "bf16" or (precision == "auto" and _fast_bf16(chosen, compiled))
        return cls(device=chosen, bf16=bf16, compiled=compiled)

    @classmethod
    def given(cls, engine: Engine | str | torch.device | None) -> Engine:
        """Return an engine, or that of a device; the best there is where nothing is given.

        Raises:
            ArgumentError: If it is none of these.
        """
        if isinstance(engine, cls):
            return engine
        if not isinstance(engine, str | torch.device | None):
            raise ArgumentError(
                f"engine is {engine!r:.80}.", "Give a device, such as 'cpu' or 'cuda:1', or Engine.of()."
            )
        return cls.of("auto" if engine is None else str(engine))

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which networks run."""
        if not torch.amp.is_autocast_available(self.device.type):
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    @contextmanager
    def seeded(self, key: int) -> Iterator[None]:
        """Give what draws from torch's global random state, such as dropout, another one, and leave that as it was.

        Args:
            key: Equal keys give equal states.
        """
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.default_generator.manual_seed(key)
            if cuda:
                with torch.cuda.device(self.device):
                    torch.cuda.manual_seed(key)
            yield

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Compute convolutions in full float32, whatever PyTorch allows; whole steps, with their backward passes.

        On CUDA PyTorch lets them run in TF32 by default, with 10 bits of each factor. It does not so with matrix
        products: where a program has asked for that (`torch.set_float32_matmul_precision`), it stands.
        """
        if self.device.type != "cuda":
            yield
            return
        cudnn = torch.backends.cudnn
        convolution, recurrent = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision  # type: ignore[attr-defined]
        cudnn.allow_tf32 = False  # the older name of both, which PyTorch refuses to read where it says otherwise
        cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
        try:
            yield
        finally:
            cudnn.allow_tf32 = convolution == "tf32"
            cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = convolution, recurrent  # type: ignore[attr-defined]

    def compile(self, function: F) -> F:
        """Return `function` compiled where this engine compiles; a failure to compile falls back to `function`."""
        if not self.compiled:
            return function
        return _Fallback(torch.compile(function, dynamic=False, backend=_inductor), function)  # type: ignore[return-value]

    def _reduced(self) -> bool:
        """Whether float32 is not computed as such: PyTorch lets convolutions on CUDA round their factors."""
        if self.bf16 or self.device.type != "cuda":
            return False
        return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")  # type: ignore[attr-defined]

    @property
    def fused(self) -> bool:
        """Whether optimisers have one kernel here for a whole step."""
        return self.device.type in ("cpu", "cuda", "mps", "xpu")

    def place(self, module: nn.Module) -> nn.Module:
        """Move a module to the device, in the memory order that convolutions run fastest in."""
        return module.to(self.device).to(memory_format=torch.channels_last)

    def describe(self) -> dict[str, Any]:
        """Return the facts that bit-identical repetition depends on."""
        return {
            "device": _device_name(self.device),
            "precision": "bf16" if self.bf16 else "fp32",
            "compiled": self.compiled,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            **({"convolutions": "tf32"} if self._reduced() else {}),
        }


def _inductor(graph: Any, inputs: Any) -> Any:
    """Compile a graph with PyTorch's own compiler, forward and backward pass at once.

    By default the backward pass is compiled when it first runs: a failure there would be past mending.
    """
    eager = {"force_non_lazy_backward_lowering": True}
    known = {name: value for name, value in eager.items() if hasattr(torch._functorch.config, name)}
    with torch._functorch.config.patch(known):
        return torch._inductor.compile(graph, inputs)


class _Fallback:
    """A compiled function that gives way to the plain one where it cannot be compiled."""

    def __init__(self, compiled: Callable[..., Any], plain: Callable[..., Any]) -> None:
        self.compiled: Callable[..., Any] | None = compiled
        self.plain = plain

    def __call__(self, *args: Any) -> Any:
        if self.compiled is None:
            return self.plain(*args)
        try:
            return self.compiled(*args)
        except Exception as error:
            from torch._dynamo.exc import TorchDynamoException
            from torch._inductor.exc import InductorError

            if not isinstance(error, (TorchDynamoException, InductorError)):
                raise
            cause = getattr(error, "inner_exception", error)
            reason = f"{type(cause).__name__}: {cause}".splitlines()[0]
            log.warning("torch.compile failed (%.200s); going on without it.", reason)
            self.compiled = None
            return self.plain(*args)


def find_device(name: str) -> torch.device:
    """Return the device called `name`, or the best there is for `auto`."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"{name!r:.80} is no device.", "Use cpu, cuda, cuda:1, mps or auto.") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            found = f"{count} CUDA device{'s' * (count != 1)} found" if count else "no CUDA device is present"
            raise DeviceError(f"{name} was asked for, but {found}.", "Use --device cpu (or auto).")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("mps was asked for, but this machine has no Apple GPU.", "Use --device cpu (or auto).")
    reason = "it holds no values" if device.type == "meta" else ""
    try:
        torch.empty(0, device=device)
    except Exception as error:  # a back end that this PyTorch was built without, or a device that is busy or absent
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]:.200}".rstrip(".")
    if reason:
        raise DeviceError(f"{name} cannot be computed on here ({reason}).", "Use cpu, cuda, cuda:1, mps or auto.")
    return device


def _fast_bf16(device: torch.device, compiled: bool) -> bool:
    """Whether bfloat16 is faster: on recent CUDA, and on CPUs with its instructions once casts are fused away."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return device.type == "cpu" and compiled and bool(supported())


def _can_compile(device: torch.device) -> bool:
    """Whether `torch.compile` has what it needs: a C++ compiler on a CPU, Triton on CUDA."""
    if device.type == "cpu":
        return platform.system() == "Linux" and shutil.which("g++") is not None
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (7, 0)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return device.type


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next step instead of returning it to the system.

    Large temporaries of eager CPU training are otherwise mapped and zeroed anew at every operation. This changes the
    whole process, so only programs call it (the command line does), never the library by itself.
    """
    if platform.system() != "Linux":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        trim_threshold, top_pad, mmap_max = -1, -2, -4
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 2**26)
    except (OSError, AttributeError):  # another C library: nothing to tune
        return
