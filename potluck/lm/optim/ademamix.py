"""AdEMAMix (2409.03137, algorithm 1) by torch's fused kernels.

    m1 <- beta1 m1 + (1 - beta1) g          the fast average
    m2 <- beta3 m2 + (1 - beta3) g          the slow one, not bias-corrected
    nu <- beta2 nu + (1 - beta2) g^2
    theta <- theta - rate ((m1 / (1 - beta1^t) + alpha m2) / (sqrt(nu / (1 - beta2^t)) + eps) + decay theta)

AdamW's kernel would do all but m2 if it found m1 + k m2 where it keeps m1, with k = alpha (1 - beta1^t). So
that is what is kept: the mix, s (m1 + k m2). From c = m1 + k m2 and the next m2 the next mix is

    c' = beta1 c + (k' - beta1 k / beta3) m2 + G g,    G = 1 - beta1 + beta1 k (1 - beta3) / beta3.

SGD's kernel with momentum updates m2 and adds a multiple of it to the mix. AdamW's then adds the gradient, with
weights that sum to 1; the scale s makes them do so. Taking k m2 out of the mix leaves m1, which happens once,
when the slow average retires. With beta1 = 0 there is no mix to keep: it is made anew at each step, in scratch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor, nn

from potluck.lm.optim.adamw import fused_adamw
from potluck.lm.optim.base import take_over
from potluck.lm.optim.dither import WIDTH, Dither
from potluck.lm.optim.horizon import active_range, alpha_at, beta3_at, is_active
from potluck.lm.optim.slices import Chunk, cut, views
from potluck.recipe import AdEMAMixConfig

SLICE = 1 << 18
"""Elements both kernels visit before the next ones, which the second then finds in the cache: 5 MiB in all."""
DEVICE_SLICE = 1 << 24
"""On an accelerator, where slices only bound the scratch memory."""


class AdEMAMix:
    """Steps the parameters of one model; decays those that AdamW decays.

    Outside of the steps in which the slow average is at work this is AdamW, bit by bit, and so is its state.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: AdEMAMixConfig, total_steps: int) -> None:
        """Starts before the first step of a run of `total_steps`, which the config's fractions refer to."""
        assert config.beta3 > 0, "resolve_optimizer gives the number"
        narrow = config.slow_dtype == "bfloat16"
        assert not narrow or all(p.dtype == torch.float32 for p in parameters.values()), "bfloat16 is float32's half"
        self._config = config
        self._total_steps = total_steps
        self._parameters = dict(parameters)
        device = next(iter(parameters.values())).device
        self._size = SLICE if device.type == "cpu" else DEVICE_SLICE
        self._chunks = cut(parameters, size=self._size)
        self._steps = torch.zeros((), dtype=torch.float32, device=device)
        self._nu = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
        self._mix = {name: torch.zeros_like(nu) for name, nu in self._nu.items()} if config.beta1 > 0 else {}
        self._mix_scale = torch.ones((), dtype=torch.float64)
        self._slow: dict[str, Tensor] = {}
        room = max(-(-chunk.elements // WIDTH) * WIDTH for chunk in self._chunks)
        self._mix_scratch = torch.zeros(0 if self._mix else room, device=device, dtype=self._dtype)
        self._wide_scratch = torch.zeros(room if narrow else 0, device=device)
        self._dither = Dither(device) if narrow else None
        self._take_up(0)

    def step(self, learning_rate: float) -> None:
        """One update from the gradients that the parameters hold; parameters without one are left alone."""
        gradients = {
            name: torch.split(p.grad.reshape(-1), self._size)
            for name, p in self._parameters.items()
            if p.grad is not None
        }
        with torch.no_grad():
            if self._is_active and not self._slow:
                self._slow = self._zero_slow()
                self._bind()
            kernels = self._mixed_step() if self._slow else _Step(beta1=self._config.beta1)
            self._done += 1
            self._steps.fill_(float(self._done))
            if self._dither is not None:
                self._dither.turn_to(self._done)
            for chunk, bound in zip(self._chunks, self._bound, strict=True):
                present = [part.name in gradients for part in chunk.slices]
                found = [gradients[part.name][part.index] for part in chunk.slices if part.name in gradients]
                if found:
                    here = bound if all(present) else bound.only(present)
                    self._step_chunk(here, found, kernels, learning_rate, chunk.decayed)
                if self._slow and self._mix and not all(present):
                    self._carry_mix(bound.only([not one for one in present]), kernels)
            self._mix_scale.fill_(kernels.mix_scale)
            if self._slow and not self._is_active:
                self._retire_slow(kernels)

    def zero_grad(self) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """AdamW's moments; while the slow average is at work it too, and the mix in place of the first moment.

        That is ``exp_avg_sq.NAME``; ``exp_avg.NAME``, or ``exp_avg_mix.NAME`` with ``exp_avg_slow.NAME`` and
        ``mix_scale``. With beta1 = 0 there is neither first moment nor mix.
        """
        tensors = {f"exp_avg_sq.{name}": tensor for name, tensor in self._nu.items()}
        first = "exp_avg_mix" if self._slow else "exp_avg"
        tensors |= {f"{first}.{name}": tensor for name, tensor in self._mix.items()}
        tensors |= {f"exp_avg_slow.{name}": tensor for name, tensor in self._slow.items()}
        return {**tensors, "mix_scale": self._mix_scale} if self._slow and self._mix else tensors

    def load_state_tensors(self, tensors: Mapping[str, Tensor], *, step: int) -> None:
        """Takes over the state after `step` updates.

        Raises:
            DataError: ``data.wrong-optimizer``, names, shapes or types are not those of this model at that step.
        """
        self._take_up(step)
        take_over(self.state_tensors(), tensors, of=f" under AdEMAMix after {step} steps")

    def _take_up(self, step: int) -> None:
        """Makes room for the state after `step` updates."""
        self._done = step
        first, _ = active_range(self._config, self._total_steps)
        self._slow = self._zero_slow() if step > first and self._is_active else {}
        self._bind()

    @property
    def _is_active(self) -> bool:
        return is_active(self._config, self._total_steps, self._done)

    @property
    def _dtype(self) -> torch.dtype:
        return next(iter(self._nu.values())).dtype

    def _zero_slow(self) -> dict[str, Tensor]:
        dtype = self._dtype if self._dither is None else torch.bfloat16
        return {name: torch.zeros_like(nu, dtype=dtype) for name, nu in self._nu.items()}

    def _retire_slow(self, last: _Step) -> None:
        for name, mix in self._mix.items():
            mix.div_(last.mix_scale).sub_(self._slow[name].to(mix.dtype), alpha=last.slow_share)
        self._slow = {}
        self._bind()

    def _bind(self) -> None:
        """Looks up each chunk's part of the state, once for many steps."""
        self._bound = [self._bind_chunk(chunk) for chunk in self._chunks]

    def _bind_chunk(self, chunk: Chunk) -> _Bound:
        def scratch(whole: Tensor) -> list[Tensor]:
            return [whole[part.offset : part.offset + part.elements] for part in chunk.slices]

        slow = views(self._slow, chunk, size=self._size) if self._slow else []
        return _Bound(
            parameters=views(self._parameters, chunk, size=self._size),
            nu=views(self._nu, chunk, size=self._size),
            mix=views(self._mix, chunk, size=self._size) if self._mix else scratch(self._mix_scratch),
            slow=slow,
            wide=scratch(self._wide_scratch) if slow and self._dither is not None else slow,
            scratch=self._wide_scratch[: -(-chunk.elements // WIDTH) * WIDTH],
        )

    def _mixed_step(self) -> _Step:
        """What the kernels are told in the next step, in the terms of the head of this file."""
        config, step = self._config, self._done + 1
        first, end = active_range(config, self._total_steps)
        warmup = round(config.warmup_fraction * (end - first))
        at_work = step - first
        alpha = alpha_at(at_work, alpha=config.alpha, warmup_steps=warmup)
        beta3 = beta3_at(at_work, beta1=config.beta1, beta3=config.beta3, warmup_steps=warmup)
        if config.beta1 == 0:
            # Half of gradient + alpha m2; the rate makes up for the half, and for the kernel's bias correction.
            return _Step(beta1=0.5, beta3=beta3, add_slow=alpha, rate_factor=2 * (1 - 0.5**step))
        beta1, correction = config.beta1, 1 - config.beta1**step
        share, share_before, scale_before = alpha * correction, 0.0, 1.0
        if at_work > 1:
            alpha_before = alpha_at(at_work - 1, alpha=config.alpha, warmup_steps=warmup)
            share_before = alpha_before * (1 - beta1 ** (step - 1))
            scale_before = float(self._mix_scale)
        of_gradient = 1 - beta1 + beta1 * share_before * (1 - beta3) / beta3
        keep = 1 / (1 + scale_before * of_gradient / beta1)
        scale = keep * scale_before / beta1
        return _Step(
            beta1=keep,
            beta3=beta3,
            add_slow=scale_before * (share / beta1 - share_before / beta3),
            rate_factor=(1 - keep**step) / (correction * scale),
            mix_scale=scale,
            slow_share=share,
            share_before=share_before,
        )

    def _step_chunk(
        self, state: _Bound, gradients: list[Tensor], kernels: _Step, learning_rate: float, decayed: bool
    ) -> None:
        if not self._mix:
            torch._foreach_zero_(state.mix)
        if kernels.beta3 is not None:
            self._update_slow(state, gradients, kernels.beta3, kernels.add_slow)
        fused_adamw(
            state.parameters,
            gradients,
            state.mix,
            state.nu,
            [self._steps] * len(gradients),
            learning_rate=learning_rate * kernels.rate_factor,
            beta1=kernels.beta1,
            beta2=self._config.beta2,
            epsilon=self._config.epsilon,
            weight_decay=self._config.weight_decay / kernels.rate_factor if decayed else 0.0,
        )

    def _carry_mix(self, state: _Bound, kernels: _Step) -> None:
        """The mix of the same averages under the new s and k, of parameters without a gradient."""
        for mix, slow in zip(state.mix, state.slow, strict=True):
            mix.mul_(kernels.mix_scale / float(self._mix_scale))
            mix.add_(slow.to(mix.dtype), alpha=kernels.mix_scale * (kernels.slow_share - kernels.share_before))

    def _update_slow(self, state: _Bound, gradients: list[Tensor], beta3: float, add_slow: float) -> None:
        """The slow average's step, and the mix plus `add_slow` times the result."""
        if self._dither is not None:
            torch._foreach_copy_(state.wide, state.slow)
        torch._fused_sgd_(
            state.mix,
            gradients,
            state.wide,
            weight_decay=0.0,
            momentum=beta3,
            dampening=beta3,
            lr=-add_slow,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )
        if self._dither is not None:
            self._dither.round_(state.scratch)
            torch._foreach_copy_(state.slow, state.wide)


@dataclass(frozen=True, kw_only=True)
class _Step:
    """What the kernels are told; without a `beta3` it is AdamW's alone."""

    beta1: float
    """Share of the mix that AdamW's kernel keeps."""
    beta3: float | None = None
    add_slow: float = 0.0
    rate_factor: float = 1.0
    mix_scale: float = 1.0
    """s after the step."""
    slow_share: float = 0.0
    """k after the step."""
    share_before: float = 0.0
    """k before it."""


@dataclass(frozen=True, kw_only=True)
class _Bound:
    """A chunk's slices of everything, flat, in the order of the chunk."""

    parameters: list[Tensor]
    nu: list[Tensor]
    mix: list[Tensor]
    slow: list[Tensor]
    wide: list[Tensor]
    """The slow average as the kernels have it: itself, or float32 copies in `scratch`."""
    scratch: Tensor

    def only(self, present: list[bool]) -> _Bound:
        def chosen(tensors: list[Tensor]) -> list[Tensor]:
            return list(compress(tensors, present))

        return _Bound(
            parameters=chosen(self.parameters),
            nu=chosen(self.nu),
            mix=chosen(self.mix),
            slow=chosen(self.slow),
            wide=chosen(self.wide),
            scratch=self.scratch,
        )
