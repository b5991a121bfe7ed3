"""A runner on a real S3 server: credentials come from the environment and are written nowhere."""

from airflow_tune_restore.protocol.request import EXIT_FINISHED, EXIT_INTERRUPTED
from airflow_tune_restore.restore.commit import commit_restore
from tests.support.ray.real_restore import RESTORE_ID, Restoring


def test_a_trial_is_stopped_and_resumed_on_s3_and_no_secret_is_written(copied_to_s3, s3, gate):
    import s3fs

    url = copied_to_s3("errored")
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
