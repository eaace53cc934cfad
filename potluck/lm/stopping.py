"""Where a text ends: stop strings, found however the text is cut into pieces. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from potluck.errors import UsageError

MAX_STOPS = 8
MAX_STOP_CHARACTERS = 64
"""Both bound the text that is held back and the work of a piece."""


def checked_stops(stops: Sequence[str]) -> tuple[str, ...]:
    """Stop strings as they were given.

    Raises:
        UsageError: ``usage.bad-stop``: too many, or one that is empty or too long.
    """
    if isinstance(stops, str):
        raise UsageError("usage.bad-stop", f"stop = {stops[:MAX_STOP_CHARACTERS]!r} is one string", "give a list")
    if len(stops) > MAX_STOPS:
        raise UsageError("usage.bad-stop", f"{len(stops)} stop strings", f"give at most {MAX_STOPS}")
    for i, stop in enumerate(stops):
        if not 1 <= len(stop) <= MAX_STOP_CHARACTERS:
            fix = f"give 1 to {MAX_STOP_CHARACTERS}"
            raise UsageError("usage.bad-stop", f"stop[{i}] has {len(stop)} characters", fix)
    return tuple(stops)


class StopScanner:
    """Lets a text pass up to its first stop string; what may be the start of one waits until that is decided.

    The first is the one that is complete first; of several that end together, the one that starts first.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """
        Raises:
            UsageError: as `checked_stops`.
        """
        self.stopped = False
        """Whether a stop string was found: the text has ended before it."""
        self._stops = checked_stops(stops)
        self._held = ""
        """The longest end of the text so far that starts a stop string."""

    def feed(self, text: str) -> str:
        """What is certain to belong to the text, now that it goes on with `text`; nothing once it has stopped."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        num_held = next((n for n in range(self._longest(text), 0, -1) if self._starts_stop(text[-n:])), 0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def flush(self) -> str:
        """What was held back; for a text that has ended without a stop string."""
        held, self._held = self._held, ""
        return held

    def _longest(self, text: str) -> int:
        return min(len(text), max(map(len, self._stops), default=1) - 1)

    def _starts_stop(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self._stops)
