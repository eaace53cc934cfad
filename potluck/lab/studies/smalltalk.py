"""SmallTalk LM (arXiv 2410.03529) at small scale: routers that sort text, experts that never talk, a dense twin.

Both sides of every comparison search batch size and learning rate over one grid, on valid text of the first seed; the
other seeds take what was found. All else is test text, after the prefix. The text is divided once for all seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potluck.lab.studies.smalltalk_claims import (
    CLUSTERS,
    EXPERTS,
    MAIN,
    ROUTERS,
    SIDES,
    STREAM,
    claims_of,
    key_of,
    plots_of,
    side_of,
    tables_of,
    variant_key,
)
from potluck.lab.study import (
    CORPUS,
    Budget,
    BudgetName,
    Cell,
    Found,
    Judgement,
    Plot,
    Quoted,
    Study,
    Table,
    TextWish,
)

TEXT = {"vocab_size": 1024, "sequence_length": 128, "prefix_length": 32}


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a budget trains."""

    expert: str
    rows: int
    """That each expert reads, whatever their number: the dense twin reads as much as all of them and the routers."""
    rounds: int
    batches: tuple[int, ...]
    rates: tuple[float, ...]
    search_each: bool
    """The rates are searched for every number of experts; else for four, and the others take those."""
    text: Mapping[str, int]
    device: str = "cpu"
    round_rows: int = 2048


SIZES: Mapping[BudgetName, Size] = {
    "quick": Size(
        expert="0.04M",
        rows=1024,
        rounds=4,
        round_rows=512,
        batches=(8,),
        rates=(1.2e-2, 2.4e-2),
        search_each=False,
        text=TEXT,
    ),
    "standard": Size(
        expert="0.04M",
        rows=6144,
        rounds=8,
        batches=(8, 16),
        rates=(9e-3, 1.8e-2, 3.6e-2),
        search_each=True,
        text=TEXT,
    ),
    "full": Size(
        expert="2.5M",
        rows=196_608,
        rounds=16,
        round_rows=8192,
        batches=(16, 32),
        rates=(1.5e-3, 3e-3, 6e-3),
        search_each=True,
        text={"vocab_size": 4096, "sequence_length": 256, "prefix_length": 64},
        device="cuda",
    ),
}
"""`standard`: 20 tokens a parameter, as an expert of the paper has and more. `full` wants text of gigabytes."""
BUDGETS: Mapping[BudgetName, Budget] = {
    "quick": Budget(name="quick", seeds=(0,), minutes=5),
    "standard": Budget(name="standard", seeds=(0, 1, 2), minutes=90),
    "full": Budget(name="full", seeds=(0, 1, 2), minutes=1440),
}


