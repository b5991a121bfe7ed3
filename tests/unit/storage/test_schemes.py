"""A URL of another kind than the supported ones is refused in one sentence, before anything is opened."""

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.storage.fs import arrow_filesystem, open_store


@pytest.mark.parametrize("open_place", [open_store, arrow_filesystem])
@pytest.mark.parametrize(
    "url", ["ftp://host/x", "http://host/x", "sftp://host/x", "gopher://host", "S4://bucket/x"]
)
def test_an_unsupported_scheme_is_one_sentence_that_names_the_supported_ones(url, open_place):
    with pytest.raises(InvalidInputError) as refused:
        open_place(url)
    scheme = url.partition(":")[0].lower()
    assert str(refused.value) == (
        f"{scheme}:// is not supported: give a path, or a URL that begins with s3://, gs://, abfs:// or "
        "hdfs://."
    )


def test_a_password_before_the_host_of_such_a_url_is_not_shown():
    with pytest.raises(InvalidInputError, match=r"^ftp:// is not supported") as refused:
        open_store("ftp://user:secret@host/x")
    assert "secret" not in str(refused.value)


def test_a_store_with_an_fsspec_package_is_not_refused_by_its_scheme():
    with pytest.raises(InvalidInputError, match=r"oss:// needs a package that is missing: .*ossfs"):
        open_store("oss://bucket/x")
