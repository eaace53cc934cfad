"""Specialists of a soup (2502.01804): mixtures named or of held-out text, and the weights of theta(h)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from potluck.config import from_mapping
from potluck.errors import DataError
from potluck.ids import Json
from potluck.lm.config import ModelConfig
from potluck.lm.soup_config import SoupConfig
from sampling.histogram import expected_noise
from sampling.labels import EXCLUDED, parse_labels
from sampling.mixture import Mixture, natural, normalised, supported
from sampling.rows import META_SOURCE, TokenRows
from sampling.taskio import TaskCall, TaskOutput, load_array


def fit_source_mixtures(call: TaskCall) -> TaskOutput:
    """Task `fit`, what `source_mixtures`: where the rows of each source lie, a mixture for each that has rows.

    Inputs: `tokens_manifest`, `labels` (labels manifest of the train rows: the domains and their order) and
    `held-NNNNN` (labels of the rows of the split, by part). Parameter: `split`. Mixtures come as `mixture-NNNNN`,
    numbered as `sources`, with the `windows` each was taken from and the `expected_noise` (L1) that this leaves.
    """
    labels, manifest = parse_labels(call.json("labels")), call.json("tokens_manifest")
    rows = TokenRows(manifest, call.blobs, str(call.params["split"]))
    held = np.concatenate([np.asarray(load_array(call.path(name))) for name in call.numbered("held")])
    if len(held) != len(rows):
        raise DataError("data.bad-labels", f"{len(held)} labels for {len(rows)} rows", "label every row of the split")
    source = rows.meta(np.arange(len(rows), dtype=np.int64))[:, META_SOURCE]
    files: dict[str, Path] = {}
    names: list[Json] = []
    windows: list[Json] = []
    noise: list[Json] = []
    for number, name in enumerate(manifest["sources"]):
        mine = held[(source == number) & (held != EXCLUDED)]
        counts = np.bincount(mine, minlength=len(labels.domains))
        has_rows = np.array(list(labels.sizes.values())) > 0
        if not counts[has_rows].any():
            continue
        counted = dict(zip(labels.domains, counts.tolist(), strict=True))
        mixture, _ = supported(normalised(labels.partition, counted, labels.domains), labels.sizes)
        path = call.out / f"mixture-{len(names):05d}.json"
        path.write_text(mixture.to_json(), encoding="utf-8")
        files[f"mixture-{len(names):05d}"] = path
        names.append(str(name))
        windows.append(int(counts.sum()))
        share = np.ones(1)
        noise.append(expected_noise((counts / counts.sum())[None, :], share, np.array([counts.sum()])))
    listed: dict[str, Json] = {"sources": names, "windows": windows, "expected_noise": noise}
    return TaskOutput(files=files, figures=listed)


def fit_mixture(call: TaskCall) -> TaskOutput:
    """Task `fit`, what `mixture`: weights by domain name as a mixture; domains that are not named have none.

    Input: `labels` (the domains). Parameter: `weights`, which sum to one.

    Raises:
        SpecError: ``spec.bad-mixture``, a domain is unknown or the weights are none.
    """
    labels = parse_labels(call.json("labels"))
    named = {str(name): float(weight) for name, weight in dict(call.params["weights"]).items()}
    mixture = Mixture(partition=labels.partition, weights={**dict.fromkeys(labels.domains, 0.0), **named})
    mixture.aligned(labels.domains)
    path = call.out / "mixture.json"
    path.write_text(mixture.to_json(), encoding="utf-8")
    return TaskOutput(files={"mixture": path})


def fit_specialist(call: TaskCall) -> TaskOutput:
    """Task `fit`, what `specialist`: the manifest of a specialist, which keeps what belongs to it.

    Inputs: `mixture`, `labels`. Parameters: `blobs` (digests by name) and `facts`, taken over as they are. Beside them
    `domains`: [name, weight, share of the corpus] of those with weight, the largest first.
    """
    labels = parse_labels(call.json("labels"))
    mixture = Mixture.from_json(call.path("mixture").read_bytes())
    shares = natural(labels.partition, labels.sizes).weights
    named = sorted(
        ((name, weight) for name, weight in mixture.weights.items() if weight), key=lambda one: (-one[1], one)
    )
    domains: list[Json] = [[name, weight, shares[name]] for name, weight in named]
    report: dict[str, Json] = {
        "kind": "specialist",
        "version": 1,
        "blobs": call.params["blobs"],
        "domains": domains,
        **call.params["facts"],
    }
    return TaskOutput(files={"report": call.write_json("report", report)})


def fit_instantiate(call: TaskCall) -> TaskOutput:
    """Task `fit`, what `instantiate`: the weights of theta(h), a plain model's, and the coefficients phi(h).

    Inputs: `weights` (a soup's checkpoint), `labels` (the domains and their order), `mixture` (h). Parameters:
    `model` and `soup`, the configs.

    Raises:
        SpecError: ``spec.bad-mixture``, it is of other domains.
        DataError: ``data.wrong-weights``, the checkpoint is of another soup.
    """
    import torch
    from safetensors.torch import save_file

    from potluck.lm.soup import load_soup

    labels = parse_labels(call.json("labels"))
    mixture = Mixture.from_json(call.path("mixture").read_bytes())
    h = torch.tensor(mixture.aligned(labels.domains), dtype=torch.float32)
    model, soup = from_mapping(ModelConfig, call.params["model"]), from_mapping(SoupConfig, call.params["soup"])
    bank = load_soup(model, soup, call.path("weights"))
    path = call.out / "weights.safetensors"
    save_file(bank.instantiate(h), path)
    with torch.no_grad():
        alpha = bank.phi(h.unsqueeze(0))[0].tolist()
    return TaskOutput(files={"weights": path}, figures={"coefficients": alpha})
