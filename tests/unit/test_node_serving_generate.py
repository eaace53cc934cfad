"""The serving child's rounds: its commands are a list, its end is the end of that list."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from expert_node.frames import Message
from expert_node.serving_child import PREFILL_TOKENS, Server
from potluck.config import to_mapping
from potluck.ids import canonical_json
from potluck.lm.config import ModelConfig
from potluck.lm.decoding import MAX_SLOTS
from potluck.lm.generate import SamplingParams, generate
from potluck.lm.model import Decoder, init_decoder

MODEL = ModelConfig(vocab=64, hidden=16, layers=1, heads=2, ffn=24, context=PREFILL_TOKENS // 2 + 3)
MAX_TOKENS = 6


class ListedCommands:
    """The child's end of its pipes. Later commands are given once the child waits for them."""

    def __init__(self, *batches: list[Message]) -> None:
        self._batches = deque(map(deque, batches))
        self.sent: list[Message] = []

    def poll(self) -> Message | None:
        return self._batches[0].popleft() if self._batches[0] else None

    def receive(self) -> Message:
        while not self._batches[0]:
            self._batches.popleft()
            if not self._batches:
                raise EOFError
        return self._batches[0].popleft()

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def tokens(self, key: int) -> list[int]:
        return [i for m in self.sent if m["type"] == "tokens" and m["key"] == key for i in m["ids"]]

    def failed(self) -> set[int]:
        return {m["key"] for m in self.sent if m["type"] == "failed"}


def served(*batches: list[Message]) -> ListedCommands:
    torch.set_num_threads(1)
    commands = ListedCommands(*batches)
    pipe: Any = commands
    with pytest.raises(EOFError):
        Server(pipe).run()
    return commands


def load(folder: Path, model: Decoder, name: str = "w") -> Message:
    path = folder / f"{name}.safetensors"
    save_file({name: weight.detach() for name, weight in model.named_parameters()}, path)
    return {"type": "load", "weights": name, "model_json": canonical_json(to_mapping(model.config)), "path": str(path)}


def ask(key: int, ids: list[int], **changed: Any) -> Message:
    how = {"max_tokens": MAX_TOKENS, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": key, "credit": MAX_TOKENS}
    return {"type": "generate", "key": key, "weights": "w", "ids": ids, **how, **changed}


def alone(model: Decoder, key: int, ids: list[int]) -> list[int]:
    return list(generate(model, ids, SamplingParams(max_tokens=MAX_TOKENS, temperature=1.0, seed=key)))


def test_more_texts_than_a_decoder_keeps_generate_what_each_generates_alone(tmp_path: Path) -> None:
    model = init_decoder(MODEL, seed=1)
    prompts = {key: [1 + (key * 7 + i) % 60 for i in range(1 + key % 9)] for key in range(MAX_SLOTS + 20)}
    stalled = {key for key in prompts if key % 3 == 0}
    first = [ask(key, ids, credit=2 if key in stalled else MAX_TOKENS) for key, ids in prompts.items()]
    rest: list[Message] = [{"type": "credit", "key": key, "tokens": MAX_TOKENS} for key in stalled]
    commands = served([load(tmp_path, model), *first], rest)
    assert {key: commands.tokens(key) for key in prompts} == {k: alone(model, k, ids) for k, ids in prompts.items()}
    assert not commands.failed()


def test_texts_of_a_broken_model_fail_and_others_generate_on(tmp_path: Path) -> None:
    sound, broken = init_decoder(MODEL, seed=1), init_decoder(MODEL, seed=2)
    with torch.no_grad():
        broken.norm.fill_(torch.nan)
    loads = [load(tmp_path, sound), load(tmp_path, broken, "broken")]
    asked = [ask(1, [3, 4]), ask(2, [3], weights="broken"), ask(3, [5] * 40), ask(4, [6], weights="broken")]
    commands = served([*loads, *asked, ask(5, []), ask(6, [1], weights="unknown"), ask(7, [8])])
    assert {key: commands.tokens(key) for key in (1, 3, 7)} == {
        key: alone(sound, key, ids) for key, ids in ((1, [3, 4]), (3, [5] * 40), (7, [8]))
    }
    assert commands.failed() == {2, 4, 5, 6}


def test_long_prompts_do_not_hold_up_a_text_that_generates(tmp_path: Path) -> None:
    """Each takes more than half of a round's share before its last token, so that each has a round of its own."""
    model = init_decoder(MODEL, seed=1)
    long = [1 + i % 60 for i in range(PREFILL_TOKENS // 2 + 2)]
    newcomers = {key: [*long[1:], key] for key in range(2, 5)}
    commands = served([load(tmp_path, model), ask(1, [9]), *(ask(key, ids) for key, ids in newcomers.items())])
    order = [message["key"] for message in commands.sent if message["type"] == "tokens"]
    firsts = [order.index(key) for key in newcomers]
    assert all(1 in order[before:after] for before, after in pairwise(firsts))
    assert {key: commands.tokens(key) for key in newcomers} == {k: alone(model, k, ids) for k, ids in newcomers.items()}


def test_a_model_that_is_unloaded_generates_to_the_end_of_what_it_began(tmp_path: Path) -> None:
    model = init_decoder(MODEL, seed=1)
    began = [load(tmp_path, model), ask(1, [3, 4], credit=1)]
    later: list[Message] = [{"type": "unload", "weights": "w"}, ask(2, [3])]
    commands = served(began, [*later, {"type": "credit", "key": 1, "tokens": MAX_TOKENS}])
    assert commands.tokens(1) == alone(model, 1, [3, 4])
    assert commands.failed() == {2}
