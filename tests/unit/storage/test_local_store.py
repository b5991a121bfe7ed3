"""Links, pipes and devices on a disk."""

import contextlib
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

from airflow_tune_restore.exceptions import (
    CannotBeFollowedError,
    KeyNotFoundError,
    LinkRefusedError,
    StorageError,
    TuneRestoreError,
)
from airflow_tune_restore.storage import local
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


def test_a_link_to_a_directory_differs_from_a_directory(store, tmp_path):
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
    assert inner.list_dir()[1].place == os.path.realpath(tmp_path / "elsewhere")
    assert [entry.is_link for entry in store.at("dir").list_dir() if entry.is_dir] == [True, True]


def test_a_disk_that_does_not_answer_makes_nothing_look_old(store, monkeypatch):
    """Without the times of what is written to, what is not would decide."""
    entry = LocalStore._entry

    def fails(self, item):
        if item.name == "file":
            item = SimpleNamespace(
                is_dir=lambda: False, is_symlink=lambda: False, stat=_raise_io_error
            )
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


def test_a_pipe_or_a_device_does_not_exist(store, tmp_path):
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


def test_a_file_of_size_zero_is_read_as_empty(store, tmp_path):
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


def test_a_directory_is_not_an_object(store):
    with pytest.raises(KeyNotFoundError):
        store.get("dir")


# --- one entry that cannot be looked at


@pytest.mark.parametrize("target", ["file/model", "x" * 300], ids=["through a file", "long name"])
def test_a_link_that_cannot_be_followed_hides_no_other(store, tmp_path, target):
    (tmp_path / "latest").symlink_to(target)
    assert {"dir", "file"} <= set(names(store))
    with pytest.raises(TuneRestoreError):
        store.get("latest")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_a_link_to_a_forbidden_place_does_not_hide_the_others(store, tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    (tmp_path / "latest").symlink_to("closed/file")
    assert {"dir", "file"} <= set(names(store))


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ESTALE, errno.EIO, errno.EHOSTDOWN])
def test_a_link_to_a_mount_that_is_dead_hides_no_other(store, tmp_path, monkeypatch, number):
    (tmp_path / "latest").symlink_to("/mnt/dead/file")
    entry = LocalStore._entry

    def fails():
        raise OSError(number, os.strerror(number))

    def ask(self, item):
        if item.name == "latest":
            item = SimpleNamespace(name="latest", is_dir=fails, is_symlink=item.is_symlink)
        return entry(self, item)

    monkeypatch.setattr(LocalStore, "_entry", ask)
    assert names(store) == ["dir", "file", "latest"]
    assert store.list_dir()[2] == Entry(name="latest", is_dir=False)


@pytest.mark.parametrize("target", ["latest", "x" * 300], ids=["itself", "long name"])
def test_a_link_that_leads_nowhere_differs_from_a_store_that_fails(store, tmp_path, target):
    (tmp_path / "latest").symlink_to(target)
    for ask in (store.get, store.list_dir, lambda name: list(store.stream(name, max_bytes=1))):
        with pytest.raises(CannotBeFollowedError):
            ask("latest")


def test_an_object_is_not_created_in_the_place_of_a_link(store, tmp_path):
    """The error is not that it exists already: it could not be read."""
    (tmp_path / "new").symlink_to("nothing")
    with pytest.raises(LinkRefusedError, match=r"new is a link.*delete it"):
        store.create("new", b"body")
    assert (tmp_path / "new").readlink() == Path("nothing")


# --- links below .tune_restore

OWN = ".tune_restore"
WAYS = [OWN, f"{OWN}/r1", f"{OWN}/r1/plan.json"]


@pytest.fixture
def secret(tmp_path_factory):
    """A directory elsewhere on the same disk, shaped as ours is."""
    outside = tmp_path_factory.mktemp("outside")
    for below in ("", "r1"):
        (outside / below).mkdir(exist_ok=True)
        (outside / below / "plan.json").write_bytes(b"fernet key")
    (outside / "r1" / "r1").mkdir()
    (outside / "r1" / "r1" / "plan.json").write_bytes(b"fernet key")
    return outside


def _link_out(tmp_path, way, secret):
    """Put a link in the place of one part of `.tune_restore/r1/plan.json`."""
    place = tmp_path / way
    place.parent.mkdir(parents=True, exist_ok=True)
    is_file = way.endswith(".json")
    place.symlink_to(secret / "plan.json" if is_file else secret)


def _content(directory):
    return {p: p.read_bytes() if p.is_file() else None for p in directory.rglob("*")}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("at", ["", "dir"], ids=["store", "store below"])
