"""AdEMAMix (2409.03137, algorithm 1) on a CPU by one kernel, `ademamix.cpp`, that the host's C++ compiler makes.

torch.compile makes as fast a loop over float32, but takes seconds to make it, some 25 us for each of a model's tensors
at each step to call it, and does not vectorise the dither. This takes a third of a second, and one call a step.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from potluck.errors import ResourceError
from potluck.lm.optim.adamw import is_decayed
from potluck.lm.optim.base import take_over
from potluck.lm.optim.dither import LOW_BITS, POSITION_STRIDE, STEP_STRIDE
from potluck.lm.optim.horizon import active_range, alpha_at, beta3_at, is_active
from potluck.recipe import AdEMAMixConfig

SOURCE = Path(__file__).with_name("ademamix.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
"""Without -ffast-math: a division stays a division, and linking changes no processor flags."""
REALS = {torch.float32: "float", torch.float64: "double"}


class CompiledAdEMAMix:
    """Steps the parameters of one model as `AdEMAMix` does, to rounding.

    The state is the averages themselves: this and `AdEMAMix` do not read each other's files while the slow average
    is at work. The threads are those torch has at the start; the bits do not depend on them.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: AdEMAMixConfig, total_steps: int) -> None:
        """Starts before the first step of a run of `total_steps`, which the config's fractions refer to.

        Args:
            parameters: on the CPU, contiguous, of one type.

        Raises:
            ResourceError: ``resource.no-compiler``.
        """
        assert config.beta3 > 0, "resolve_optimizer gives the number"
        self._dtype = next(iter(parameters.values())).dtype
        self._slow_dtype = torch.bfloat16 if config.slow_dtype == "bfloat16" else self._dtype
        assert all(p.dtype == self._dtype and p.is_contiguous() for p in parameters.values())
        assert self._slow_dtype == self._dtype or self._dtype == torch.float32, "bfloat16 is float32's half"
        self._config = config
        self._total_steps = total_steps
        self._parameters = dict(parameters)
        self._kernel = _compiled(REALS[self._dtype], os.environ.get("CXX", "g++"))
        threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ademamix") if threads > 1 else None
        self._parts = threads
        self._nu = self._zeros(self._dtype)
        self._fast = self._zeros(self._dtype) if config.beta1 > 0 else {}
        self._slow: dict[str, Tensor] = {}
        self._take_up(0)

    def step(self, learning_rate: float) -> None:
        """One update from the gradients that the parameters hold; parameters without one are left alone."""
        if self._is_active and not self._slow:
            self._slow = self._zeros(self._slow_dtype)
            self._bind()
        given = [p.grad for p in self._parameters.values()]
        gradients = [None if g is None else g.contiguous() for g in given]  # held until the kernel has read them
        assert all(g is None or g.dtype == self._dtype for g in gradients)
        for row, gradient in zip(self._rows, gradients, strict=True):
            row.gradient = None if gradient is None else gradient.data_ptr()
        rates = self._rates(learning_rate)

        def run(part: int) -> None:
            self._kernel(self._rows, len(self._rows), ctypes.byref(rates), part, self._parts)

        if self._pool is None:
            run(0)
        else:
            list(self._pool.map(run, range(self._parts)))
        torch.autograd.graph.increment_version(self._parameters.values())
        self._done += 1
        if self._slow and not self._is_active:
            self._slow = {}
            self._bind()

    def zero_grad(self) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """``exp_avg.NAME``, not with beta1 = 0; ``exp_avg_sq.NAME``; ``exp_avg_slow.NAME`` while it is at work."""
        kinds = {"exp_avg": self._fast, "exp_avg_sq": self._nu, "exp_avg_slow": self._slow}
        return {f"{kind}.{name}": tensor for kind, tensors in kinds.items() for name, tensor in tensors.items()}

    def load_state_tensors(self, tensors: Mapping[str, Tensor], *, step: int) -> None:
        """Takes over the state after `step` updates.

        Raises:
            DataError: ``data.wrong-optimizer``, names, shapes or types are not those of this model at that step.
        """
        self._take_up(step)
        take_over(
            self.state_tensors(),
            tensors,
            of=f" under compiled AdEMAMix after {step} steps",
            same=", under the same profile",
        )

    def _take_up(self, step: int) -> None:
        """Makes room for the state after `step` updates."""
        self._done = step
        first, _ = active_range(self._config, self._total_steps)
        self._slow = self._zeros(self._slow_dtype) if step > first and self._is_active else {}
        self._bind()

    @property
    def _is_active(self) -> bool:
        return is_active(self._config, self._total_steps, self._done)

    def _zeros(self, dtype: torch.dtype) -> dict[str, Tensor]:
        return {name: torch.zeros_like(p, dtype=dtype, requires_grad=False) for name, p in self._parameters.items()}

    def _bind(self) -> None:
        """Tells the kernel where the state is, once for many steps."""

        def address(tensors: Mapping[str, Tensor], name: str) -> int | None:
            return tensors[name].data_ptr() if tensors else None

        self._rows: ctypes.Array[_Tensor] = (_Tensor * len(self._parameters))()
        for row, (name, parameter) in zip(self._rows, self._parameters.items(), strict=True):
            row.elements, row.theta = parameter.numel(), parameter.data_ptr()
            row.m1, row.m2, row.nu = (address(kind, name) for kind in (self._fast, self._slow, self._nu))
            row.decay = self._config.weight_decay if is_decayed(name, parameter) else 0.0

    def _rates(self, learning_rate: float) -> _Rates:
        config, step = self._config, self._done + 1
        first, end = active_range(config, self._total_steps)
        warmup, at_work = round(config.warmup_fraction * (end - first)), step - first
        rates = _Rates(
            take1=1 - config.beta1,
            take2=1 - config.beta2,
            rate=learning_rate,
            rate1=learning_rate / (1 - config.beta1**step),
            root=(1 - config.beta2**step) ** -0.5,
            epsilon=config.epsilon,
            dither=step * STEP_STRIDE & LOW_BITS,
            stride=POSITION_STRIDE,
            narrow=self._slow_dtype == torch.bfloat16,
        )
        if self._slow:
            rates.take3 = 1 - beta3_at(at_work, beta1=config.beta1, beta3=config.beta3, warmup_steps=warmup)
            rates.rate2 = learning_rate * alpha_at(at_work, alpha=config.alpha, warmup_steps=warmup)
        return rates


