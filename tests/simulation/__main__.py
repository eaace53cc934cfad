"""`python -m tests.simulation`: worlds by the thousand, one world again, or the table of planted bugs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.planted.hunt import TABLE, hunt_all, unit_tests_with
from tests.simulation.planted.hunt import table as table_of
from tests.simulation.planted.registry import SECTIONS, all_bugs
from tests.simulation.report import Coverage, failure_text
from tests.simulation.world import Outcome, run_world

PROGRESS_EVERY = 100


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--worlds", type=int, default=200, metavar="N", help="how many seeds to run")
    parser.add_argument("--from", type=int, default=0, dest="first", metavar="SEED", help="the first of them")
    parser.add_argument("--seed", type=int, metavar="SEED", help="run this world alone, and tell its story if it fails")
    parser.add_argument("--plant", default="", metavar="NAME", help="with --seed: plant this bug first")
    parser.add_argument("--planted", action="store_true", help="hunt every planted bug; write planted_bugs.md")
    parser.add_argument("--with-unit-tests", action="store_true", help="with --planted: run the unit tests, too")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes")
    options = parser.parse_args()
    if options.planted:
        return _planted(with_unit_tests=options.with_unit_tests)
    if options.seed is not None:
        return _one(options.seed, options.plant)
    return _many(range(options.first, options.first + options.worlds), options.jobs)


def _one(seed: int, plant: str) -> int:
    if plant:
        with all_bugs()[plant].plant():
            outcome = run_world(seed)
    else:
        outcome = run_world(seed)
    _say(
        failure_text(outcome) if outcome.violation else f"world {seed}: finished at {outcome.finished_ms / 1000:.1f} s"
    )
    return 1 if outcome.violation else 0


def _many(seeds: range, jobs: int) -> int:
    coverage = Coverage()
    num_failed = 0
    for count, outcome in enumerate(_outcomes(seeds, jobs), start=1):
        coverage.add(outcome)
        if outcome.violation is not None:
            num_failed += 1
            _say(failure_text(outcome))
        if count % PROGRESS_EVERY == 0:
            _say(f"{count} worlds, {num_failed} failed")
    _say(coverage.table())
    _say(f"{len(seeds)} worlds, {num_failed} failed")
    return 1 if num_failed else 0


def _outcomes(seeds: range, jobs: int) -> Iterable[Outcome]:
    if jobs <= 1:
        yield from map(run_world, seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(run_world, seeds, chunksize=10)


def _planted(*, with_unit_tests: bool) -> int:
    catches = hunt_all(SECTIONS)
    names = [catch.name for found in catches.values() for catch in found]
    text = table_of(catches, {name: unit_tests_with(name) for name in names} if with_unit_tests else {})
    _say(text)
    TABLE.write_text(text, encoding="utf-8")
    return 0 if all(catch.check for found in catches.values() for catch in found) else 1


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
