"""CURVE keys of the data plane, in Z85 text."""

from __future__ import annotations

from dataclasses import dataclass, field

import zmq


@dataclass(frozen=True, kw_only=True)
class CurveKeys:
    public: str
    secret: str = field(repr=False)


def new_curve_keys() -> CurveKeys:
    public, secret = zmq.curve_keypair()
    return CurveKeys(public=public.decode(), secret=secret.decode())