class _Tensor(ctypes.Structure):
    """As in the source, and so is `_Rates`."""

    _fields_ = (
        ("elements", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("theta", "gradient", "m1", "m2", "nu")),
        ("decay", ctypes.c_double),
    )


class _Rates(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_double) for name in ("take1", "take2", "take3", "rate", "rate1", "rate2", "root", "epsilon")),
        *((name, ctypes.c_uint32) for name in ("dither", "stride")),
        ("narrow", ctypes.c_int32),
    )


@cache
def _compiled(real: str, compiler: str) -> Callable[[ctypes.Array[_Tensor], int, object, int, int], None]:
    """The kernel for weights of a C++ type: a third of a second, once in a process.

    Raises:
        ResourceError: ``resource.no-compiler``.
    """
    with tempfile.TemporaryDirectory(prefix="potluck-kernel-") as folder:
        library = Path(folder) / "ademamix.so"
        command = [*shlex.split(compiler), *FLAGS, f"-DREAL={real}", "-o", str(library), str(SOURCE)]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        except OSError as error:
            raise _no_compiler(f"{compiler}: {error.strerror or error}") from None
        if done.returncode:
            raise _no_compiler(f"{compiler} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        kernel = ctypes.CDLL(str(library)).step
    kernel.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    kernel.restype = None
    return kernel


def _no_compiler(what: str) -> ResourceError:
    fix = "install g++, name another compiler in the variable CXX, or set profile.compile = false"
    return ResourceError("resource.no-compiler", f"AdEMAMix's kernel was not compiled: {what}", fix)
