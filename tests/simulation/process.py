"""What hub and nodes have in common: a process that may be dead, frozen, or in its next life."""

from __future__ import annotations

from collections import deque

from tests.simulation.kernel import Action, Kernel


class Process:
    """Runs its actions in its own life only; while frozen they wait, and come all at once after it."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.life = 0
        self.alive = False
        self._frozen = 0
        self._backlog: deque[tuple[int, Action]] = deque()

    @property
    def frozen(self) -> bool:
        return self._frozen > 0

    @property
    def runs(self) -> bool:
        return self.alive and not self.frozen

    def later(self, delay_ms: float, action: Action) -> None:
        """Does something in a while, if this life lasts that long."""
        life = self.life
        self.kernel.after(delay_ms, lambda: self.enter(life, action))

    def enter(self, life: int, action: Action) -> None:
        if life != self.life or not self.alive:
            return
        if self.frozen or self._backlog:
            self._backlog.append((life, action))
        else:
            action()

    def here(self, action: Action) -> Action:
        """An action of this life, for others to call."""
        life = self.life
        return lambda: self.enter(life, action)

    def freeze(self, for_ms: float) -> None:
        self._frozen += 1
        self.kernel.after(for_ms, self.thaw)

    def thaw(self) -> None:
        self._frozen = max(0, self._frozen - 1)
        while self._backlog and not self.frozen:
            life, action = self._backlog.popleft()
            if life == self.life and self.alive:
                action()

    def end_life(self) -> None:
        self.alive = False
        self.life += 1
        self._backlog.clear()
