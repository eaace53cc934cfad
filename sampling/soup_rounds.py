"""A soup that several nodes train together, as tasks: gradients or local steps of a part, and the outer steps.

The state between two rounds is a handful of blobs, and a task names all that it reads by their digests:

- `common`: shared model and coefficients. `bank-PPP`: the experts that part P owns. `setting`: what never changes.
- With one local step: `optimizer` of `common`, and of each bank; a step is the one of `potluck.lm.train`, divided.
- With more: `optimizer` of each part, of all that it steps; and `momentum` of the outer steps.

Products are of the whole bank wherever one node's would be: a library may round the rows of a block otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from potluck.config import from_mapping, to_mapping
from potluck.errors import DataError
from potluck.ids import Json
from potluck.lm.schedule import learning_rate
from potluck.lm.soup_spread import SpreadSetting
from potluck.lm.tensors import load_tensors
from potluck.recipe import Segment
from sampling.batches import SegmentReader
from sampling.soup_exchange import exchange
from sampling.taskio import TaskCall, TaskOutput

if TYPE_CHECKING:
    from torch import Tensor

    from potluck.lm.soup import Soup
    from potluck.lm.soup_learner import SoupLearner

EXPERTS = "bank.experts"
COMMON, BANK, OPTIMIZER, GRADIENTS, DELTA, AVERAGED, MOMENTUM = (
    f"weights-{name}" for name in ("common", "bank", "optimizer", "gradients", "delta", "averaged", "momentum")
)
"""Names of inputs; where there is one for each part, its number follows."""


def begin(call: TaskCall) -> TaskOutput:
    """Task `outer_step`, what `begin`: the soup of a recipe before its first step. Parameter `setting`."""
    from potluck.lm.soup import Soup

    setting = from_mapping(SpreadSetting, call.params["setting"], "setting.")
    recipe = setting.recipe
    assert recipe.soup is not None, recipe
    soup = Soup(recipe.model, recipe.soup, seed=recipe.init_seed)
    files = {"setting": call.write_json("setting", to_mapping(setting)), "common": _save(call, "common", _common(soup))}
    for part in range(setting.spread.parts):
        own = setting.spread.share(recipe.soup.experts, part)
        files[f"bank-{part:03d}"] = _save(call, f"bank-{part:03d}", _experts(soup, own))
    return TaskOutput(files=files)


def part_gradients(call: TaskCall) -> TaskOutput:
    """Task `train`, what `gradients`: of a part's models in one step, not clipped.

    Inputs: `setting`, `weights-common`, `weights-bank-PPP`, `tokens_manifest`, `labels_manifest`. Parameters: `part`,
    `round`. The blob holds ``gradients`` [m / W, size] and ``mixtures`` [m / W, k].
    """
    import torch

    setting, part, step = _setting(call), int(call.params["part"]), int(call.params["round"])
    learner = _learner(call, setting, common=False, experts=range(0), done=step)
    reader = _reader(call, setting, range(step, step + 1))
    mixtures = reader.mixtures(step)
    assert mixtures is not None
    own, rows = setting.spread.share(len(mixtures), part), reader.batch(step)
    rows = rows[_slice(setting.spread.share(len(rows), part))]
    with torch.no_grad():
        _, thetas = learner.models(torch.from_numpy(mixtures))
    losses, gradients = learner.model_gradients(thetas[_slice(own)], rows, of=len(mixtures))
    loss = _finite(float(losses.sum()) * setting.spread.parts, setting, step)
    found = {"gradients": gradients, "mixtures": torch.from_numpy(mixtures[_slice(own)])}
    figures: dict[str, Json] = {"loss": loss, "tokens": rows.shape[0] * (rows.shape[1] - 1)}
    return TaskOutput(files={"gradients": _save(call, "gradients", found)}, figures=figures)


def outer_common(call: TaskCall) -> TaskOutput:
    """Task `outer_step`, what `common`: steps shared model and coefficients by the gradients of all parts.

    Inputs: `setting`, `weights-common`, `weights-bank-PPP`, `weights-gradients-PPP`, and `weights-optimizer` after the
    first step. Parameter: `round`.
    """
    setting, step = _setting(call), int(call.params["round"])
    learner = _learner(call, setting, common=True, experts=range(0), done=step)
    norm = _step(call, setting, learner, step)
    files = {
        "common": _save(call, "common", _common(learner.soup)),
        "optimizer": _save(call, "optimizer", learner.optimizer.state_tensors()),
    }
    return TaskOutput(files=files, figures={"grad_norm": norm})


def outer_bank(call: TaskCall) -> TaskOutput:
    """Task `outer_step`, what `bank`: steps a part's experts. Inputs as `outer_common`; parameters: `part`, `round`."""
    setting, part, step = _setting(call), int(call.params["part"]), int(call.params["round"])
    assert setting.recipe.soup is not None
    own = setting.spread.share(setting.recipe.soup.experts, part)
    learner = _learner(call, setting, common=False, experts=own, done=step)
    _step(call, setting, learner, step)
    files = {
        "bank": _save(call, "bank", _experts(learner.soup, own)),
        "optimizer": _save(call, "optimizer", learner.optimizer.state_tensors()),
    }
    return TaskOutput(files=files)


