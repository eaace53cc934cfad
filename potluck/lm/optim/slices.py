"""Cuts a model's parameters into chunks that several kernels go over one after the other while a cache holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from potluck.lm.optim.adamw import is_decayed


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Elements [index * size, ...) of a parameter, size being that of the cut."""

    name: str
    index: int
    offset: int
    """Of its first element in the chunk."""
    elements: int


@dataclass(frozen=True, kw_only=True)
class Chunk:
    decayed: bool
    slices: tuple[Slice, ...]

    @property
    def elements(self) -> int:
        return sum(part.elements for part in self.slices)


def cut(parameters: Mapping[str, Tensor], *, size: int) -> tuple[Chunk, ...]:
    """Slices of large parameters, small ones together: every element once, decayed ones apart from the others.

    Args:
        size: most elements of a chunk.
    """
    chunks = []
    for decayed in (True, False):
        chosen = {name: p.numel() for name, p in parameters.items() if is_decayed(name, p) == decayed}
        slices: list[Slice] = []
        filled = 0
        for name, total in chosen.items():
            for index, start in enumerate(range(0, total, size)):
                elements = min(size, total - start)
                if filled + elements > size:
                    chunks.append(Chunk(decayed=decayed, slices=tuple(slices)))
                    slices, filled = [], 0
                slices.append(Slice(name=name, index=index, offset=filled, elements=elements))
                filled += elements
        if slices:
            chunks.append(Chunk(decayed=decayed, slices=tuple(slices)))
    return tuple(chunks)


def views(tensors: Mapping[str, Tensor], chunk: Chunk, *, size: int) -> list[Tensor]:
    """The chunk's slices of tensors that are shaped as the parameters, flat; they share memory with them."""
    return [torch.split(tensors[part.name].detach().view(-1), size)[part.index] for part in chunk.slices]
