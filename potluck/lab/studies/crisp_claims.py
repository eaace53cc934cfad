"""What the CRISP study says of the claims of its card."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping
from typing import Any

from potluck.lab.judging import chain, chosen
from potluck.lab.sides import by_seed, ended_by_seed, minus, paired, rows
from potluck.lab.studies.crisp_cells import BOTH, GENERALIST, SEARCH_K, SPECIALIST, Design, few
from potluck.lab.study import CORPUS, Found, Judgement, undecided

REPEATS = ("histogram", "repeats")


def claims(design: Design, found: Mapping[str, Found]) -> tuple[Judgement, ...]:
    return (
        _headline(design, found),
        _optimum(design, found),
        *_sizes(design, found),
        _coarse(design, found),
        undecided(
            "4b",
            "Specialists beat a classifier that picks the corpus' text most like the target",
            note='no method picks text by a classifier: it would take a partition `by = "classifier"` of two domains',
        ),
        undecided(
            "5",
            "Clusters of a sentence encoder are as good as those of LSI or better",
            note="not tried: cells have no encoder; `partition.encoder` takes a folder of sentence-transformers",
        ),
        *_tuning(design, found),
        undecided(
            "6c",
            "Training on the target's text alone overfits",
            note="a single run on the target has a tokenizer of its own, and another held-out text: it would take a "
            "control `crisp.controls.target_only`, trained on the target's rows",
        ),
        _several(design, found),
        _switching(design, found),
        _general(design, found),
    )


def _headline(design: Design, found: Mapping[str, Found]) -> Judgement:
    ours = {target: _best(design, target, found) for target in design.targets}
    theirs = {target: design.side(GENERALIST, target).at_best(found) for target in design.targets}
    first = {target: _target_nll(each, SPECIALIST) for target, each in ours.items()}
    second = {target: _target_nll(each, GENERALIST) for target, each in theirs.items()}
    told = "; ".join(
        chosen(side, found) for target in design.targets for side in (design.side(w, target) for w in BOTH)
    )
    return chain(
        "1",
        f"On each of {len(design.targets)} held-out targets the specialist's loss is below the generalist's",
        [paired(first[target], second[target]) for target in design.targets],
        note=f"test NLL of the target, equal tokens and model; rates ({told}) and the specialist's clusters were "
        "chosen on valid text of the target's source in the corpus; the interval is of the target that is furthest "
        "from the claim",
        tokens=design.tokens,
        numbers=[
            {"target": target, **row}
            for target in design.targets
            for row in rows(
                {
                    "K": {seed: float(each.cell.body["partition"]["k"]) for seed, each in ours[target].items()},
                    "R": by_seed(ours[target], *REPEATS),
                    SPECIALIST: first[target],
                    GENERALIST: second[target],
                }
            )
        ],
    )


def _optimum(design: Design, found: Mapping[str, Found]) -> Judgement:
    curves = {target: _curve(design, target, found) for target in design.targets}
    steps = []
    for target, curve in curves.items():
        rate = design.side(SPECIALIST, target).best(found)
        best = design.by_clusters(target, rate).best(found) if rate is not None else None
        middle = _target_nll(curve.get(int(best), {}), SPECIALIST) if best is not None else {}
        steps += [paired(middle, _target_nll(curve.get(end, {}), SPECIALIST)) for end in design.ends]
    return chain(
        "2",
        f"The best number of clusters lies between {design.ends[0]} and {design.ends[1]}",
        steps,
        note="the best number between the ends, chosen on valid text, minus each end; R, how often text is read, "
        "stands beside every K, for the reversal should come where R is above about 4",
        tokens=design.tokens,
        numbers=[
            {"target": target, "K": k, **row}
            for target, curve in curves.items()
            for k, each in curve.items()
            for row in rows({"R": by_seed(each, *REPEATS), SPECIALIST: _target_nll(each, SPECIALIST)})
        ],
    )


def _sizes(design: Design, found: Mapping[str, Found]) -> tuple[Judgement, ...]:
    """How much worse fine clusters are than coarse ones, in each corner of the two sizes."""
    rate = design.side(SPECIALIST, design.main).best(found)
    losses: dict[tuple[str, str], dict[int, float]] = {}
    numbers: list[dict[str, Any]] = []
    for data, target in design.sizes if rate is not None else ():
        assert rate is not None
        coarse, fine = (
            ended_by_seed({s: design.crisp(target, rate, s, k=k, data=data) for s in design.seeds}, found)
            for k in design.ends
        )
        losses[data, target] = minus(_target_nll(fine, SPECIALIST), _target_nll(coarse, SPECIALIST))
        numbers += [
            {"corpus": data, "target": target, **row}
            for row in rows(
                {
                    "R of coarse": by_seed(coarse, *REPEATS),
                    "R of fine": by_seed(fine, *REPEATS),
                    "fine minus coarse": losses[data, target],
                }
            )
        ]
    large, little = design.main, few(design.main)
    pairs = {
        "3a": ((CORPUS, large), (design.sizes[-1][0], large)),
        "3b": ((CORPUS, large), (CORPUS, little)),
    }
    words = {
        "3a": "With a smaller corpus fine clusters lose: the reversal comes at fewer of them",
        "3b": "With a smaller target fine clusters lose: the reversal comes at fewer of them",
    }
    how = (
        f"NLL with {design.ends[1]} clusters minus {design.ends[0]}, on {design.main}; of the large text minus of the "
        "small one. Rates were searched on the large texts. The small target has its own test text, the small corpus "
        "its own tokenizer: differences are compared, not levels"
    )
    return tuple(
        chain(
            claim,
            words[claim],
            [paired(losses.get(first, {}), losses.get(second, {}))],
            note=how,
            tokens=design.tokens,
            numbers=numbers,
        )
        for claim, (first, second) in pairs.items()
    )


def _coarse(design: Design, found: Mapping[str, Found]) -> Judgement:
    curves = {target: _curve(design, target, found) for target in design.targets}
    nll = {
        target: [_target_nll(curve.get(k, {}), SPECIALIST) for k in (design.fine, design.clusters[0])]
        for target, curve in curves.items()
    }
    return chain(
        "4a",
        f"{design.fine} clusters beat weights on {design.clusters[0]} coarse domains, at equal tokens",
        [paired(fine, coarse) for fine, coarse in nll.values()],
        note=f"both numbers were fixed beforehand, both at the specialist's rate, searched at {SEARCH_K} clusters; "
        "weights of the coarse domains are the target's histogram, not learned as DoGE's are",
        tokens=design.tokens,
        numbers=[
            {"target": target, **row}
            for target, (fine, coarse) in nll.items()
            for row in rows({f"K={design.fine}": fine, f"K={design.clusters[0]}": coarse})
        ],
    )


def _tuning(design: Design, found: Mapping[str, Found]) -> tuple[Judgement, ...]:
    gaps: dict[str, dict[int, float]] = {}
    columns: dict[str, Mapping[int, float]] = {}
    for text in (design.main, few(design.main)):
        levels = {}
        for which in BOTH:
            rate = design.side(which, design.main).best(found)
            each = design.tuned(which, text, rate).at_best(found) if rate is not None else {}
            levels[which] = _target_nll(each, f"{which} fine-tuned")
            columns[f"{which}, {text}"] = levels[which]
        gaps[text] = minus(levels[SPECIALIST], levels[GENERALIST])
    large, little = gaps[design.main], gaps[few(design.main)]
    zero = dict.fromkeys(little, 0.0)
    how = (
        f"{design.finetune_steps} steps on the target's text, the best of four checkpoints by its valid text; each "
        "side has its own rates of training and of fine-tuning, chosen on valid text of the source in the corpus"
    )
    numbers = rows(columns)
    return (
        chain(
            "6a",
            "Fine-tuned on little text the specialist is still ahead of the generalist",
            [paired(little, zero)],
            note=how,
            tokens=design.tokens,
            numbers=numbers,
        ),
        chain(
            "6b",
            "It is less ahead the more text both are fine-tuned on",
            [paired(little, large)],
            note=f"specialist minus generalist, of the small text minus of the large one. {how}",
            tokens=design.tokens,
            numbers=numbers,
        ),
    )


def _several(design: Design, found: Mapping[str, Found]) -> Judgement:
    words = "A specialist for several targets lies between the one of each and the generalist"
    rate = design.side(SPECIALIST, design.main).best(found)
    if rate is None or len(design.targets) < 2:
        return undecided("7", words, note="this budget has one target")
    together = ended_by_seed({seed: design.of_all(rate, seed) for seed in design.seeds}, found)
    steps, numbers = [], []
    for target in design.targets:
        own = design.side(SPECIALIST, target).at_best(found)
        levels = {
            "own": _source_nll(own, target, SPECIALIST),
            "of all": _source_nll(together, target, SPECIALIST),
            GENERALIST: _source_nll(together, target, GENERALIST),
        }
        steps += [paired(first, second) for first, second in itertools.pairwise(levels.values())]
        numbers += [{"target": target, **row} for row in rows(levels)]
    return chain(
        "7",
        words,
        steps,
        note=f"own minus that of all, and that of all minus the generalist of its run, for each target, at {SEARCH_K} "
        f"clusters; targets count alike; the rate of the two together is that of {design.main}",
        tokens=design.tokens,
        numbers=numbers,
    )


def _switching(design: Design, found: Mapping[str, Found]) -> Judgement:
    rate = design.side(SPECIALIST, design.main).best(found)
    levels: dict[str, dict[int, float]] = {}
    for switch in (0.0, *design.switches) if rate is not None else ():
        assert rate is not None
        each = ended_by_seed({s: design.crisp(design.main, rate, s, switch=switch) for s in design.seeds}, found)
        levels[f"switch at {switch:g}"] = _target_nll(each, SPECIALIST)
        if not switch:
            base = _target_nll(each, GENERALIST)
    levels |= {GENERALIST: base} if levels else {}
    return chain(
        "8",
        "A generalist that becomes a specialist lies between the two, nearer to it the later it switches",
        [paired(first, second) for first, second in itertools.pairwise(levels.values())],
        note=f"each switch minus the next later one, the generalist last; on {design.main}, all at one rate",
        tokens=design.tokens,
        numbers=rows(levels),
    )


def _general(design: Design, found: Mapping[str, Found]) -> Judgement:
    ours = {target: _best(design, target, found) for target in design.targets}
    losses = {
        target: [by_seed(each, "headline", "corpus", "models", which, "nll") for which in (GENERALIST, SPECIALIST)]
        for target, each in ours.items()
    }
    return chain(
        "9",
        "On the corpus as it lies specialists lose to the generalist",
        [paired(first, second) for first, second in losses.values()],
        note="generalist minus specialist on the corpus' test text, of the specialists of claim 1. Specialists on "
        "each other's targets were not compared",
        tokens=design.tokens,
        numbers=[
            {"target": target, **row}
            for target, (first, second) in losses.items()
            for row in rows({GENERALIST: first, SPECIALIST: second})
        ],
    )


def mean_curve(design: Design, target: str, found: Mapping[str, Found]) -> list[tuple[float, float]]:
    """(clusters, mean test NLL of the specialist)."""
    told = {k: _target_nll(each, SPECIALIST) for k, each in _curve(design, target, found).items()}
    return [(float(k), statistics.fmean(nll.values())) for k, nll in told.items() if nll]


def _best(design: Design, target: str, found: Mapping[str, Found]) -> dict[int, Found]:
    """The specialist at the rate and number of clusters that were chosen."""
    rate = design.side(SPECIALIST, target).best(found)
    return design.by_clusters(target, rate).at_best(found) if rate is not None else {}


def _curve(design: Design, target: str, found: Mapping[str, Found]) -> dict[int, dict[int, Found]]:
    """By clusters, by seed."""
    rate = design.side(SPECIALIST, target).best(found)
    if rate is None:
        return {}
    return {
        k: ended_by_seed({s: design.crisp(target, rate, s, k=k) for s in design.seeds}, found) for k in design.clusters
    }


def _target_nll(found: Mapping[int, Found], name: str) -> dict[int, float]:
    return by_seed(found, "headline", "target", "models", name, "nll")


def _source_nll(found: Mapping[int, Found], source: str, name: str) -> dict[int, float]:
    told = {seed: each.told("by_source", source, "models", name, "nll") for seed, each in found.items()}
    return {seed: nll for seed, nll in told.items() if nll is not None}