def part_steps(call: TaskCall) -> TaskOutput:
    """Task `train`, what `local_steps`: a part's steps of a round on its own mixtures; the others' experts stand still.

    Inputs as `part_gradients`, and `weights-optimizer` after the first round. The blobs: `delta`, what shared model and
    coefficients were less what they are now; `bank`, the part's experts; `optimizer`; and what `exchange` adds.
    """
    setting, part = _setting(call), int(call.params["part"])
    recipe, spread = setting.recipe, setting.spread
    assert recipe.soup is not None
    steps = spread.steps(int(call.params["round"]), recipe.schedule.total_steps)
    own = spread.share(recipe.soup.experts, part)
    learner = _learner(call, setting, common=True, experts=own, done=steps.start)
    reader = _reader(call, setting, steps)
    losses = []
    for step in steps:
        mixtures, rows = reader.mixtures(step), reader.batch(step)
        assert mixtures is not None
        learner.optimizer.zero_grad()
        loss, _ = learner.take_gradients(
            rows[_slice(spread.share(len(rows), part))],
            None,
            mixtures[_slice(spread.share(len(mixtures), part))],
            clip=recipe.optimizer.grad_clip,
        )
        learner.optimizer.step(learning_rate(recipe.schedule, step))
        losses.append(_finite(float(loss), setting, step))
        call.progress(len(losses) / len(steps))
    before = load_tensors(call.path(COMMON))
    delta = {name: before[name] - now for name, now in _common(learner.soup).items()}
    files = {
        "delta": _save(call, "delta", delta),
        "bank": _save(call, "bank", _experts(learner.soup, own)),
        "optimizer": _save(call, "optimizer", learner.optimizer.state_tensors()),
    }
    tokens = len(steps) * recipe.batch_size // spread.parts * (recipe.columns - 1)
    figures: dict[str, Json] = {"loss": sum(losses) / len(losses), "tokens": tokens}
    if spread.transport == "hivemind":
        exchanged = exchange(call, spread, part, files["delta"])
        files, figures = {**files, **exchanged.files}, {**figures, **exchanged.figures}
    return TaskOutput(files=files, figures=figures)


def outer_average(call: TaskCall) -> TaskOutput:
    """Task `outer_step`, what `average`: one outer step of shared model and coefficients by the parts' changes.

    Inputs: `setting`, `weights-common`, `weights-delta-PPP` or `weights-averaged`, their average that another transport
    made, and `weights-momentum` after the first round, if there is any.
    """
    spread = _setting(call).spread
    common = load_tensors(call.path(COMMON))
    if AVERAGED in call.inputs:
        mean = load_tensors(call.path(AVERAGED))
    else:
        mean = average([load_tensors(call.path(name)) for name in call.numbered(DELTA)])
    momentum = load_tensors(call.path(MOMENTUM)) if MOMENTUM in call.inputs else None
    common, momentum = nesterov(common, mean, momentum, rate=spread.outer_rate, beta=spread.outer_momentum)
    files = {"common": _save(call, "common", common)}
    if momentum is not None:
        files["momentum"] = _save(call, "momentum", momentum)
    return TaskOutput(files=files)


def assemble(call: TaskCall) -> TaskOutput:
    """Task `outer_step`, what `assemble`: the weights of a soup's checkpoint from `weights-common` and -`bank-PPP`."""
    import torch

    blocks = [load_tensors(call.path(name))[EXPERTS] for name in call.numbered(BANK)]
    tensors = {**load_tensors(call.path(COMMON)), EXPERTS: torch.cat(blocks)}
    return TaskOutput(files={"weights": _save(call, "weights", tensors)})


