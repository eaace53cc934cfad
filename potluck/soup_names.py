"""Names of models that are made of a soup on request: ``soup:code=0.6,law=0.4``. Pure.

    name   = "soup:" share *("," share)
    share  = domain "=" weight
    domain = its name, in which ``%``, ``=``, ``,``, control characters, and spaces at either end are written as the
             percent-encoded bytes of their UTF-8 (``%25``, ``%3D``, ``%2C``, ``%20``); any other character may be
    weight = a decimal number such as 0.6, 1 or 5e-1; not negative

Spaces around shares, domains and weights are not part of them. Weights sum to one within 1e-6; domains that are not
named have none. A soup has one name, which `str` gives: domains sorted, those of weight 0 left out, nothing encoded
that need not be.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from potluck.errors import UsageError

PREFIX = "soup:"
EXAMPLE = "soup:code=0.6,law=0.4"
SUM_TOLERANCE = 1e-6
"""Of weights that a person writes; they are then divided by their sum."""
EXACT_TOLERANCE = 1e-9
"""Weights that sum to one as nearly as a mixture's must (`sampling.mixture`) stay as they are written."""
MAX_NAME_BYTES = 65_536
"""As long as a text: thousands of domains."""
MAX_LISTED = 5
"""Domains named in a message."""
MAX_SHOWN = 80
"""Characters of somebody's input in a message."""

Shares = tuple[tuple[int, float], ...]
"""Domains by their place in a soup's labels, and their weights above zero; in the order of the places."""

_WEIGHT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ENCODED = re.compile(r"[%=,\x00-\x1f\x7f]|^ +| +$")
_GRAMMAR = f"write it as {EXAMPLE}; in a domain's name % is %25, = is %3D and a comma is %2C"


@dataclass(frozen=True, kw_only=True)
class SoupName:
    """A mixture of a soup's domains, by their names."""

    weights: Mapping[str, float]
    """Above zero, sorted by name; sum to one."""

    def __str__(self) -> str:
        return _written(self.weights)

    def shares(self, domains: Sequence[str]) -> Shares:
        """Raises:
        UsageError: ``usage.unknown-domain``, naming the nearest of those there are.
        """
        places = {name: place for place, name in enumerate(domains)}
        for name in self.weights:
            if name not in places:
                raise _unknown(name, domains)
        return tuple(sorted((places[name], weight) for name, weight in self.weights.items()))


def parse_soup_name(text: str) -> SoupName:
    """Reads a name by the grammar above.

    Raises:
        UsageError: ``usage.bad-model``: it is no such name; ``usage.empty-soup``: it names no domain;
            ``usage.bad-weight``: one is negative or no number; ``usage.weights-do-not-sum``: they do not sum to one.
    """
    if not text.startswith(PREFIX):
        raise _bad(f"{_shown(text)} does not begin with {PREFIX!r}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise _bad(f"character {error.start} of the name is {text[error.start]!r}, which is no text") from None
    if size > MAX_NAME_BYTES:
        raise UsageError("usage.too-long", f"the model's name has {size} bytes", f"send at most {MAX_NAME_BYTES}")
    body = text.removeprefix(PREFIX)
    if not body.strip(" "):
        raise UsageError("usage.empty-soup", f"{_shown(text)} names no domain", _GRAMMAR)
    weights: dict[str, float] = {}
    for share in body.split(","):
        domain, weight = _share(share)
        if domain in weights:
            raise _bad(f"domain {_shown(domain)} is named twice")
        weights[domain] = weight
    return _summing_to_one({name: weight for name, weight in sorted(weights.items()) if weight > 0})


def _share(text: str) -> tuple[str, float]:
    written, equals, weight = text.partition("=")
    if not equals or "=" in weight:
        raise _bad(f"{_shown(text)} is not one domain, one = and one weight")
    domain = _decoded(written.strip(" "))
    return domain, _weight(domain, weight.strip(" "))


def _decoded(written: str) -> str:
    if not written:
        raise _bad("a weight has no domain")
    if _BROKEN_ESCAPE.search(written):
        raise _bad(f"in {_shown(written)} a % is not followed by two hexadecimal digits")
    try:
        return unquote_to_bytes(written).decode()
    except UnicodeDecodeError:
        raise _bad(f"the percent-encoded bytes of {_shown(written)} are not UTF-8") from None


def _weight(domain: str, written: str) -> float:
    weight = float(written) if _WEIGHT.fullmatch(written) else math.nan
    if not 0 <= weight < math.inf:
        what = f"the weight of {_shown(domain)} is {_shown(written)}"
        raise UsageError("usage.bad-weight", what, "allowed: decimal numbers from 0 to 1, such as 0.6")
    return weight


def _summing_to_one(weights: Mapping[str, float]) -> SoupName:
    """Args:
    weights: above zero.
    """
    if not weights:
        fix = f"weights sum to one, as in {EXAMPLE}"
        raise UsageError("usage.weights-do-not-sum", "all weights are 0", fix)
    largest = max(weights.values())
    scaled = {name: weight / largest for name, weight in weights.items()}  # or a sum of finite ones overflows
    share = math.fsum(scaled.values())
    total = largest * share
    if abs(total - 1.0) <= EXACT_TOLERANCE:
        return SoupName(weights=weights)
    normalised = {name: weight / share for name, weight in scaled.items() if weight / share > 0}
    if abs(total - 1.0) <= SUM_TOLERANCE:
        return SoupName(weights=normalised)
    fix = f"weights sum to one within {SUM_TOLERANCE}; in these proportions: {_written(normalised)}"
    raise UsageError("usage.weights-do-not-sum", f"the weights sum to {total:.9g}, not to 1", fix)


def _written(weights: Mapping[str, float]) -> str:
    return PREFIX + ",".join(f"{_encoded(name)}={weight!r}" for name, weight in sorted(weights.items()))


def _encoded(domain: str) -> str:
    return _ENCODED.sub(lambda found: "".join(f"%{ord(character):02X}" for character in found.group()), domain)


def _unknown(name: str, domains: Sequence[str]) -> UsageError:
    near = difflib.get_close_matches(name[:MAX_SHOWN], [domain[:MAX_SHOWN] for domain in domains], n=MAX_LISTED)
    listed = near or [domain[:MAX_SHOWN] for domain in domains[:MAX_LISTED]]
    what = f"the soup has no domain {_shown(name)}"
    kind = "nearest" if near else "the first" if len(domains) > len(listed) else "all"
    return UsageError("usage.unknown-domain", what, f"{kind} of its {len(domains)} domains: {', '.join(listed)}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "...")


def _bad(what: str) -> UsageError:
    return UsageError("usage.bad-model", what, _GRAMMAR)
