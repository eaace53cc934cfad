"""What the cells of the SmallTalk study say of its claims, numbered as in section 10 of the method's card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from potluck.lab.statistics import Estimate, every, less, monotone, over_seeds, within
from potluck.lab.study import Bars, Found, Judgement, Lines, Plot, Table, judge, number, undecided

MAIN = 4
EXPERTS = (2, 4, 8)
ROUTERS: Mapping[str, Mapping[str, Any]] = {
    "router hidden=48": {"preset": "0.11M"},
    "router hidden=96": {"preset": "0.35M"},
}
"""Beside the preset router-16: with a vocabulary of 1,024, four and fifteen times its parameters."""
ALIKE = 0.02
"""Nats per token: what the card calls no gain at all on like text."""
STARVING = 0.1
"""Of an equal share: an expert with fewer test rows is starved."""
CLUSTERS, STREAM = "clusters", "stream order"
"""Of prefixes, by tf-idf; and rows assigned as they come."""
SIDES = {"experts": "expert", "dense": "dense"}
"""What a spec calls each, and how its search does."""
SEARCHED = "both sides searched batch size and learning rate over one grid on valid text, see the search tables"


def key_of(num: int, seed: int) -> str:
    return f"E={num} seed={seed}"


def variant_key(name: str, seed: int) -> str:
    return f"{name} seed={seed}"


def side_of(found: Found, side: str) -> tuple[int, float]:
    """Batch size and learning rate of `experts` or `dense` that a search found; of a failed one the spec's own."""
    cells = found.results.get("search", {}).get(side, [])
    known = [cell for cell in cells if cell["valid_nll_suffix"] is not None]
    best = min(known, key=lambda cell: cell["valid_nll_suffix"], default=found.cell.body[side])
    return best["batch_size"], best["learning_rate"]


def claims_of(seeds: Sequence[int], found: Mapping[str, Found], *, tokens: int) -> tuple[Judgement, ...]:
    claims = _Claims(seeds, found, tokens)
    return (
        claims.mixture_beats_dense(),
        claims.gain_grows(),
        claims.router_size(),
        claims.prefix_curve(),
        claims.routers_beat_clusters(),
        claims.segments(),
        undecided(
            "7",
            "The bytes of a round are 4 T E / S a router; the experts' phase exchanges none",
            note="the product has no count of bytes by run and round: the coordinator counts what crosses its border "
            "by plane, ever since its home exists. That experts exchange nothing is so by construction: nodes have no "
            "channel to each other",
        ),
        claims.random_is_worse(),
        claims.sorted_beats_stream(),
        undecided(
            "control: no balancing",
            "Without balancing, EM collapses onto few experts",
            note="the product has no unbalanced training: a round's steps follow from equal shares",
        ),
    )


