"""What happened, kept to be told when a check fails: of each piece of work, and of the world lately."""

from __future__ import annotations

from collections import defaultdict, deque

LATELY = 40
OF_A_WORK = 60


class Violation(Exception):
    """A promise was broken. `check` is the stable name of the check that saw it."""

    def __init__(self, check: str, what: str, work: str = "") -> None:
        super().__init__(check, what, work)  # all of them, so that it survives the way between processes
        self.check = check
        self.what = what
        self.work = work

    def __str__(self) -> str:
        return f"{self.check}: {self.what}"


class Story:
    def __init__(self) -> None:
        self.now_ms = 0
        self._lately: deque[tuple[int, str]] = deque(maxlen=LATELY)
        self._works: dict[str, deque[tuple[int, str]]] = defaultdict(lambda: deque(maxlen=OF_A_WORK))

    def note(self, text: str, work: str = "") -> None:
        self._lately.append((self.now_ms, text))
        if work:
            self._works[work].append((self.now_ms, text))

    def told(self, work: str) -> str:
        """For people: of one piece of work, if the violation names one; and the world's last moments."""
        lines = [f"  {at_ms / 1000:9.3f} s  {text}" for at_ms, text in self._works.get(work, ())]
        lately = [f"  {at_ms / 1000:9.3f} s  {text}" for at_ms, text in self._lately]
        head = [f"the story of {work[:12]}:", *lines] if lines else []
        return "\n".join([*head, "lately:", *lately])
