"""A runner on a real S3 server: credentials come from the environment and are written nowhere."""

import pytest

from airflow_tune_restore.restore.commit import commit_restore
from airflow_tune_restore.restore.request import EXIT_FINISHED, EXIT_INTERRUPTED
from tests.support.ray.real_restore import RESTORE_ID, Restoring

pytest.importorskip("s3fs")


@pytest.fixture
def uploaded(copied, s3):
    """Copies an experiment into the bucket and returns its URL."""
    import s3fs

    def upload(kind: str, name: str | None = None) -> str:
        name = name or kind
        directory = copied(kind)
        filesystem = s3fs.S3FileSystem(skip_instance_cache=True)
        for path in directory.rglob("*"):
            if path.is_file():
                key = f"{s3.bucket}/sweeps/{name}/{path.relative_to(directory).as_posix()}"
                filesystem.pipe_file(key, path.read_bytes())
        return f"{s3.url}/sweeps/{name}"

    return upload


def test_a_trial_is_stopped_and_resumed_on_s3_and_no_secret_is_written(uploaded, s3, gate):
    import s3fs

    url = uploaded("errored")
    restoring = Restoring(url, "errored", env=gate.env)
    request, process, seen = restoring.run_until(4)
    process.stop()
    ran = restoring.finish(request, process, tuple(seen))
    assert ran.code == EXIT_INTERRUPTED, ran.output

    gate.open()
    ran = restoring.run()
    assert ran.code == EXIT_FINISHED, ran.output
    assert restoring.iterations() == restoring.csv_iterations() == [1, 2, 3, 4, 5, 6]
    summary = commit_restore(restoring.store, RESTORE_ID)
    assert summary.state_file

    from ray.tune import ExperimentAnalysis

    assert {t.status for t in ExperimentAnalysis(url).trials} == {"TERMINATED"}

    filesystem = s3fs.S3FileSystem(skip_instance_cache=True)
    secret = s3.env["AWS_SECRET_ACCESS_KEY"].encode()
    for key in filesystem.find(url.removeprefix("s3://")):
        body = filesystem.cat_file(key)
        assert secret not in body, key
        assert secret.hex().encode() not in body, key
    assert secret.decode() not in ran.output


def test_an_experiment_whose_name_is_no_url_by_the_letter(uploaded, s3):
    """`RunConfig(name="my sweep")` works in Ray; pyarrow refuses to parse such a URL."""
    url = uploaded("errored", "my sweep, größe 100%25 #1?")
    restoring = Restoring(url, "errored")
    ran = restoring.run()
    assert ran.code == EXIT_FINISHED, ran.output
    assert restoring.iterations() == [1, 2, 3, 4, 5, 6]
    assert commit_restore(restoring.store, RESTORE_ID).state_file

    from pyarrow.fs import FileSystem
    from ray.tune import ExperimentAnalysis

    filesystem = FileSystem.from_uri(s3.url)[0]
    read = ExperimentAnalysis(url.removeprefix("s3://"), storage_filesystem=filesystem)
    assert {t.status for t in read.trials} == {"TERMINATED"}
