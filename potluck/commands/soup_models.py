"""`--model` of the commands that ask a router."""

from __future__ import annotations

from potluck.errors import UsageError
from potluck.soup_names import EXAMPLE, parse_soup_name

MODEL_HELP = f"a model of the run's soup, such as {EXAMPLE}, weights by domain"


def checked_model(model: str, slot: str) -> str:
    """The one name of a model; empty if none was asked for.

    Raises:
        UsageError: ``usage.slot-and-model``; as `parse_soup_name`.
    """
    if slot and model:
        raise UsageError("usage.slot-and-model", f"--slot {slot} and --model {model}", "give one of them")
    return str(parse_soup_name(model)) if model else ""
