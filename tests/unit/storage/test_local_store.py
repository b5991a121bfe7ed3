"""What lies on a disk besides files and directories."""

import errno
import os
import resource
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from airflow_tune_restore.exceptions import KeyNotFoundError, StorageError
from airflow_tune_restore.storage.base import Entry
from airflow_tune_restore.storage.local import LocalStore
from tests.support.waiting import PATIENCE_SECONDS


@pytest.fixture
def store(tmp_path):
    (tmp_path / "file").write_bytes(b"body")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "below").write_bytes(b"below")
    return LocalStore(tmp_path)


def names(store, path=""):
    return [entry.name for entry in store.list_dir(path)]


def test_a_link_to_a_file_is_read(store, tmp_path):
    (tmp_path / "link").symlink_to("file")
    file, link = store.list_dir()[1:]
    assert link == file._replace(name="link")
    assert store.get("link") == b"body"


def test_a_link_to_a_directory_is_told_from_a_directory(store, tmp_path):
    (tmp_path / "link").symlink_to("dir")
    assert store.list_dir()[0] == Entry(name="dir", is_dir=True)
    assert store.list_dir()[2] == Entry(name="link", is_dir=True, is_link=True)
    assert names(store, "link") == ["below"]
    assert names(store.at("link")) == ["below"]


def test_a_link_that_leads_out_is_as_good_as_a_directory(store, tmp_path):
    inner = LocalStore(tmp_path / "dir")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "dir" / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "dir" / "up").symlink_to(tmp_path)
    assert [entry.is_link for entry in inner.list_dir() if entry.is_dir] == [False, True]
    assert [entry.is_link for entry in store.at("dir").list_dir() if entry.is_dir] == [True, True]


def test_a_disk_that_does_not_answer_makes_nothing_look_old(store, monkeypatch):
    """Without the times of what is written to, what is not would decide."""
    entry = LocalStore._entry

    def fails(self, item):
        if item.name == "file":
            item = SimpleNamespace(is_dir=lambda: False, stat=_raise_io_error)
        return entry(self, item)

    monkeypatch.setattr(LocalStore, "_entry", fails)
    with pytest.raises(StorageError, match="Cannot list"):
        store.list_dir()


def _raise_io_error():
    raise OSError(errno.EIO, "Input/output error")


def test_a_link_to_nothing_is_nothing(store, tmp_path):
    (tmp_path / "link").symlink_to("nothing")
    assert names(store) == ["dir", "file"]


def test_a_link_to_itself_concerns_only_who_reads_it(store, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    assert names(store) == ["dir", "file", "loop"]
    with pytest.raises(StorageError, match=r"Cannot read .*/loop: Too many levels"):
        store.get("loop")


def test_what_is_no_file_is_not_there(store, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    assert names(store) == ["dir", "file"]


READ = """
import sys
from pathlib import Path
from airflow_tune_restore.exceptions import KeyNotFoundError
from airflow_tune_restore.storage.local import LocalStore

store = LocalStore(Path(sys.argv[1]))
for read in (lambda: store.get("x", max_bytes=100), lambda: list(store.stream("x", max_bytes=100))):
    try:
        read()
    except KeyNotFoundError as error:
        print(error)
"""


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_never_ends_is_not_read(tmp_path, kind):
    """In a process of its own, because it hung for ever, or until its memory was full."""
    if kind == "pipe":
        os.mkfifo(tmp_path / "x")
    else:
        (tmp_path / "x").symlink_to("/dev/zero")
    limit = 1024**3
    done = subprocess.run(
        [sys.executable, "-c", READ, tmp_path.as_posix()],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.stdout.splitlines() == [f"{tmp_path}: x does not exist."] * 2, done.stderr


def test_a_file_that_says_it_is_empty_is_read_as_such(store, tmp_path):
    """Some of /proc never end, and their size is 0."""
    (tmp_path / "link").symlink_to("/proc/self/maps")
    assert store.get("link", max_bytes=100) == b""
    assert list(store.stream("link", max_bytes=100)) == []


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="few other disks hold such times")
@pytest.mark.parametrize("seconds", [300_000_000_000, -100_000_000_000])
def test_a_time_that_is_in_no_year_is_not_known(seconds):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        file = Path(directory, "file")
        file.write_bytes(b"body")
        os.utime(file, (seconds, seconds))
        (entry,) = LocalStore(Path(directory)).list_dir()
    assert (entry.name, entry.size_bytes, entry.modified_at) == ("file", 4, None)
    assert entry.etag


def test_a_time_in_the_future_is_a_time(store, tmp_path):
    moment = datetime(2300, 1, 1, tzinfo=UTC)
    os.utime(tmp_path / "file", (moment.timestamp(),) * 2)
    assert store.list_dir()[1].modified_at == moment


def test_a_directory_is_no_object(store):
    with pytest.raises(KeyNotFoundError):
        store.get("dir")