def plots_of(seeds: Sequence[int], found: Mapping[str, Found], *, prefix: int) -> tuple[Plot, ...]:
    sides = {"mixture": "mixture", "dense": "dense twin", "oracle": "oracle routing", "random_split": "random split"}
    bars = {f"{num} experts": {name: _mean(seeds, found, num, side) for side, name in sides.items()} for num in EXPERTS}
    curve = [
        (float(length), nll)
        for length in (prefix // 8, prefix // 4, prefix // 2)
        if (nll := _mean(seeds, found, MAIN, length)) is not None
    ]
    whole = _mean(seeds, found, MAIN, "mixture")
    dense = _mean(seeds, found, MAIN, "dense")
    curve += [(float(prefix), whole)] if whole is not None else []
    flat = [(x, dense) for x, _ in curve] if dense is not None else []
    work: dict[str, list[tuple[float, float]]] = {}
    for side, name in (("mixture", "mixture"), ("dense", "dense twin")):
        flops = {num: _told(found, num, seeds[0], "flops", side) for num in EXPERTS}
        points = [(flops[num], _mean(seeds, found, num, side)) for num in EXPERTS]
        work[name] = [(x, y) for x, y in points if x is not None and y is not None]
    return (
        Bars(title="Test text after the prefix, mean over seeds", groups=bars),
        Lines(
            title="Routed by fewer tokens, four experts",
            x_label="tokens of the routing prefix",
            series={"mixture": curve, "dense twin": flat},
        ),
        Lines(title="Loss against training FLOPs, 2, 4 and 8 experts", x_label="FLOPs", x_log=True, series=work),
    )


def tables_of(seeds: Sequence[int], found: Mapping[str, Found]) -> tuple[Table, ...]:
    tables = []
    for key in (*(key_of(num, seeds[0]) for num in EXPERTS), variant_key(CLUSTERS, seeds[0])):
        rows = _search_rows(found[key]) if key in found else []
        if rows:
            columns = ("side", "batch", "learning rate", "steps", "valid NLL", "")
            tables.append(Table(title=f"Search: {key}", columns=columns, rows=tuple(rows)))
    levels = [
        (f"E={num}", seed, *(_level(found, num, seed, side) for side in ("mixture", "dense", "random_split", "oracle")))
        for num in EXPERTS
        for seed in seeds
    ]
    columns = ("", "seed", "mixture", "dense twin", "random split", "oracle routing")
    note = "The oracle routes each row to the expert that does best on what is scored: a bound, not a method."
    return (*tables, Table(title="Test NLL after the prefix", columns=columns, rows=tuple(levels), note=note))


class _Claims:
    def __init__(self, seeds: Sequence[int], found: Mapping[str, Found], tokens: int) -> None:
        self._seeds, self._found, self._tokens = seeds, found, tokens

    def mixture_beats_dense(self) -> Judgement:
        return self._pair(
            "1",
            "Four experts beat one dense model of their size, at equal FLOPs",
            {seed: self._gap(MAIN, seed) for seed in self._seeds},
            note=f"mixture minus dense twin on text after the prefix; the twin has all the mixture's FLOPs, routers "
            f"and scoring too; {SEARCHED}. A miss means that the experts are starved of text, or limited by it "
            "and not by their size",
        )

    def gain_grows(self) -> Judgement:
        words = "The gain grows with the number of experts at equal tokens an expert"
        gaps = {num: [self._gap(num, seed) for seed in self._seeds] for num in EXPERTS}
        rows = [
            {"seed": seed, **{f"E={num}": gaps[num][index] for num in EXPERTS}}
            for index, seed in enumerate(self._seeds)
        ]
        steps = [_estimate(_minus(gaps[more], gaps[few])) for few, more in pairwise(EXPERTS)]
        return self._chain(
            "2",
            words,
            steps,
            rows,
            note="mixture minus dense twin of equal FLOPs, from each number of experts to the next; the effect is that "
            f"of the worse step; {SEARCHED}",
        )

    def router_size(self) -> Judgement:
        words = "Routers of very different size route alike"
        base = [self._nll(key_of(MAIN, seed)) for seed in self._seeds]
        others = {name: [self._nll(variant_key(name, seed)) for seed in self._seeds] for name in ROUTERS}
        estimates = [_estimate(_minus(nll, base)) for nll in others.values()]
        rows = [
            {"seed": seed, "router hidden=16": base[index], **{name: nll[index] for name, nll in others.items()}}
            for index, seed in enumerate(self._seeds)
        ]
        known = [one for one in estimates if one is not None]
        worst = max(known, key=lambda one: abs(one.mean), default=None) if len(known) == len(estimates) else None
        return judge(
            "3",
            words,
            worst,
            every(within(one, ALIKE) for one in known) if worst is not None else "not decidable",
            note=f"mixture with larger routers minus mixture with the smallest, alike within {ALIKE} nats; the effect "
            "is that of the size furthest off. Experts take the rates found with the smallest router",
            tokens=self._tokens,
            numbers=rows,
        )

    def prefix_curve(self) -> Judgement:
        words = "Fewer tokens to route by cost gradually, and an eighth of them still beat the dense model"
        main = [self._found.get(key_of(MAIN, seed)) for seed in self._seeds]
        lengths = sorted((int(text) for text in _results(main[0]).get("prefixes", {})), reverse=True)
        by_length = {
            str(length): [number(_results(one), "prefixes", str(length), "mixture", "nll_suffix") for one in main]
            for length in lengths
        }
        curve = {"whole": [number(_results(one), "headline", "mixture", "nll_suffix") for one in main], **by_length}
        dense = [number(_results(one), "headline", "dense", "nll_suffix") for one in main]
        steps = [_estimate(_minus(longer, shorter)) for longer, shorter in pairwise(curve.values())]
        steps.append(_estimate(_minus(list(curve.values())[-1], dense)))
        rows = [
            {"seed": seed, **{name: nll[index] for name, nll in curve.items()}, "dense": dense[index]}
            for index, seed in enumerate(self._seeds)
        ]
        note = (
            "NLL with a longer routing prefix minus the next shorter one, at inference, on the same targets; and at "
            "the shortest minus the dense twin. The effect is that of the worst step"
        )
        return self._chain("4", words, steps, rows, note=note)

    def routers_beat_clusters(self) -> Judgement:
        clusters = self._found.get(variant_key(CLUSTERS, self._seeds[0]))
        searched = "both searched the learning rate of their experts on valid text, see the search tables"
        taken = "the experts of both have the rates that were found with routers"
        rates = searched if "search" in _results(clusters) else taken
        differences = {
            seed: _difference(self._nll(key_of(MAIN, seed)), self._nll(variant_key(CLUSTERS, seed)))
            for seed in self._seeds
        }
        return self._pair(
            "5",
            "Routers beat balanced clusters of tf-idf vectors when both see only the prefix",
            differences,
            note="mixture sorted by routers minus mixture sorted by clusters of LSI vectors of prefixes, equal tokens "
            f"an expert; {rates}",
        )

    def segments(self) -> Judgement:
        words = "Every expert beats dense on the text routed to it, and none starves without balancing"
        rows, worst, least = [], [], []
        for seed in self._seeds:
            one = self._found.get(key_of(MAIN, seed))
            gaps = [number(one and one.report, "by_expert", e, "mixture_minus_dense", "mean") for e in range(MAIN)]
            loads = [number(_results(one), "headline", "loads", e) for e in range(MAIN)]
            known_gaps = [gap for gap in gaps if gap is not None]
            known_loads = [load for load in loads if load is not None]
            starved = len(known_loads) < MAIN or not sum(known_loads)
            share = None if starved else MAIN * min(known_loads) / sum(known_loads)
            worst.append(max(known_gaps) if len(known_gaps) == MAIN else None)
            least.append(None if share is None else STARVING - share)
            told = {f"expert {index}": gap for index, gap in enumerate(gaps)}
            rows.append({"seed": seed, **told, "least share": share})
        estimates = [_estimate(worst), _estimate(least)]
        bars = estimates[0]
        verdict = every(less(one) for one in estimates if one is not None) if None not in estimates else "not decidable"
        note = (
            "mixture minus dense twin on the test rows that each expert got, the worst expert of each seed; and the "
            f"least share of rows, which must exceed {STARVING:g} of an equal one (column: in equal shares)"
        )
        return judge("6", words, bars, verdict, note=note, tokens=self._tokens, numbers=rows)

    def random_is_worse(self) -> Judgement:
        found = {seed: self._headline(MAIN, seed, "random_minus_dense", "mean") for seed in self._seeds}
        return self._pair(
            "control: random split",
            "Experts on random equal shares are worse than dense: the gain is specialisation",
            {seed: None if value is None else -value for seed, value in found.items()},
            note="dense twin minus one expert trained on a random quarter of the text; it has the experts' rates",
        )

    def sorted_beats_stream(self) -> Judgement:
        differences = {
            seed: _difference(self._nll(key_of(MAIN, seed)), self._nll(variant_key(STREAM, seed)))
            for seed in self._seeds
        }
        return self._pair(
            "control: sorted assignment",
            "Visiting the most confidently modelled rows first beats taking them as they come (figure 1)",
            differences,
            note="mixture by sorted assignment minus mixture by assignment in stream order, in rounds and chunks alike",
        )

    # --- estimates -----------------------------------------------------------------------------------

    def _pair(self, claim: str, words: str, differences: Mapping[int, float | None], *, note: str) -> Judgement:
        estimate = _estimate(list(differences.values()))
        rows = [{"seed": seed, "difference": value} for seed, value in differences.items()]
        verdict = less(estimate) if estimate is not None else "not decidable"
        return judge(claim, words, estimate, verdict, note=note, tokens=self._tokens, numbers=rows)

    def _chain(
        self, claim: str, words: str, steps: Sequence[Estimate | None], rows: Sequence[Mapping[str, Any]], *, note: str
    ) -> Judgement:
        """Every step must go down; told is the one that does least so."""
        known = [step for step in steps if step is not None]
        if not steps or len(known) < len(steps):
            return undecided(claim, words, note=f"a cell has no figure. {note}", tokens=self._tokens, numbers=rows)
        worst = max(known, key=lambda step: step.mean)
        return judge(claim, words, worst, monotone(known), note=note, tokens=self._tokens, numbers=rows)

    def _gap(self, num: int, seed: int) -> float | None:
        return self._headline(num, seed, "mixture_minus_dense", "mean")

    def _headline(self, num: int, seed: int, *path: str) -> float | None:
        found = self._found.get(key_of(num, seed))
        return found.figure("headline", *path) if found is not None else None

    def _nll(self, key: str) -> float | None:
        found = self._found.get(key)
        return found.figure("headline", "mixture", "nll_suffix") if found is not None else None


def _estimate(values: Sequence[float | None]) -> Estimate | None:
    """Of all seeds, or none."""
    known = [value for value in values if value is not None]
    return over_seeds(known) if known and len(known) == len(values) else None


def _minus(first: Sequence[float | None], second: Sequence[float | None]) -> list[float | None]:
    return [_difference(one, other) for one, other in zip(first, second, strict=True)]


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _results(found: Found | None) -> Mapping[str, Any]:
    return found.results if found is not None else {}


def _level(found: Mapping[str, Found], num: int, seed: int, side: str | int) -> float | None:
    """Test NLL after the prefix; of a number, the mixture's routed by so many tokens."""
    results = _results(found.get(key_of(num, seed)))
    if isinstance(side, int):
        return number(results, "prefixes", str(side), "mixture", "nll_suffix")
    return number(results, "headline", side, "nll_suffix")


def _mean(seeds: Sequence[int], found: Mapping[str, Found], num: int, side: str | int) -> float | None:
    estimate = _estimate([_level(found, num, seed, side) for seed in seeds])
    return estimate.mean if estimate is not None else None


def _told(found: Mapping[str, Found], num: int, seed: int, *path: str) -> float | None:
    one = found.get(key_of(num, seed))
    return one.told(*path) if one is not None else None


def _search_rows(found: Found) -> list[tuple[str | float | int | None, ...]]:
    rows: list[tuple[str | float | int | None, ...]] = []
    for side, name in (("experts", "mixture"), ("dense", "dense twin")):
        cells = found.results.get("search", {}).get(side, [])
        best, rates = side_of(found, side), [cell["learning_rate"] for cell in cells]
        batches = [cell["batch_size"] for cell in cells]
        for cell in cells:
            chosen = (cell["batch_size"], cell["learning_rate"]) == best
            edges = [
                f"{what} at an edge"
                for what, value, tried in (("rate", best[1], rates), ("batch", best[0], batches))
                if len(set(tried)) > 1 and value in (min(tried), max(tried))
            ]
            mark = ", ".join(["chosen", *edges]) if chosen else ""
            figures = (cell["batch_size"], cell["learning_rate"], cell["steps"], cell["valid_nll_suffix"])
            rows.append((name, *figures, mark))
    return rows
