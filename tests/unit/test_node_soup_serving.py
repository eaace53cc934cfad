"""The serving child's rounds with models of a soup, among texts of other models."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file

from expert_node.frames import Message
from expert_node.soups import MAX_MADE
from potluck.config import to_mapping
from potluck.ids import canonical_json
from potluck.lm.model import Decoder, init_decoder
from potluck.lm.soup import Soup
from potluck.lm.soup_config import SoupConfig
from tests.unit.test_node_serving_generate import MODEL, alone, ask, load, served

BANK = SoupConfig(domains=24, experts=3, hidden=8)


def load_bank(folder: Path, name: str = "bank") -> tuple[Soup, Message]:
    soup = Soup(MODEL, BANK, seed=4)
    soup.bank["experts"].normal_(0.0, 0.2, generator=torch.Generator().manual_seed(4))
    path = folder / f"{name}.safetensors"
    save_file(soup.tensors(), path)
    shape = canonical_json({"model": to_mapping(MODEL), "soup": to_mapping(BANK)})
    return soup, {"type": "load", "weights": name, "model_json": shape, "path": str(path)}


def ask_soup(key: int, ids: list[int], domain: int, **changed: object) -> Message:
    return ask(key, ids, weights="bank", mixture=[[domain, 1.0]], **changed)


def instantiate(key: int, domain: int) -> Message:
    return {"type": "instantiate", "key": key, "weights": "bank", "mixture": [[domain, 1.0]]}


def model_of(soup: Soup, domain: int) -> Decoder:
    h = torch.zeros(BANK.domains)
    h[domain] = 1.0
    model = Decoder(MODEL)
    model.load_state_dict(soup.instantiate(h))
    return model.eval()


def test_texts_of_many_mixtures_and_of_plain_models_generate_what_each_generates_alone(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    plain, (soup, bank) = init_decoder(MODEL, seed=1), load_bank(tmp_path)
    asked = [ask_soup(key, [3, key], key % 4) for key in range(1, 13)]
    commands = served([load(tmp_path, plain), bank, ask(20, [9]), *asked, ask(21, [8, 7])])
    models = {domain: model_of(soup, domain) for domain in range(4)}
    assert {key: commands.tokens(key) for key in range(1, 13)} == {
        key: alone(models[key % 4], key, [3, key]) for key in range(1, 13)
    }
    assert [commands.tokens(key) for key in (20, 21)] == [alone(plain, 20, [9]), alone(plain, 21, [8, 7])]
    assert not commands.failed()


def test_a_text_under_way_is_held_up_by_one_making_at_a_time(tmp_path: Path) -> None:
    plain, (_, bank) = init_decoder(MODEL, seed=1), load_bank(tmp_path)
    commands = served([load(tmp_path, plain), bank, ask(1, [9]), *(instantiate(key, key) for key in range(2, 6))])
    order = [message["key"] for message in commands.sent if "key" in message]
    made = [order.index(key) for key in range(2, 6)]
    assert all(1 in order[before:after] for before, after in pairwise(made))


def test_a_second_wish_for_a_mixture_finds_the_model_and_one_that_was_cancelled_is_not_answered(tmp_path: Path) -> None:
    _, bank = load_bank(tmp_path)
    cancelled: Message = {"type": "cancel", "key": 3}
    commands = served([bank, instantiate(1, 0), instantiate(2, 0), instantiate(3, 1), cancelled], [instantiate(4, 1)])
    answers = {m["key"]: (m["cached"], m["digest"]) for m in commands.sent if m["type"] == "instantiated"}
    assert {key: cached for key, (cached, _) in answers.items()} == {1: False, 2: True, 4: False}
    assert answers[1][1] == answers[2][1] != answers[4][1]


def test_models_beyond_the_room_are_refused_while_all_are_in_use_and_made_afterwards(tmp_path: Path) -> None:
    _, bank = load_bank(tmp_path)
    stalled = [ask_soup(key, [5], key, credit=1) for key in range(MAX_MADE)]
    ends: list[Message] = [{"type": "cancel", "key": 0}]
    commands = served([bank, *stalled], [instantiate(50, 20)], ends, [instantiate(51, 20)])
    failures = {m["key"]: m["error_id"] for m in commands.sent if m["type"] == "failed"}
    assert failures == {50: "resource.busy"}
    assert [m["key"] for m in commands.sent if m["type"] == "instantiated"] == [51]


def test_a_bank_alone_is_no_model_and_one_that_goes_leaves_texts_their_model_to_the_end(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    soup, bank = load_bank(tmp_path)
    wrong = [ask(1, [5], weights="bank"), {**instantiate(2, 0), "mixture": []}, ask_soup(3, [5], BANK.domains)]
    gone: Message = {"type": "unload", "weights": "bank"}
    on: Message = {"type": "credit", "key": 4, "tokens": 10}
    commands = served([bank, *wrong, ask_soup(4, [5, 6], 2, credit=1)], [gone, on], [instantiate(5, 2)])
    failures = {m["key"]: m["error_id"] for m in commands.sent if m["type"] == "failed"}
    assert failures == {
        1: "refused.no-mixture", 2: "refused.no-mixture", 3: "refused.bad-mixture", 5: "refused.not-served"
    }  # fmt: skip
    assert commands.tokens(4) == alone(model_of(soup, 2), 4, [5, 6])
