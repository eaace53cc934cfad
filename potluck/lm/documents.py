"""Attention within documents: which tokens a token sees, and the position it stands at.

A row packs documents, each ended by `<eod>`, which belongs to the document it ends. A document's first
token stands at position 0 and sees itself only. As a target it is predicted, like every other, from the
token before it: from the `<eod>` of the document before, which sees the whole of that document. So the
losses of a packed row are those of its documents run alone, each with the token after it as last target.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

EOD = 0
"""Token that ends a document."""


def document_positions(ids: Tensor) -> Tensor:
    """[..., T] ids to [..., T] positions: counted from the start of a token's own document."""
    places = torch.arange(ids.shape[-1], device=ids.device)
    after_eod = F.pad((ids[..., :-1] == EOD).long(), (1, 0))
    starts = (places * after_eod).cummax(-1).values
    return places - starts


def hidden_keys(ids: Tensor) -> Tensor:
    """[..., T] ids to [..., T, T] bool: true where the key lies after the query or in another document.

    It takes T bytes a token: what long rows pay for documents of their own.
    """
    eods = (ids == EOD).long()
    document = eods.cumsum(-1) - eods
    apart = document.unsqueeze(-1) != document.unsqueeze(-2)
    return apart | apart.new_ones(apart.shape[-2:]).triu(1)


def last_document(ids: Sequence[int]) -> Sequence[int]:
    """The end of a prompt that its last token sees: all after the last `<eod>` that is not itself the last token."""
    for start in range(len(ids) - 1, 0, -1):
        if ids[start - 1] == EOD:
            return ids[start:]
    return ids
