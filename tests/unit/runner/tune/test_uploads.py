"""The files of a trial are uploaded as Ray uploads them, and no further than the attempt may write."""

from types import SimpleNamespace

import pytest

pytest.importorskip("ray.tune")

from pyarrow.fs import LocalFileSystem
from ray.train._internal.storage import _upload_to_fs_path

from airflow_tune_restore.runner.tune.controller import GuardedController

FILES = {"result.json": "{}\n", "error.txt": "out of luck", "logs/a b/lr=0.1,x:y.txt": "nested"}


class StoppedError(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def trial(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "driver" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    storage = SimpleNamespace(
        storage_filesystem=LocalFileSystem(), trial_fs_path=(tmp_path / "storage/trial").as_posix()
    )
    return SimpleNamespace(local_path=(tmp_path / "driver").as_posix(), storage=storage)


def upload(trial, check):
    controller = GuardedController.__new__(GuardedController)
    controller.context = SimpleNamespace(check_fence_lately=check)
    controller._upload(trial)


def contents(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_text()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_the_same_files_arrive_as_with_ray(trial, tmp_path):
    upload(trial, lambda: None)
    _upload_to_fs_path(trial.local_path, LocalFileSystem(), (tmp_path / "by_ray").as_posix())
    assert contents(tmp_path / "storage/trial") == contents(tmp_path / "by_ray") == FILES


def test_a_process_that_thaws_in_an_upload_writes_no_further_file(trial, tmp_path):
    looks = iter([None, None, StoppedError])

    def look():
        if error := next(looks):
            raise error

    with pytest.raises(StoppedError):
        upload(trial, look)
    assert len(contents(tmp_path / "storage")) == 2


def test_a_trial_without_files_makes_no_directory(trial, tmp_path):
    trial.local_path = (tmp_path / "nothing").as_posix()
    upload(trial, lambda: None)
    assert not (tmp_path / "storage").exists()
