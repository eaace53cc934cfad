from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.world import Job, Outcome, begin, outcome, tiny_job
from tests.integration.harness import Cluster


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return tiny_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="session")
def undisturbed(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The same run with nothing in its way."""
    with Cluster(tmp_path_factory.mktemp("undisturbed")) as cluster:
        cluster.start_coordinator()
        cluster.start_node("a")
        cluster.start_node("b")
        return outcome(cluster, begin(cluster, job))


@pytest.fixture
def crash_log(tmp_path: Path) -> Path:
    return tmp_path / "crashes"
