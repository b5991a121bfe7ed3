"""An experiment on S3 whose name cannot stand in a URL as it is."""

from airflow_tune_restore.protocol.request import EXIT_FINISHED
from airflow_tune_restore.restore.commit import commit_restore
from tests.support.ray.real_restore import RESTORE_ID, Restoring


def test_an_experiment_whose_name_is_no_url_by_the_letter(hosts, copied_to_s3, s3):
    """`RunConfig(name="my sweep")` works in Ray; pyarrow refuses to parse such a URL."""
    url = copied_to_s3("errored", "my sweep, größe 100%25 #1?")
    restoring = Restoring(url, "errored", hosts=hosts, env=s3.env)
    ran = restoring.run()
    assert ran.code == EXIT_FINISHED, ran.output
    assert restoring.iterations() == [1, 2, 3, 4, 5, 6]
    assert commit_restore(restoring.store, RESTORE_ID).state_file

    from pyarrow.fs import FileSystem
    from ray.tune import ExperimentAnalysis

    filesystem = FileSystem.from_uri(s3.url)[0]
    read = ExperimentAnalysis(url.removeprefix("s3://"), storage_filesystem=filesystem)
    assert {t.status for t in read.trials} == {"TERMINATED"}
