"""AdamW (1711.05101), torch's fused kernel, with a state that goes to disk and comes back bit by bit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from potluck.errors import DataError
from potluck.recipe import OptimizerConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW:
    """Steps the parameters of one model.

    Weight decay is applied to the blocks' matrices only, not to norms and not to the embedding: a rare
    word's row gets a gradient seldom and would be decayed at every step, and the embedding is the
    output layer as well.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimizerConfig) -> None:
        self._parameters = dict(parameters)
        decayed = [p for n, p in self._parameters.items() if is_decayed(n, p)]
        plain = [p for n, p in self._parameters.items() if not is_decayed(n, p)]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        betas = (config.beta1, config.beta2)
        self._inner = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=config.epsilon, fused=True)

    def step(self, learning_rate: float) -> None:
        """One update from the gradients that the parameters hold."""
        for group in self._inner.param_groups:
            group["lr"] = learning_rate
        self._inner.step()

    def zero_grad(self) -> None:
        self._inner.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """Both moments of every parameter, as ``exp_avg.NAME`` and ``exp_avg_sq.NAME``; zeros before the first step."""
        found: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            state = self._inner.state.get(parameter, {})
            for moment in MOMENTS:
                found[f"{moment}.{name}"] = state.get(moment, torch.zeros_like(parameter)).detach()
        return found

    def load_state_tensors(self, tensors: Mapping[str, Tensor], *, step: int) -> None:
        """Takes over moments after `step` updates.

        Raises:
            DataError: ``data.wrong-optimizer``, names or shapes are not those of this model.
        """
        wanted = {f"{m}.{n}": p.shape for n, p in self._parameters.items() for m in MOMENTS}
        if wanted != {name: t.shape for name, t in tensors.items()}:
            raise DataError(
                "data.wrong-optimizer",
                "the optimizer file does not belong to this model",
                "use the optimizer blob that the weights' own manifest names",
            )
        for name, parameter in self._parameters.items():
            state = {m: tensors[f"{m}.{name}"].to(parameter.device, copy=True) for m in MOMENTS}
            state["step"] = torch.tensor(float(step), dtype=torch.float32, device=parameter.device)
            self._inner.state[parameter] = state


def is_decayed(name: str, parameter: Tensor) -> bool:
    return parameter.dim() >= 2 and not name.startswith("embedding.")
