"""Facts on stderr."""

from __future__ import annotations

import json
from typing import Any

import pytest

from potluck import telemetry


def test_a_fact_for_people_is_one_line_with_its_fields(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POTLUCK_LOG", raising=False)
    telemetry.logger("here").fact("lease-granted", node="n-1", fence=7, reason="two words")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.rstrip("\n").endswith('here lease-granted node=n-1 fence=7 reason="two words"')


def test_a_fact_for_programs_is_one_json_object(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTLUCK_LOG", "json")
    try:
        raise ValueError("spilt")
    except ValueError as error:
        telemetry.logger("here").failure("kitchen-failed", error, fence=7)
    fact = json.loads(capsys.readouterr().err)
    assert (fact["logger"], fact["event"], fact["fence"]) == ("here", "kitchen-failed", 7)
    assert fact["error"] == "ValueError: spilt"
    assert "test_net_telemetry" in fact["traceback"]
