"""What the AdEMAMix study says of the nine claims of its card."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from potluck.lab.judging import chain, chosen, decide, step_equivalent
from potluck.lab.sides import TEST_NLL, by_seed, ended_by_seed, made, paired, rows
from potluck.lab.statistics import Verdict, less, over_seeds, within
from potluck.lab.studies.ademamix_cells import ADAMW, ADEMAMIX, LEFT_SOURCE, TARGET_SOURCE, Design
from potluck.lab.study import Cell, Found, Judgement, judge, undecided

GUESSING = math.log(1024)
"""NLL of a model that knows nothing: what a training that blew up counts as."""
EQUAL = 1e-3
"""Nats per token between trainings that round otherwise and are the same."""
ALIKE = 0.02
"""Nats per token within which two optimizers land near each other."""
NOT_BETTER = 0.005
"""Nats per token by which a control would have to win to count as better."""


def claims(design: Design, found: Mapping[str, Found]) -> tuple[Judgement, ...]:
    return (
        _equality(design, found),
        _headline(design, found),
        _steps_saved(design, found),
        _robustness(design, found),
        _raised(design, found),
        _unready(design, found),
        *_switches(design, found),
        _remembered(design, found),
        undecided(
            "7b",
            "After one batch is injected, the gain on it decays more slowly, and what is left at the end is larger",
            note="no spec injects rows into a training at a step, nor follows the loss on given training rows: it "
            "would take a field `single.inject = {step, rows}` and the NLL on these rows at each commit",
        ),
        _no_fast(design, found),
        _tiny(design, found),
    )


def _equality(design: Design, found: Mapping[str, Found]) -> Judgement:
    rate = design.adamw.best(found)
    cells = {seed: design.without_alpha(rate, seed) for seed in design.seeds} if rate is not None else {}
    ours, theirs = ended_by_seed(cells, found), design.adamw.at_best(found)
    first, second = _tests(ours), _tests(theirs)
    estimate = paired(first, second)
    same = {seed: float(made(ours[seed], "model") == made(theirs[seed], "model")) for seed in first if seed in second}
    return judge(
        "1",
        "With alpha = 0 it is AdamW",
        estimate,
        decide(within, estimate, EQUAL),
        note="alpha = 0 against AdamW at AdamW's rate, same seed and rows; `same bits` is 1 where the final weights "
        "have one digest. Resuming bit by bit is held by the product's tests, not by this study",
        tokens=design.tokens,
        numbers=rows({"alpha = 0": first, ADAMW: second, "same bits": same}),
    )


def _headline(design: Design, found: Mapping[str, Found]) -> Judgement:
    slow, fast = _tests(design.ademamix.at_best(found)), _tests(design.adamw.at_best(found))
    estimate = paired(slow, fast)
    spread = {seed: _of_documents(design.duel(seed, found), found) for seed in design.seeds}
    return judge(
        "2",
        "At equal steps and a tuned rate for both, its final loss is below AdamW's",
        estimate,
        decide(less, estimate),
        note=f"test NLL at each side's best rate ({chosen(design.ademamix, found)}; {chosen(design.adamw, found)}), "
        "both chosen on valid text from the same grid with all seeds; beta2 is the same, alpha was not searched; "
        "`low` and `high` are of the bootstrap over documents of that seed's pair",
        tokens=design.tokens,
        numbers=rows(
            {
                ADEMAMIX: slow,
                ADAMW: fast,
                "low": {seed: low for seed, (low, _) in spread.items() if low is not None},
                "high": {seed: high for seed, (_, high) in spread.items() if high is not None},
            }
        ),
    )


def _steps_saved(design: Design, found: Mapping[str, Found]) -> Judgement:
    target = _tests(design.ademamix.at_best(found))
    curves = {1.0: _tests(design.adamw.at_best(found))}
    curves |= {length: _tests(design.longer(length).at_best(found)) for length in design.lengths}
    equivalents = {
        seed: step_equivalent([(length, curve[seed]) for length, curve in sorted(curves.items())], target[seed])
        for seed in target
        if all(seed in curve for curve in curves.values())
    }
    estimate = over_seeds([1.0 - value for value in equivalents.values()]) if equivalents else None
    return judge(
        "2b",
        "AdamW needs more steps for the same loss",
        estimate,
        decide(less, estimate),
        unit="1 minus AdamW's steps over AdEMAMix's",
        note="AdamW's test NLL at its lengths, each with a search of the rate of its own, and between them linear in "
        f"the logarithm of the steps; the equivalent is cut at 1 and at {max(curves):g}: at the upper cut it is at "
        "least that",
        tokens=design.tokens,
        numbers=rows(
            {
                ADEMAMIX: target,
                **{f"{ADAMW} x{length:g}": curve for length, curve in sorted(curves.items())},
                "step equivalent": equivalents,
            }
        ),
    )


def _robustness(design: Design, found: Mapping[str, Found]) -> Judgement:
    best = _tests(design.adamw.at_best(found))
    grid = {(a, r): _tests(design.at_alpha(a).at(r, found)) for a in design.alphas for r in design.rates}
    shares = {seed: sum(cell[seed] < best[seed] for cell in grid.values() if seed in cell) / len(grid) for seed in best}
    estimate = over_seeds([0.5 - share for share in shares.values()]) if shares else None
    numbers = [
        {"alpha": a, "learning rate": r, "seed": seed, "minus the best AdamW": cell[seed] - best[seed]}
        for (a, r), cell in grid.items()
        for seed in sorted(set(cell) & set(best))
    ]
    return judge(
        "3",
        f"Most cells of rate and alpha in {min(design.alphas):g} to {max(design.alphas):g} beat the best AdamW",
        estimate,
        decide(less, estimate),
        unit="0.5 minus the share of cells that win",
        note=f"{len(grid)} cells a seed against that seed's AdamW at the rate chosen on valid text; edges of the grid "
        "count",
        tokens=design.tokens,
        numbers=numbers,
    )


def _raised(design: Design, found: Mapping[str, Found]) -> Judgement:
    raised, plain = _tests(design.raised.at_best(found)), _tests(design.adamw.at_best(found))
    estimate = paired(plain, raised)
    return judge(
        "4",
        "AdamW whose beta1 is raised to beta3 does not beat beta1 = 0.9",
        estimate,
        decide(less, estimate, NOT_BETTER),
        note=f"beta1 = 0.9 minus {design.raised.name}, rates of both searched on valid text; held if the control is "
        f"not better by {NOT_BETTER:g}. With a scheduler on beta1 it was not tried: no spec has one",
        tokens=design.tokens,
        numbers=rows({"raised": raised, "0.9": plain}),
    )


def _unready(design: Design, found: Mapping[str, Found]) -> Judgement:
    ready, bare = (_tests(design.unready(warmup).at_best(found)) for warmup in (1.0, 0.0))
    estimate = paired(ready, bare)
    return judge(
        "5",
        "From scratch, without warm-up of alpha and beta3, loss is worse or unstable",
        estimate,
        decide(less, estimate),
        note=f"with minus without, alpha = {max(design.alphas):g} and the slowest beta3 that so many steps allow, "
        "rates of both searched; what blew up counts as guessing. That early updates are larger is not decidable: "
        "results have no norm of the update (a figure `update_norm` in a commit would do)",
        tokens=design.tokens,
        numbers=rows({"with warm-up": ready, "without": bare}),
    )


def _switches(design: Design, found: Mapping[str, Found]) -> tuple[Judgement, ...]:
    fast, slow = design.adamw.best(found), design.ademamix.best(found)
    adamw, pure = _tests(design.adamw.at_best(found)), _tests(design.ademamix.at_best(found))
    by_fraction: dict[float, dict[int, float]] = {}
    returned: dict[int, float] = {}
    if fast is not None and slow is not None:
        for fraction in design.switches:
            cells = {seed: design.switched(fraction, fast, seed) for seed in design.seeds}
            by_fraction[fraction] = _tests(ended_by_seed(cells, found))
        returned = _tests(ended_by_seed({seed: design.returned(slow, seed) for seed in design.seeds}, found))
    below = [paired(switched, adamw) for switched in by_fraction.values()]
    earlier = [paired(first, second) for first, second in itertools.pairwise(by_fraction.values())]
    between = [paired(pure, returned), paired(returned, adamw)]
    switched = {f"switch at {fraction:g}": tests for fraction, tests in by_fraction.items()}
    numbers = rows({ADAMW: adamw, **switched, ADEMAMIX: pure, "back at 0.5": returned})
    how = (
        "AdamW's rate throughout, alpha 2 and no schedulers after the switch, as in the paper; the transient rise is "
        "shorter than a commit and is not judged"
    )
    back = "AdEMAMix's rate and alpha until the switch; AdamW has its own best rate"
    tokens = design.tokens
    return (
        chain(
            "6a",
            "After a switch from AdamW the final loss is below AdamW's",
            below,
            note=how,
            tokens=tokens,
            numbers=numbers,
        ),
        chain("6b", "The earlier the switch the better", earlier, note=how, tokens=tokens, numbers=numbers),
        chain(
            "6c",
            "AdEMAMix that becomes AdamW half-way ends between the two",
            between,
            note=back,
            tokens=tokens,
            numbers=numbers,
        ),
    )


def _remembered(design: Design, found: Mapping[str, Found]) -> Judgement:
    """Of text that is not read any more: how much worse it has become than with reading on."""
    rises: dict[float, dict[str, dict[int, float]]] = {
        shift: {name: _rise(design, name, shift, found) for name in (ADEMAMIX, ADAMW)} for shift in design.shifts
    }
    return chain(
        "7a",
        "Text that is not read any more is forgotten more slowly",
        [paired(both[ADEMAMIX], both[ADAMW]) for both in rises.values()],
        note=f"rise of the test NLL on {LEFT_SOURCE} after a shift to text like {TARGET_SOURCE} alone, against the "
        "same training that reads on as before; AdEMAMix's rise minus AdamW's, each at its own best rate. This is a "
        "domain, not the batch of the paper: see 7b",
        tokens=design.tokens,
        numbers=rows({f"{name} {shift:g}": rise for shift, both in rises.items() for name, rise in both.items()}),
    )


def _no_fast(design: Design, found: Mapping[str, Found]) -> Judgement:
    without, with_it = _tests(design.no_fast.at_best(found)), _tests(design.ademamix.at_best(found))
    estimate = paired(without, with_it)
    return judge(
        "8",
        "beta1 = 0, with one buffer fewer, lands near beta1 = 0.9",
        estimate,
        decide(within, estimate, ALIKE),
        note=f"alike means within {ALIKE:g}; rates of both searched. That a buffer is saved is held by the product's "
        "tests",
        tokens=design.tokens,
        numbers=rows({"beta1 = 0": without, "0.9": with_it}),
    )


def _tiny(design: Design, found: Mapping[str, Found]) -> Judgement:
    slow, fast = (side.at_best(found) for side in design.tiny)
    train, test = paired(_last_losses(slow), _last_losses(fast)), paired(_tests(slow), _tests(fast))
    told = f"in training {train.mean:+.4f}, on test text {test.mean:+.4f}" if train and test else "nothing"
    gains = (decide(less, train), decide(less, test))
    verdicts: Mapping[tuple[Verdict, Verdict], Verdict] = {
        ("held", "not held"): "held",
        ("held", "held"): "not held",
    }
    return judge(
        "9",
        "On text that is read many times a gain in training need not be one on test text",
        test,
        verdicts.get(gains, "not decidable"),
        note=f"AdEMAMix minus AdamW on a small text, rates of both searched on its valid text: {told}. Held if it is "
        "ahead in training (mean loss up to the last commit) and behind on test text; not held if ahead on both",
        tokens=design.tokens,
        numbers=rows(
            {
                f"{ADEMAMIX}, training": _last_losses(slow),
                f"{ADAMW}, training": _last_losses(fast),
                f"{ADEMAMIX}, test": _tests(slow),
                f"{ADAMW}, test": _tests(fast),
            }
        ),
    )


def _rise(design: Design, name: str, shift: float, found: Mapping[str, Found]) -> dict[int, float]:
    """By seed, NLL on the text that is left: after the shift, minus that of reading on."""
    if design.adamw.best(found) is None or design.ademamix.best(found) is None:
        return {}
    rises: dict[int, float] = {}
    for seed in design.seeds:
        cell = design.remembered(seed, found)
        one = found.get(cell.key) if cell is not None else None
        levels = [
            one.told("by_source", LEFT_SOURCE, "models", f"{name} {shift:g} {which}", "nll")
            if one is not None
            else None
            for which in ("specialist", "generalist")
        ]
        if levels[0] is not None and levels[1] is not None:
            rises[seed] = levels[0] - levels[1]
    return rises


def _of_documents(cell: Cell | None, found: Mapping[str, Found]) -> tuple[float | None, float | None]:
    one = found.get(cell.key) if cell is not None else None
    pair = ("pairs", f"{ADEMAMIX} - {ADAMW}")
    return (one.told(*pair, "low"), one.told(*pair, "high")) if one is not None else (None, None)


def _tests(found: Mapping[int, Found]) -> dict[int, float]:
    return by_seed(found, *TEST_NLL, blown_up=GUESSING)


def _last_losses(found: Mapping[int, Found]) -> dict[int, float]:
    return by_seed(found, "lineages", "the model", -1, 1)
