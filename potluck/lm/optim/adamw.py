"""AdamW (1711.05101), torch's fused kernel, with a state that goes to disk and comes back bit by bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from potluck.lm.optim.base import take_over
from potluck.recipe import AdamWConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW:
    """Steps the parameters of one model.

    Weight decay is applied to the blocks' matrices only, not to norms and not to the embedding: a rare
    word's row gets a gradient seldom and would be decayed at every step, and the embedding is the
    output layer as well.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: AdamWConfig) -> None:
        self._config = config
        self._states = {name: _State.fresh(parameter) for name, parameter in parameters.items()}
        decayed = [s for name, s in self._states.items() if is_decayed(name, s.parameter)]
        plain = [s for name, s in self._states.items() if not is_decayed(name, s.parameter)]
        self._groups = [(decayed, config.weight_decay), (plain, 0.0)]

    def step(self, learning_rate: float) -> None:
        """One update from the gradients that the parameters hold; parameters without one are left alone."""
        for states, weight_decay in self._groups:
            with_gradient = [s for s in states if s.parameter.grad is not None]
            if with_gradient:
                self._step_group(with_gradient, learning_rate, weight_decay)

    def zero_grad(self) -> None:
        for state in self._states.values():
            state.parameter.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Both moments of every parameter, as ``exp_avg.NAME`` and ``exp_avg_sq.NAME``; zeros before the first step."""
        return {
            f"{moment}.{name}": getattr(state, moment) for name, state in self._states.items() for moment in MOMENTS
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor], *, step: int) -> None:
        """Takes over moments after `step` updates.

        Raises:
            DataError: ``data.wrong-optimizer``, names, shapes or types are not those of this model.
        """
        take_over(self.state_tensors(), tensors)
        for state in self._states.values():
            state.steps.fill_(float(step))

    def _step_group(self, states: list[_State], learning_rate: float, weight_decay: float) -> None:
        steps = [s.steps for s in states]
        with torch.no_grad():
            torch._foreach_add_(steps, 1.0)
            fused_adamw(
                [s.parameter for s in states],
                [s.parameter.grad for s in states if s.parameter.grad is not None],
                [s.exp_avg for s in states],
                [s.exp_avg_sq for s in states],
                steps,
                learning_rate=learning_rate,
                beta1=self._config.beta1,
                beta2=self._config.beta2,
                epsilon=self._config.epsilon,
                weight_decay=weight_decay,
            )


@dataclass(frozen=True, kw_only=True)
class _State:
    parameter: nn.Parameter
    exp_avg: Tensor
    exp_avg_sq: Tensor
    steps: Tensor
    """Updates done, a float32 scalar as the kernel wants it."""

    @staticmethod
    def fresh(parameter: nn.Parameter) -> _State:
        return _State(
            parameter=parameter,
            exp_avg=torch.zeros_like(parameter, requires_grad=False),
            exp_avg_sq=torch.zeros_like(parameter, requires_grad=False),
            steps=torch.zeros((), dtype=torch.float32, device=parameter.device),
        )


def fused_adamw(
    parameters: list[Tensor],
    gradients: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    *,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
) -> None:
    """The kernel of torch.optim.AdamW(fused=True), called directly: building that class imports the compiler,
    a second of every worker's start.

    Args:
        steps: updates done, this one included: a float32 scalar for each tensor.
    """
    torch._fused_adamw_(
        parameters,
        gradients,
        exp_avgs,
        exp_avg_sqs,
        [],
        steps,
        lr=learning_rate,
        beta1=beta1,
        beta2=beta2,
        weight_decay=weight_decay,
        eps=epsilon,
        amsgrad=False,
        maximize=False,
    )


def is_decayed(name: str, parameter: Tensor) -> bool:
    return parameter.dim() >= 2 and not name.startswith("embedding.")
