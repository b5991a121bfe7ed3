"""A Ray cluster for a file of tests."""

from collections.abc import Iterator

import pytest

from tests.support.ray.cluster import RayCluster
from tests.support.ray.jobs import jobs_cluster
from tests.support.storage.servers import Server


@pytest.fixture(scope="module")
def cluster(s3: Server) -> Iterator[RayCluster]:
    """Two nodes with room for two trials each, and for few drivers on the head."""
    with jobs_cluster(2, **s3.env) as started:
        yield started