class SmallTalkStudy(Study):
    name = "smalltalk"
    paper = "2410.03529"
    title = "SmallTalk LM: a mixture of experts that do not talk"
    quoted = (
        Quoted(what="335M x 4, 133B tokens: test perplexity, dense and mixture", value="11.78, 10.78"),
        Quoted(what="335M x 8, 266B tokens", value="11.25, 10.20"),
        Quoted(what="335M x 16, 532B tokens", value="10.80, 9.64"),
        Quoted(what="335M x 32, 1.07T tokens", value="10.5, 9.07"),
        Quoted(what="bytes per round and router", value="4 T E / S: 5.6 MB at E = 32"),
    )

    def budget(self, name: BudgetName) -> Budget:
        return BUDGETS[name]

    def texts(self, budget: Budget) -> Mapping[str, TextWish]:
        return {CORPUS: TextWish(smallest=4) if budget.name == "quick" else TextWish()}

    def cells(self, budget: Budget, found: Mapping[str, Found]) -> tuple[Cell, ...]:
        size, first = SIZES[budget.name], budget.seeds[0]
        searched = [_search(size, MAIN, first, size.batches)]
        main = found.get(searched[0].key)
        if main is None:
            return tuple(searched)
        batches = {side: side_of(main, side)[0] for side in SIDES}
        if size.search_each:
            searched += [_search(size, num, first, batches) for num in EXPERTS if num != MAIN]
        cells = list(searched)
        for num in EXPERTS:
            by_search = found.get(key_of(num, first) if size.search_each else searched[0].key)
            if by_search is not None:
                cells += [_plain(size, num, seed, by_search) for seed in budget.seeds]
        for seed in budget.seeds:
            cells += [_variant(size, name, seed, main) for name in (*ROUTERS, STREAM)]
        clusters = _variant(size, CLUSTERS, first, main, searched=size.search_each)
        cells.append(clusters)
        if size.search_each and clusters.key not in found:
            return _once(cells)
        by = found[clusters.key] if size.search_each else main
        return _once([*cells, *(_variant(size, CLUSTERS, seed, by) for seed in budget.seeds)])

    def expected(self, budget: Budget) -> tuple[Cell, ...]:
        size, first = SIZES[budget.name], budget.seeds[0]
        cells = [_search(size, MAIN, first, size.batches)]
        one = dict.fromkeys(SIDES, size.batches[-1])
        middle = _Rates(batches=one, rate=size.rates[len(size.rates) // 2])
        cells += [_search(size, num, first, one) for num in EXPERTS if num != MAIN and size.search_each]
        cells += [_plain(size, num, seed, middle) for num in EXPERTS for seed in budget.seeds]
        cells.append(_variant(size, CLUSTERS, first, middle, searched=size.search_each))
        variants = (*ROUTERS, STREAM, CLUSTERS)
        cells += [_variant(size, name, seed, middle) for seed in budget.seeds for name in variants]
        return _once(cells)

    def claims(self, budget: Budget, found: Mapping[str, Found]) -> tuple[Judgement, ...]:
        size = SIZES[budget.name]
        return claims_of(budget.seeds, found, tokens=size.rows * MAIN * size.text["sequence_length"])

    def plots(self, budget: Budget, found: Mapping[str, Found]) -> tuple[Plot, ...]:
        return plots_of(budget.seeds, found, prefix=SIZES[budget.name].text["prefix_length"])

    def tables(self, budget: Budget, found: Mapping[str, Found]) -> tuple[Table, ...]:
        return tables_of(budget.seeds, found)


@dataclass(frozen=True, kw_only=True)
class _Rates:
    """What a search is expected to find, before there is one."""

    batches: Mapping[str, int]
    rate: float


def _once(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The first of each key: a cell that searches is its seed's result too."""
    first: dict[str, Cell] = {}
    for cell in cells:
        first.setdefault(cell.key, cell)
    return tuple(first.values())


def _search(size: Size, num: int, seed: int, batches: tuple[int, ...] | Mapping[str, int]) -> Cell:
    """Both sides over one grid; the best of each is what the run's tables are about."""
    tried = {side: (batches[side],) if isinstance(batches, Mapping) else batches for side in SIDES}
    body = _body(size, num, seed, dict.fromkeys(SIDES, (size.batches[0], size.rates[0])))
    return Cell(key=key_of(num, seed), body={**body, "search": _grid(size, tried)})


def _grid(size: Size, batches: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    lists = {f"{option}_batch": list(batches[side]) for side, option in SIDES.items()}
    return {"mode": "grid", **lists, **{f"{option}_learning_rate": list(size.rates) for option in SIDES.values()}}


def _plain(size: Size, num: int, seed: int, by: Found | _Rates) -> Cell:
    return Cell(key=key_of(num, seed), body=_body(size, num, seed, _chosen(by)))


def _variant(size: Size, name: str, seed: int, by: Found | _Rates, *, searched: bool = False) -> Cell:
    """The mixture of four, sorted otherwise; its opponent is the mixture itself, so it has no twin."""
    chosen = _chosen(by)
    body = _body(size, MAIN, seed, chosen)
    body |= {"dense": {**body["dense"], "enabled": False}, "controls": {"random_split": "none"}}
    if searched:
        body["search"] = _grid(size, {side: (batch,) for side, (batch, _) in chosen.items()})
    if name == CLUSTERS:
        body["partition_by"] = "clusters"
    elif name == STREAM:
        body["routers"] = {**body["routers"], "assignment": "stream"}
    else:
        body["routers"] = {**body["routers"], "model": dict(ROUTERS[name])}
    return Cell(key=variant_key(name, seed), body=body)


def _chosen(by: Found | _Rates) -> dict[str, tuple[int, float]]:
    if isinstance(by, _Rates):
        return {side: (by.batches[side], by.rate) for side in SIDES}
    return {side: side_of(by, side) for side in SIDES}


def _body(size: Size, num: int, seed: int, sides: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
    prefix = size.text["prefix_length"]
    (batch, rate), (dense_batch, dense_rate) = sides["experts"], sides["dense"]
    return {
        "method": "smalltalk",
        "seed": seed,
        "text": dict(size.text),
        "profile": {"device": size.device},
        "routers": {
            "model": {"preset": "router-16"},
            "rounds": size.rounds,
            "chunk_sequences": size.round_rows,
            "score_batch": 64,
        },
        "experts": {
            "model": {"preset": size.expert},
            "num": num,
            "chunks": 4,
            "chunk_sequences": num * size.rows // 4,
            "batch_size": batch,
            "learning_rate": rate,
        },
        "dense": {"batch_size": dense_batch, "learning_rate": dense_rate},
        "controls": {"random_split": "one", "prefixes": [prefix // 2, prefix // 4, prefix // 8] if num == MAIN else []},
    }
