"""The model card of an exported model: a README that says where the weights come from. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from potluck.ids import Digest
from potluck.lm.config import ModelConfig

UNKNOWN_LICENCE = "unknown"
MAX_DOMAINS = 100
"""Of a mixture, that a card lists."""


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """One source of the corpus, as its manifest counts it."""

    name: str
    documents: int
    num_bytes: int
    licences: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RoutedShare:
    """Of one source's held-out rows, those that the run's routers send to this model."""

    source: str
    rows: int
    of_rows: int


@dataclass(frozen=True, kw_only=True)
class SoupMixture:
    """What a specialist of a soup was made for."""

    domains: tuple[tuple[str, float, float], ...]
    """Name, weight, share of the corpus; those with weight, the largest first."""
    coefficients: tuple[float, ...]
    """Of each expert."""
    windows: int | None = None
    """Of text that the weights were taken from; None where a person named them."""
    expected_noise: float | None = None
    """L1 distance of the weights from the truth, as is to be expected of so many windows."""
    unplaced: float | None = None
    """Share of the windows that lie further out than nearly all of the corpus."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Nats per target token on test text; None where there is no such text, or a figure that is no number."""

    on: str
    """Which rows."""
    rows: int
    nll_all: float | None
    nll_suffix: float | None
    """Targets after the prefix that routing saw."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Where a model comes from. No time, host or path: equal models have equal cards."""

    run: str
    """SHA-256 of the run's canonical spec."""
    name: str
    method: str
    slot: str
    described: str
    """One or two sentences: what this slot is in its run."""
    lineage: str
    step: int
    total_steps: int
    tokens_trained: int | None
    """Target tokens of all steps up to this one; None where the run does not tell."""
    weights: Digest
    checkpoint: Digest
    tokenizer: Digest
    corpus: Digest
    sources: tuple[TextSource, ...]
    """Empty where the corpus manifest is gone."""
    routed: tuple[RoutedShare, ...] = ()
    held_out: HeldOut | None = None
    soup: SoupMixture | None = None
    """Of a model that was made of a soup."""
    version: str
    """Of Potluck."""


def render_card(card: ModelCard, config: ModelConfig) -> str:
    """README.md: YAML front matter as the Hugging Face Hub reads it, then Markdown."""
    parts = [
        _front_matter(card),
        f"# {_inline(card.name)}: {_inline(card.slot)}\n\n{card.described}",
        _use(config),
        _section("Where it comes from", _table(["", ""], _origin(card, config))),
    ]
    if card.held_out is not None:
        parts.append(_section("Held-out text", _held_out(card.held_out)))
    if card.routed:
        rows = [[_inline(s.source), f"{s.rows:,}", f"{s.of_rows:,}", _share(s.rows, s.of_rows)] for s in card.routed]
        table = _table(["source", "rows routed here", "of", "share"], rows)
        parts.append(_section("Mixture", f"Held-out rows that the run's routers send to this model.\n\n{table}"))
    if card.soup is not None:
        parts.append(_section("Mixture", _mixture(card.soup)))
    parts.append(_section("Text", _text(card.sources)))
    return "\n\n".join(parts) + "\n"


def _front_matter(card: ModelCard) -> str:
    tags = ["potluck", "llama", card.method]
    lines = ["library_name: transformers", "pipeline_tag: text-generation", "tags:"]
    lines += [f"- {json.dumps(tag, ensure_ascii=False)}" for tag in tags]  # a JSON string is a YAML string
    return "\n".join(["---", *lines, "---"])


def _use(config: ModelConfig) -> str:
    lines = [
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")',
        'prompt = tokenizer("The ", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**prompt, max_new_tokens=40)[0]))",
        "```",
        "",
        f"It was trained on at most {config.context - 1} tokens at a time. There is no token for a beginning; "
        "`<eod>` ends a document.",
    ]
    if config.attention == "document":
        lines += [
            "",
            "In training a token saw only its own document. Llama's attention cannot say that: give one document at "
            "a time, without `<eod>` inside, and the two agree.",
        ]
    return _section("Use", "\n".join(lines))


def _origin(card: ModelCard, config: ModelConfig) -> Iterator[list[str]]:
    shape = (
        f"layers {config.layers}, width {config.hidden}, heads {config.heads}, inner width {config.ffn}, "
        f"vocabulary {config.vocab:,}"
    )
    yield ["run", f"{_inline(card.name)}, `{card.run}` (the digest of its spec)"]
    yield ["method, slot", f"{card.method}, {_inline(card.slot)}"]
    yield ["parameters", f"{config.num_parameters:,}, embeddings tied; {shape}; float32"]
    yield ["steps", f"{card.step:,} of {card.total_steps:,}"]
    trained = "not recorded" if card.tokens_trained is None else f"{card.tokens_trained:,}"
    yield ["tokens trained on", trained]
    yield ["lineage", f"`{card.lineage}`"]
    for what, digest in (
        ("checkpoint manifest", card.checkpoint),
        ("weights blob", card.weights),
        ("tokenizer blob", card.tokenizer),
        ("corpus manifest", card.corpus),
    ):
        yield [what, f"`{digest}`" if digest else "not recorded"]
    yield ["written by", f"Potluck {card.version}"]


def _held_out(held_out: HeldOut) -> str:
    levels = [
        f"{nll:.4f} over {what}"
        for nll, what in (
            (held_out.nll_all, "all targets"),
            (held_out.nll_suffix, "those after the prefix that routing saw"),
        )
        if nll is not None
    ]
    return f"On {held_out.on} ({held_out.rows:,}), nats per target token: {', '.join(levels) or 'no figure'}."


def _mixture(soup: SoupMixture) -> str:
    shown = [[_inline(name), f"{weight:.6g}", _share(share, 1)] for name, weight, share in soup.domains[:MAX_DOMAINS]]
    rest = len(soup.domains) - len(shown)
    parts = [_table(["domain", "weight", "share of the corpus"], shown)]
    parts += [f"And {rest:,} domains more, with smaller weights."] if rest else []
    if soup.windows is not None and soup.expected_noise is not None:
        beyond = "" if soup.unplaced is None else f" {soup.unplaced:.0%} of it lies in no domain."
        parts.append(
            f"The weights were taken from {soup.windows:,} windows of text, and are expected to be off by "
            f"{soup.expected_noise:.2f} in L1 distance (of at most 2).{beyond}"
        )
    listed = ", ".join(f"{coefficient:.4g}" for coefficient in soup.coefficients)
    parts.append(f"Coefficients of the {len(soup.coefficients)} experts: {listed}.")
    return "\n\n".join(parts)


def _text(sources: Sequence[TextSource]) -> str:
    if not sources:
        return "The corpus manifest was no longer at the coordinator when this was written; its digest is above."
    rows = [
        [_inline(s.name), f"{s.documents:,}", f"{s.num_bytes:,}", ", ".join(map(_inline, s.licences))] for s in sources
    ]
    table = _table(["source", "documents", "bytes", "licences"], rows)
    unknown = any(UNKNOWN_LICENCE in source.licences for source in sources)
    note = f" `{UNKNOWN_LICENCE}`: the text came without one." if unknown else ""
    return (
        f"The whole corpus of the run, held-out text included.{note} The weights' own licence is for whoever "
        f"publishes them to choose.\n\n{table}"
    )


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}"


def _table(columns: Sequence[str], rows: Iterator[list[str]] | Sequence[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _inline(text: str) -> str:
    """A person's word, in one line and harmless inside a table."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "-"
