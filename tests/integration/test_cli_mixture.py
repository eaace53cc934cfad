"""`potluck mix` and `potluck why` with a whole coordinator: what a person sees, and what a program gets."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from potluck.cli import main
from tests.integration.steered_run import TO_STEP, World, in_loop, session, traffic, world

Capture = pytest.CaptureFixture[str]


async def potluck(w: World, *arguments: str) -> int:
    return await asyncio.to_thread(main, [*arguments, "--home", str(w.home)])


async def answer(w: World, capsys: Capture, *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    code = await potluck(w, *arguments, "--json")
    said = capsys.readouterr()
    assert code == 0, said.out + said.err
    value: dict[str, Any] = json.loads(said.out)
    return value


async def refusal(w: World, capsys: Capture, *arguments: str) -> tuple[int, str]:
    """Exit code and error id."""
    capsys.readouterr()
    code = await potluck(w, *arguments, "--json")
    return code, json.loads(capsys.readouterr().out)["error"]["id"]


@in_loop
async def test_a_proposal_from_the_command_line_to_its_verdict(tmp_path: Path, capsys: Capture) -> None:
    async with world(tmp_path) as w:
        await w.start()
        shown = await answer(w, capsys, "mix", "show")
        assert [line["natural"] for line in shown["domains"]] == [0.2, 0.3, 0.0, 0.5]
        proposed = await answer(w, capsys, "mix", "propose", "small", "law=0.5", "--reason", "more law")
        assert (proposed["number"], proposed["step"]) == (1, TO_STEP)
        assert await potluck(w, "mix", "show") == 0
        assert "at the gate (training)" in capsys.readouterr().out
        assert await refusal(w, capsys, "mix", "set", "small", "code=0.5") == (4, "refused.gate-open")

        await w.decide(1, {"state": "adopted", "difference": -0.021, "low": -0.03, "high": -0.011})
        assert await potluck(w, "why", "mixture", "small") == 0
        said = capsys.readouterr()
        assert "law (30.0% to 50.0%)" in said.out
        assert "adopted, from step 100" in said.out
        assert "next:" in said.err
        assert max(map(len, said.out.splitlines())) <= 80
        (told,) = (await answer(w, capsys, "why", "mixture"))["proposals"]
        assert told["smallest_effect"] is None
        assert told["changes"][0] == {"domain": "law", "from": 0.3, "to": 0.5}
        versions = (await answer(w, capsys, "mix", "history"))["versions"]
        assert [(version["version"], version["reason"]) for version in versions] == [(0, ""), (1, "more law")]


@in_loop
async def test_a_mixture_is_set_by_names_that_may_be_cut(tmp_path: Path, capsys: Capture) -> None:
    async with world(tmp_path) as w:
        await w.start()
        answered = await answer(w, capsys, "mix", "set", "small", "co=1", "news=3", "--only")
        weights = {line["domain"]: line["weight"] for line in answered["domains"]}
        assert weights == {"code": 0.25, "law": 0.0, "lawful": 0.0, "news": 0.75}
        assert await potluck(w, "mix", "show", "small") == 0
        said = capsys.readouterr()
        assert "mixture 1, from step 100 (person)" in said.out
        assert "mix propose" in said.err
        assert await potluck(w, "why", "mixture") == 0
        assert "without a comparison: mixture 1 (from step 100)" in capsys.readouterr().out


@in_loop
async def test_what_is_wrong_with_weights_is_told_by_its_id(tmp_path: Path, capsys: Capture) -> None:
    async with world(tmp_path) as w:
        await w.start()
        for words, error_id in (
            (["la=0.5"], "usage.ambiguous-domain"),
            (["lwa=0.5"], "spec.bad-mixture"),
            (["law=0.8", "news=0.8"], "spec.bad-mixture"),
            (["law"], "usage.bad-weight"),
        ):
            assert await refusal(w, capsys, "mix", "propose", "small", *words) == (2, error_id)
        w.plan.steerable = False
        await w.advance()
        for verb in ("show", "history", "from-traffic"):
            assert await refusal(w, capsys, "mix", verb) == (4, "refused.not-steerable")


@in_loop
async def test_what_routers_were_asked_for_is_shown_and_proposed(tmp_path: Path, capsys: Capture) -> None:
    async with world(tmp_path) as w:
        await w.start()
        assert await refusal(w, capsys, "mix", "from-traffic") == (4, "refused.no-traffic")
        async with session(await w.join("door", "router")) as call:
            await call.write(traffic(w.run, {"law": 50, "code": 10, "elsewhere": 3}))
            while not (await w.call(w.client.get_traffic, w.run)).counting:
                pass
        answered = await answer(w, capsys, "mix", "from-traffic", "--prior", "0", "--reset")
        assert answered["traffic"]["requests"] == {"law": 50, "code": 10}
        assert answered["traffic"]["unknown"] == 3
        law = next(line for line in answered["domains"] if line["domain"] == "law")
        assert law["weight"] == pytest.approx(5 / 6)
        assert not (await w.call(w.client.get_traffic, w.run)).counts
        (proposal,) = (await answer(w, capsys, "mix", "history"))["proposals"]
        assert (proposal["origin"], proposal["reason"]) == ("traffic", "60 requests")
