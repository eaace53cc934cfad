"""What the soup study says of the claims of its card."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from potluck.lab.judging import chain, chosen, decide
from potluck.lab.sides import TEST_NLL, by_seed, ended_by_seed, minus, paired, rows
from potluck.lab.statistics import over_seeds, within
from potluck.lab.studies.soup_cells import CONSTANT, CRISP, GENERIC, SOUP, Design, for_target, own_mean
from potluck.lab.study import Cell, Found, Judgement, judge, undecided

PRICE = 0.02
"""Share of the generic model's NLL that the soup's model of the corpus may lose, or gain."""
COLLAPSED = 0.02
"""Nats per token: a soup that specialises by less does not specialise."""
NEAR = 0.05
"""Nats per token that a soup's specialist may be behind CRISP's."""


def claims(design: Design, found: Mapping[str, Found]) -> tuple[Judgement, ...]:
    return (
        _headline(design, found),
        _generic(design, found),
        _wrong(design, found),
        _control(design, found),
        undecided(
            "4",
            "The soup beats the best of several domain experts of equal tokens in all",
            note="no spec trains a plain model on one domain of a partition from its first step: it would take "
            "`single.mixture.start = [{name, weight}]`, by the domain's number where it has no name yet",
        ),
        _near_crisp(design, found),
        *_experts(design, found),
        *_supports(design, found),
        undecided(
            "8",
            "The gain survives fine-tuning on the target and shrinks with more of its text",
            note="neither the soup's specialists nor the generic model can be trained on: it would take "
            "`instantiate.finetune`, as crisp has it, for the specialist and the model of the corpus",
        ),
    )


def _headline(design: Design, found: Mapping[str, Found]) -> Judgement:
    names: dict[str, Callable[[str], str]] = {
        "specialist": for_target,
        SOUP: lambda _: SOUP,
        GENERIC: lambda _: GENERIC,
    }
    means = {name: _mean(design, found, design.targets, of) for name, of in names.items()}
    apart = {
        f"{name}, {what}": _mean(design, found, targets, of)
        for what, targets in (("left out", design.left_out), ("diluted", _diluted(design)))
        for name, of in names.items()
        if targets
    }
    told = "; ".join(chosen(side, found) for side in (design.soups, design.generics))
    return chain(
        "1",
        f"Over {len(design.targets)} targets theta(h) is better than theta of the corpus and than a plain model",
        [paired(means["specialist"], means[other]) for other in (SOUP, GENERIC)],
        note="mean over targets, whose documents no cluster was built from, of the test NLL; h is of the target's "
        f"train text; equal tokens. Rates, chosen on valid text: {told}. `left out` are sources of which the corpus "
        "has nothing, `diluted` those of which it has other documents; told is the comparison that is further from "
        "the claim",
        tokens=design.tokens,
        numbers=rows({**means, **apart}),
    )


def _generic(design: Design, found: Mapping[str, Found]) -> Judgement:
    soup = by_seed(_soups(design, found), "headline", "test", "models", SOUP, "nll")
    plain = by_seed(design.generics.at_best(found), *TEST_NLL)
    shares = {seed: difference / plain[seed] for seed, difference in minus(soup, plain).items()}
    estimate = over_seeds(list(shares.values())) if shares else None
    return judge(
        "2",
        f"On the corpus the soup is within {PRICE:.0%} of the plain model",
        estimate,
        decide(within, estimate, PRICE),
        unit="share of the plain model's NLL",
        note="the soup's model of the corpus minus the plain model, on the corpus' test text, each at its own best "
        "rate; a soup that is better by more is not within either",
        tokens=design.tokens,
        numbers=rows({SOUP: soup, GENERIC: plain, "share": shares}),
    )


def _wrong(design: Design, found: Mapping[str, Found]) -> Judgement:
    own = _mean(design, found, design.targets, for_target)
    others: dict[int, float] = {}
    dominated: dict[int, float] = {}
    for seed in own:
        matrix = {
            (a, b): _nll(design, found, a, seed, for_target(b))
            for a, b in itertools.product(design.targets, design.targets)
        }
        levels = {pair: nll for pair, nll in matrix.items() if nll is not None}
        if len(levels) < len(matrix):
            continue
        wrong = [levels[pair] for pair in itertools.permutations(design.targets, 2)]
        best = [levels[a, a] <= min(levels[a, b] for b in design.targets) for a in design.targets]
        others[seed], dominated[seed] = statistics.fmean(wrong), sum(best) / len(best)
    return chain(
        "3",
        "The model of another target is worse than the target's own",
        [paired(own, others)],
        note="mean over targets of the own model's test NLL, minus the mean of all others'; `own is best` is the "
        "share of targets on which none of the others is better",
        tokens=design.tokens,
        numbers=rows({"own": own, "others": others, "own is best": dominated}),
    )


def _control(design: Design, found: Mapping[str, Found]) -> Judgement:
    own = _mean(design, found, design.targets, for_target)
    constant = _mean(design, found, design.targets, lambda _: CONSTANT)
    return chain(
        "3b",
        "A soup as large whose coefficients do not see h is worse: the gain is not the bank's size",
        [paired(own, constant)],
        note="theta(h) minus the constant control at the soup's rate, equal tokens, mean over targets",
        tokens=design.tokens,
        numbers=rows({"own": own, CONSTANT: constant}),
    )


def _near_crisp(design: Design, found: Mapping[str, Found]) -> Judgement:
    own = _mean(design, found, design.crisp_targets, for_target)
    crisp = _mean(design, found, design.crisp_targets, lambda _: CRISP)
    plain = _mean(design, found, design.crisp_targets, lambda _: GENERIC)
    soups, trained = _soups(design, found), design.specialists.at_best(found)
    price = {seed: cost for seed, each in soups.items() if (cost := each.told("facts", "flops")) is not None}
    each_price = {seed: cost for seed, each in trained.items() if (cost := each.told("facts", "flops")) is not None}
    return chain(
        "5",
        f"It comes within {NEAR:g} of CRISP, which trains a model for each target",
        [paired(own, crisp)],
        margin=NEAR,
        note=f"theta(h) minus CRISP's specialist, mean over {', '.join(design.crisp_targets)}, as many tokens for "
        f"each; CRISP's rate was searched on {design.crisp_targets[0]}, at as many clusters. FLOPs are of the soup, "
        "once for any number of targets, and of CRISP, for each of them",
        tokens=design.tokens,
        numbers=rows({"own": own, CRISP: crisp, GENERIC: plain, "soup FLOPs": price, "CRISP FLOPs": each_price}),
    )


def _experts(design: Design, found: Mapping[str, Found]) -> tuple[Judgement, ...]:
    levels = _levels(design, found, {f"n={n}": partial(design.soup, experts=n) for n in design.experts})
    plain = _plain_by_source(design, found)
    first = next(iter(levels.values()), {})
    how = (
        "mean over the corpus' sources of the test NLL of each source's own model, h of its valid text; at the rate "
        f"that was chosen for n = {design.experts[-1]}"
    )
    estimate = paired(first, plain)
    numbers = rows({**levels, GENERIC: plain})
    return (
        chain(
            "6a",
            "More experts do not harm",
            [paired(later, before) for before, later in itertools.pairwise(levels.values())],
            margin=COLLAPSED,
            note=f"each number minus the one before; held if none is worse by {COLLAPSED:g}. {how}",
            tokens=design.tokens,
            numbers=numbers,
        ),
        judge(
            "6b",
            "One expert is about as good as a plain model",
            estimate,
            decide(within, estimate, 2 * COLLAPSED),
            note=f"n = {design.experts[0]} minus the plain model on that text, alike within {2 * COLLAPSED:g}. {how}",
            tokens=design.tokens,
            numbers=numbers,
        ),
    )


def _supports(design: Design, found: Mapping[str, Found]) -> tuple[Judgement, ...]:
    levels = _levels(design, found, {f"s={s}": partial(design.soup, support=s) for s in design.supports})
    rate = design.soups.best(found)
    ends = (design.supports[0], design.supports[-1])
    middle = levels.get(f"s={design.support}", {})
    widest: dict[int, Found] = {}
    if rate is not None:
        cells = {seed: design.soup(rate, seed, support=ends[1]) for seed in design.seeds}
        widest = ended_by_seed(cells, found)
    own, natural = _own(widest), _of_sources(widest, lambda _: SOUP)
    estimate = paired(own, natural)
    how = f"mean over the corpus' sources, at the rate that was chosen for s = {design.support}"
    return (
        chain(
            "7a",
            f"A support between {ends[0]} and {ends[1]} domains is best",
            [paired(middle, levels.get(f"s={end}", {})) for end in ends if end != design.support],
            note=f"s = {design.support}, fixed beforehand, minus each end; {how}",
            tokens=design.tokens,
            numbers=rows(levels),
        ),
        judge(
            "7b",
            "With support on all domains the soup collapses to one model",
            estimate,
            decide(within, estimate, COLLAPSED),
            note=f"s = {ends[1]}: each source's own model minus the model of the corpus, alike within {COLLAPSED:g}; "
            f"{how}. A tenth of the mixtures are the corpus' own whatever the support",
            tokens=design.tokens,
            numbers=rows({"own": own, SOUP: natural}),
        ),
    )


def _levels(
    design: Design, found: Mapping[str, Found], settings: Mapping[str, Callable[[float, int], Cell]]
) -> dict[str, dict[int, float]]:
    """By setting and seed, the mean NLL of sources' own models."""
    rate = design.soups.best(found)
    if rate is None:
        return {}
    return {
        name: _own(ended_by_seed({seed: of(rate, seed) for seed in design.seeds}, found))
        for name, of in settings.items()
    }