def average(deltas: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of equally shaped tensors by name, summed in the order given."""
    total = {name: tensor.clone() for name, tensor in deltas[0].items()}
    for delta in deltas[1:]:
        for name, tensor in total.items():
            tensor += delta[name]
    return {name: tensor / len(deltas) for name, tensor in total.items()}


def nesterov(
    weights: Mapping[str, Tensor],
    delta: Mapping[str, Tensor],
    momentum: Mapping[str, Tensor] | None,
    *,
    rate: float,
    beta: float,
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """An outer step (2311.08105, algorithm 1, with torch's form of Nesterov's momentum).

    Args:
        delta: where the weights were less where the parts went, on average.
        momentum: None before the first step, and without any.

    Returns:
        The new weights, and the momentum unless beta is 0.
    """
    if beta == 0:
        return {name: tensor - rate * delta[name] for name, tensor in weights.items()}, None
    kept = {name: tensor if momentum is None else beta * momentum[name] + tensor for name, tensor in delta.items()}
    moved = {name: tensor - rate * (delta[name] + beta * kept[name]) for name, tensor in weights.items()}
    return moved, kept


def _setting(call: TaskCall) -> SpreadSetting:
    return from_mapping(SpreadSetting, call.json("setting"), "setting.")


def _learner(call: TaskCall, setting: SpreadSetting, *, common: bool, experts: range, done: int) -> SoupLearner:
    """At the state that the inputs hold, `done` steps behind it; with the optimizer of what is owned."""
    from potluck.lm.soup_learner import Owned, SoupLearner
    from potluck.lm.train import apply_profile

    recipe = setting.recipe
    apply_profile(recipe.profile)
    learner = SoupLearner(recipe, recipe.profile, Owned(common=common, experts=experts))
    _fill(learner.soup, call)
    if OPTIMIZER in call.inputs:
        learner.optimizer.load_state_tensors(load_tensors(call.path(OPTIMIZER)), step=done)
    return learner


def _fill(soup: Soup, call: TaskCall) -> None:
    """Takes over the weights of a state, bit by bit.

    Raises:
        DataError: ``data.wrong-weights``.
    """
    import torch

    own = soup.tensors()
    experts = own.pop(EXPERTS)
    blocks = [load_tensors(call.path(name))[EXPERTS] for name in call.numbered(BANK)]
    wanted = [(name, tensor, tensor.shape) for name, tensor in own.items()]
    common = load_tensors(call.path(COMMON))
    same = {name: shape for name, _, shape in wanted} == {name: tensor.shape for name, tensor in common.items()}
    if not same or sum(map(len, blocks)) != len(experts):
        raise DataError("data.wrong-weights", f"the inputs do not hold {soup.config}", "use the blobs of one round")
    with torch.no_grad():
        for name, tensor, _ in wanted:
            tensor.copy_(common[name])
        torch.cat(blocks, out=experts)


def _reader(call: TaskCall, setting: SpreadSetting, steps: range) -> SegmentReader:
    size = setting.recipe.batch_size
    data = replace(setting.data, start=steps.start * size)
    segment = Segment(index=0, start_step=steps.start, end_step=steps.stop, data=data)
    return SegmentReader(segment, size, setting.recipe.columns, call.blobs, call.json("tokens_manifest"))


def _step(call: TaskCall, setting: SpreadSetting, learner: SoupLearner, step: int) -> float:
    """One step of what the learner owns by the gradients of all parts; their norm before it was clipped."""
    import torch

    parts = [load_tensors(call.path(name)) for name in call.numbered(GRADIENTS)]
    gradients, mixtures = (torch.cat([part[name] for part in parts]) for name in ("gradients", "mixtures"))
    alpha, thetas = learner.models(mixtures)
    norm = learner.take_up(alpha, thetas, gradients, clip=setting.recipe.optimizer.grad_clip)
    learner.optimizer.step(learning_rate(setting.recipe.schedule, step))
    return norm.item()


def _finite(loss: float, setting: SpreadSetting, step: int) -> float:
    if math.isfinite(loss):
        return loss
    what = f"{setting.recipe.role}: loss {loss} at step {step}"
    raise DataError("data.loss-not-finite", what, "lower the learning rate, or lengthen the warm-up")


def _common(soup: Soup) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in soup.tensors().items() if name != EXPERTS}


def _experts(soup: Soup, own: range) -> dict[str, Tensor]:
    return {EXPERTS: soup.tensors()[EXPERTS][_slice(own)]}


def _slice(own: range) -> slice:
    return slice(own.start, own.stop)


def _save(call: TaskCall, name: str, tensors: Mapping[str, Tensor]) -> Path:
    from safetensors.torch import save_file

    path = call.out / f"{name}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return path
