"""A coordinator refuses nonsense at birth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coordinator.daemon import Options
from coordinator.home import CoordinatorHome, Ports
from potluck.errors import UsageError
from potluck.ids import digest_bytes


@pytest.mark.parametrize(
    ("values", "error_id"),
    [
        ({"host": "0.0.0.0", "insecure": True}, "usage.insecure-not-loopback"),
        ({"host": "example.org", "insecure": True}, "usage.insecure-not-loopback"),
        ({"port": -1}, "usage.bad-port"),
        ({"port": 65_534}, "usage.bad-port"),
        ({"quota_bytes": 0}, "usage.bad-quota"),
        ({"advertise": "https://example.org"}, "usage.bad-advertise"),
        ({"advertise": "example.org:7470"}, "usage.bad-advertise"),
    ],
)
def test_options_that_do_not_go_together_are_refused_by_name(
    values: dict[str, Any], error_id: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        Options(home=tmp_path, **values)
    assert caught.value.error_id == error_id


@pytest.mark.parametrize("advertise", ["example.org", "10.1.2.3", "fd00::1", "box"])
def test_a_name_or_an_address_may_be_advertised(advertise: str, tmp_path: Path) -> None:
    assert Options(home=tmp_path, advertise=advertise).advertise == advertise


def test_all_ports_follow_the_base_port_or_are_all_free() -> None:
    assert Ports.from_base(7470) == Ports(control=7470, enrol=7471, data=7472)
    assert Ports.from_base(0) == Ports(control=0, enrol=0, data=0)


def test_the_homes_keys_are_made_once_and_readable_by_their_owner_alone(tmp_path: Path) -> None:
    first, second = CoordinatorHome(tmp_path).keys(), CoordinatorHome(tmp_path).keys()
    assert first.authority.ca_pem == second.authority.ca_pem
    assert (first.enrolment, first.curve) == (second.enrolment, second.curve)
    modes = {path.name: path.stat().st_mode & 0o077 for path in (tmp_path / "ca").iterdir()}
    assert modes == {"ca.key": 0, "ca.pem": 0, "enrol.key": 0, "enrol.pem": 0, "curve.json": 0}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"weights": "x"}', "null"])
def test_counters_that_cannot_be_read_start_anew(text: str, tmp_path: Path) -> None:
    (tmp_path / "bytes.json").write_text(text)
    assert CoordinatorHome(tmp_path).load_bytes() == {"control": 0, "corpus": 0, "scores": 0, "weights": 0}


def test_counters_and_ports_are_what_was_saved(tmp_path: Path) -> None:
    home = CoordinatorHome(tmp_path)
    home.save_bytes({"control": 1, "corpus": 2, "scores": 3, "weights": 4})
    assert home.load_bytes() == {"control": 1, "corpus": 2, "scores": 3, "weights": 4}
    assert home.last_ports() is None
    home.say_started(Ports(control=5, enrol=6, data=7), digest_bytes(b"boot"))
    assert home.last_ports() == Ports(control=5, enrol=6, data=7)