def _soups(design: Design, found: Mapping[str, Found]) -> dict[int, Found]:
    rate = design.soups.best(found)
    bases = {seed: design.base(rate, seed, found) for seed in design.seeds} if rate is not None else {}
    return {seed: one for seed, one in bases.items() if one is not None}


def _own(found: Mapping[int, Found]) -> dict[int, float]:
    told = {seed: own_mean(each.report) for seed, each in found.items()}
    return {seed: level for seed, level in told.items() if level is not None}


def _of_sources(found: Mapping[int, Found], name_of: Callable[[str], str]) -> dict[int, float]:
    """Mean over a report's sources of one model's NLL on each."""
    means: dict[int, float] = {}
    for seed, each in found.items():
        sources = list((each.report or {}).get("by_source") or {})
        levels = [each.told("by_source", source, "models", name_of(source), "nll") for source in sources]
        known = [level for level in levels if level is not None]
        if known and len(known) == len(levels):
            means[seed] = statistics.fmean(known)
    return means


def _plain_by_source(design: Design, found: Mapping[str, Found]) -> dict[int, float]:
    return _of_sources(design.generics.at_best(found), lambda _: "model")


def _mean(
    design: Design, found: Mapping[str, Found], targets: Sequence[str], name_of: Callable[[str], str]
) -> dict[int, float]:
    """By seed, the mean over targets of a model's NLL; a seed of which one target is missing has none."""
    means: dict[int, float] = {}
    for seed in design.seeds:
        levels = [_nll(design, found, target, seed, name_of(target)) for target in targets]
        known = [level for level in levels if level is not None]
        if known and len(known) == len(levels):
            means[seed] = statistics.fmean(known)
    return means


def _nll(design: Design, found: Mapping[str, Found], target: str, seed: int, name: str) -> float | None:
    cell = design.compared(target, seed, found)
    one = found.get(cell.key) if cell is not None else None
    return one.told("models", name, "nll") if one is not None else None


def _diluted(design: Design) -> tuple[str, ...]:
    return tuple(target for target in design.targets if target not in design.left_out)
