"""What each of the older Rays wrote, restored by the newest; see ../test_versions.py."""

import pytest

from tests.support.ray.golden import VERSIONS, assert_restored_as_by_ray


@pytest.mark.parametrize("version", VERSIONS)
def test_what_it_wrote_is_restored_as_the_newest_ray_restores_it(hosts, tmp_path, version):
    assert_restored_as_by_ray(hosts, tmp_path, version)
