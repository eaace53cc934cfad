"""What a planted bug is: a description and a way to have it for a while.

A file of planted bugs (`known.py`, `blind_bugs.py`) has one name, `BUGS: dict[str, Bug]`. The key is
the bug's name on the command line and in the table; `plant` swaps one function or method of the product
for a broken one and puts the right one back on the way out:

    BUGS = {
        "fence-never-grows": Bug(
            description="A new grant repeats the fence of the lease before it.",
            plant=lambda: replaced(leases, "next_fence", broken_next_fence),
        ),
    }
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Bug:
    """One planted bug.

    Attributes:
        description: One sentence: what the product does wrong with the bug in.
        plant: Makes a context manager; inside it the product has the bug.
    """

    description: str
    plant: Callable[[], AbstractContextManager[None]]


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Swaps the attribute `name` of a module or class for `value`, and puts the old one back at the end.

    A function that other modules took with `from module import name` must be replaced in each of them,
    for there its name is bound anew: nest one `replaced` for each.

    Raises:
        AttributeError: `owner` has no attribute of that name: the product was changed under the bug.
    """
    # vars() first: getattr on a class would unwrap a staticmethod or classmethod for good
    old = vars(owner)[name] if name in vars(owner) else getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, old)