def test_no_link_below_our_directory_is_followed(store, tmp_path, secret, way, at):
    inner = store.at(at) if at else store
    _link_out(tmp_path / at, way, secret)
    before = _content(secret)
    key = f"{OWN}/r1/plan.json"
    for read in (
        lambda: inner.get(key),
        lambda: inner.at(f"{OWN}/r1").get("plan.json"),
        lambda: list(inner.stream(key, max_bytes=100)),
        lambda: inner.create(key, b"new"),
        lambda: inner.create(f"{OWN}/r1/plan.json/new", b"new"),
    ):
        with pytest.raises(LinkRefusedError, match="is a link"):
            read()
    if not way.endswith(".json"):  # else the link itself is replaced, or deleted
        for write in (
            lambda: inner.put(key, b"new"),
            lambda: inner.delete(key),
            lambda: inner.list_dir(f"{OWN}/r1"),
        ):
            with pytest.raises(LinkRefusedError, match="is a link"):
                write()
    assert _content(secret) == before


def test_writing_and_deleting_takes_the_link_and_not_what_it_leads_to(store, tmp_path, secret):
    _link_out(tmp_path, WAYS[-1], secret)
    store.put(WAYS[-1], b"new")
    assert not (tmp_path / WAYS[-1]).is_symlink()
    (tmp_path / WAYS[-1]).unlink()
    _link_out(tmp_path, WAYS[-1], secret)
    store.delete(WAYS[-1])
    assert not os.path.lexists(tmp_path / WAYS[-1])
    assert (secret / "plan.json").read_bytes() == b"fernet key"


def test_an_own_listing_shows_that_a_name_is_taken_by_a_link(store, tmp_path):
    """A claim whose name is taken and does not show would be tried for ever."""
    store.put(f"{OWN}/lease/00000001.claim.json", b"{}")
    (tmp_path / OWN / "lease" / "00000002.claim.json").symlink_to("nothing")
    (tmp_path / OWN / "lease" / "dir").symlink_to(tmp_path)
    entries = store.list_dir(f"{OWN}/lease")
    assert [(e.name, e.is_dir) for e in entries] == [
        ("00000001.claim.json", False), ("00000002.claim.json", False), ("dir", False)
    ]  # fmt: skip


def test_a_store_behind_links_has_its_own_directory(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    store = LocalStore(tmp_path / "link")
    store.create(f"{OWN}/a/b", b"1")
    store.put(f"{OWN}/a/b", b"2")
    assert store.get(f"{OWN}/a/b") == b"2"
    assert names(store, f"{OWN}/a") == ["b"]
    store.delete(f"{OWN}/a/b")
    assert names(store, f"{OWN}/a") == []
    assert list((tmp_path / "real" / OWN / "a").iterdir()) == []


def test_no_descriptor_stays_open(store, tmp_path, secret):
    _link_out(tmp_path, WAYS[1], secret)
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(20):
        for action in (store.get, store.list_dir, store.delete, lambda key: store.put(key, b"x")):
            with contextlib.suppress(TuneRestoreError):
                action(WAYS[-1])
            with contextlib.suppress(TuneRestoreError):
                action(f"{OWN}/r2/x")
        with contextlib.suppress(TuneRestoreError):
            store.get("dir")
    assert len(list(descriptors.iterdir())) == before


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM])
def test_a_disk_that_forbids_chown_is_written_to(store, tmp_path, monkeypatch, number):
    """EINVAL: the owner has no number here, as in a rootless container; the others, a network's disk."""

    def refuses(*_args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", refuses)
    store.put(f"{OWN}/a/b", b"1")
    assert store.get(f"{OWN}/a/b") == b"1"


def test_no_descriptor_stays_open_when_a_new_directory_cannot_be_given_away(store, monkeypatch):
    def refuses(*_args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(local, "_give_to_owner_of", refuses)
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    for number in range(20):
        with pytest.raises(StorageError, match="Cannot write"):
            store.put(f"{OWN}/a{number}/b", b"1")
    assert len(list(descriptors.iterdir())) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_writes_belongs_to_the_owner_of_the_directory(tmp_path):
    os.chown(tmp_path, 61234, 61235)
    store = LocalStore(tmp_path)
    store.put(".tune_restore/b/c", b"1")
    store.put(".tune_restore/b/c", b"2")
    store.create(".tune_restore/d/e", b"3")
    store.put("f", b"4")
    found = [path.stat() for path in tmp_path.rglob("*")]
    assert {(status.st_uid, status.st_gid) for status in found} == {(61234, 61235)}
    os.chown(tmp_path / ".tune_restore", 0, 0)
    store.put(".tune_restore/f", b"5")
    assert (tmp_path / ".tune_restore" / "f").stat().st_uid == 0
