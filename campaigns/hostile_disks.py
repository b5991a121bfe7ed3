"""Links, pipes and directories everywhere a key can stand, in a bad experiment beside a good one.

Ray's own files may be links, as for Ray. Below `.tune_restore` nothing is one: whoever writes to the
disk would have a worker read, write and delete for him where he cannot. A secret lies outside of the
prefix; it is neither read from there nor touched.
"""

import contextlib
import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from airflow_tune_restore.cli import output
from airflow_tune_restore.exceptions import TuneRestoreError
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.storage.local import LocalStore
from airflow_tune_restore.version_compat import AirflowException
from campaigns.hostile_lab import (
    GOOD,
    SECRET,
    Lab,
    Objects,
    moved,
    output_of,
)
from campaigns.hostile_nights import a_night
from campaigns.hostile_records import READERS, RECORDS

Snapshot = dict[str, tuple[int, int, int, bytes]]


def disks(rng: random.Random, lab: Lab) -> None:
    """Something that is no plain file where one should be, and a night over it."""
    top = Path(lab.scratch, "disk")
    shutil.rmtree(top, ignore_errors=True)
    prefix, outside = top / "prefix", top / "outside"
    _write(_good(lab), prefix / "good")
    _write(dict(rng.choice((lab.restored, lab.whole, _good(lab)))), prefix / "bad")
    _write_secrets(outside)
    opened = ["good", "bad"]
    if rng.random() < 0.15:  # the experiment itself, or something beside it: nobody opens that
        path = prefix / rng.choice(("bad", "latest"))
        _put(rng, lab, path, outside)
        opened.remove("bad")
    else:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            path = _choose_place(rng, prefix / "bad")
            _put(rng, lab, path, outside)
    outside_before, good_before = snapshot(outside), snapshot(prefix / "good")
    if "bad" in opened:
        bad = LocalStore(prefix / "bad")
        _check_not_followed(bad, path)
        for read in rng.sample(READERS, 2):
            with contextlib.suppress(TuneRestoreError, AirflowException):
                read(lab, bad)
    reports = scan(LocalStore(prefix))
    output_of(lambda: output.print_reports([(r, []) for r in reports], prefix="x", as_json=False))
    assert "good" in [report.name for report in reports]
    a_night(rng, lab, {str(prefix / name): LocalStore(prefix / name) for name in opened})
    assert snapshot(outside) == outside_before, "what lies outside was changed"
    assert {path.name for path in prefix.iterdir()} <= {"bad", "good", "latest", "latest.txt"}
    after = snapshot(prefix / "good")
    assert {name: after.get(name) for name in good_before} == good_before
    _check_no_secret(prefix)


def _good(lab: Lab) -> Objects:
    """Return the golden experiment without what no restore looks at."""
    kept = ("checkpoint_", "experiment_state", "tuner.pkl", "basic-variant", "result.json")
    objects = moved(lab.golden, f"{GOOD}/", "")
    return {key: value for key, value in objects.items() if any(name in key for name in kept)}


def _write(objects: Objects, directory: Path) -> None:
    for key, (body, at) in objects.items():
        path = directory / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        os.utime(path, (at.timestamp(), at.timestamp()))


def _write_secrets(outside: Path) -> None:
    """Write a secret file, and a directory that looks as ours do, with secrets for records."""
    (outside / "lease").mkdir(parents=True)
    for name in ("secret.txt", "plan.json", "state.json", "lease/00000001.claim.json", "model"):
        path = outside / name
        path.write_text(SECRET)
        path.chmod(0o600)


# What takes the place of a file or a directory.


def _nowhere(_rng: random.Random, path: Path, _outside: Path) -> None:
    path.symlink_to("nowhere/at/all")


def _itself(_rng: random.Random, path: Path, _outside: Path) -> None:
    path.symlink_to(path.name)


def _through_a_file(_rng: random.Random, path: Path, _outside: Path) -> None:
    (path.parent / "latest.txt").write_text("a file")
    path.symlink_to("latest.txt/model")


def _long(rng: random.Random, path: Path, _outside: Path) -> None:
    path.symlink_to("x" * rng.choice((255, 256, 300, 4000)))


def _secret_directory(rng: random.Random, path: Path, outside: Path) -> None:
    path.symlink_to(_way(rng, path, outside))


def _secret_file(rng: random.Random, path: Path, outside: Path) -> None:
    name = rng.choice(("secret.txt", "plan.json", "lease/00000001.claim.json"))
    path.symlink_to(_way(rng, path, outside / name))


def _above(rng: random.Random, path: Path, _outside: Path) -> None:
    path.symlink_to(rng.choice(("..", "../..", ".", "../../..")), target_is_directory=True)


def _sibling(rng: random.Random, path: Path, outside: Path) -> None:
    good = outside.parent / "prefix" / "good"
    path.symlink_to(_way(rng, path, rng.choice((good, good / layout.ROOT))))


def _pipe(_rng: random.Random, path: Path, _outside: Path) -> None:
    os.mkfifo(path)


def _socket(_rng: random.Random, path: Path, _outside: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)  # as `bind` does, which takes short paths only


def _directory(_rng: random.Random, path: Path, _outside: Path) -> None:
    (path / "inner").mkdir(parents=True)


def _file(rng: random.Random, path: Path, _outside: Path) -> None:
    path.write_bytes(rng.choice((b"", b"{}", b"x" * 100)))


def _unreadable(_rng: random.Random, path: Path, _outside: Path) -> None:
    path.write_bytes(b"{}")
    path.chmod(0)  # root reads it all the same


def _odd_time(rng: random.Random, path: Path, _outside: Path) -> None:
    path.write_bytes(b"{}")
    at = rng.choice(
        (-(10**18), -(2**62), 10**18 * 9, 253402300800 * 10**9, 2**62, 2**63 - 1, -1, 0)
    )
    with contextlib.suppress(OSError, OverflowError):
        os.utime(path, ns=(at, at))


_KINDS: tuple[Callable[[random.Random, Path, Path], None], ...] = (
    _nowhere, _itself, _through_a_file, _long, _secret_directory, _secret_directory, _secret_file,
    _secret_file, _above, _sibling, _pipe, _socket, _directory, _file, _unreadable, _odd_time,
)  # fmt: skip


def _way(rng: random.Random, path: Path, target: Path) -> str:
    """Return the way to a target, from the root or from where the link lies."""
    if rng.random() < 0.5:
        return target.as_posix()
    return os.path.relpath(target, path.parent)


def _put(rng: random.Random, lab: Lab, path: Path, outside: Path) -> None:
    """Put something hostile in the place of a file or a directory, or beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(path)
    kind = rng.choice(_KINDS)
    kind(rng, path, outside)
    lab.keep(f"{path.name} is {kind.__name__}: {path}", b"")


def _choose_place(rng: random.Random, bad: Path) -> Path:
    """Return where a key stands, or a directory of keys; where a link stands in its way, that."""
    path = bad / rng.choice(_places(rng, bad))
    for parent in reversed(path.relative_to(bad).parents[:-1]):
        if os.path.lexists(bad / parent) and not _is_directory(bad / parent):
            return bad / parent  # or we would write through a link of our own
    return path


def _places(rng: random.Random, bad: Path) -> list[str]:
    """Return where something can stand, the fewest places of a kind being as likely as the most."""
    keys = rng.choice(
        (
            [key for key in RECORDS.values() if os.path.lexists(bad / key)],
            list(RECORDS.values()),
            [path.relative_to(bad).as_posix() for path in bad.rglob("*")],
            [layout.ROOT, layout.LEASE, layout.restore_dir("r1"), layout.restore_dir("r2")],
            ["latest", "callback-states-2026-11-23_10-00-00.pkl", layout.TUNER_FILE],
        )
    )
    parents = [parent.as_posix() for key in keys for parent in Path(key).parents[:-1]]
    return rng.choice((keys, keys, parents or keys)) or [layout.ROOT]


def _remove(path: Path) -> None:
    if _is_directory(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_directory(path: Path) -> bool:
    return os.path.isdir(path) and not path.is_symlink()  # noqa: PTH112  Path's raises for long links


# What must hold.


def snapshot(directory: Path) -> Snapshot:
    """Return what lies below a directory: its kind and mode, its size, its time and its content."""
    found = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        is_file = stat.S_ISREG(status.st_mode)
        key = path.relative_to(directory).as_posix()
        if key.partition("/")[0] == layout.ROOT:
            continue
        content = path.read_bytes() if is_file else b""
        # a directory's size and time change with what is committed into it
        told = (status.st_size, status.st_mtime_ns) if is_file else (0, 0)
        found[key] = (status.st_mode, *told, content)
    return found


def _check_not_followed(store: LocalStore, spoilt: Path) -> None:
    """Check that no key at or below a link in our directory can be read, listed or written through it."""
    root = Path(store.uri)
    place = spoilt.relative_to(root).as_posix()
    if place.partition("/")[0] != layout.ROOT or not spoilt.is_symlink():
        return
    for name in (
        "secret.txt",
        "plan.json",
        "lease/00000001.claim.json",
        layout.LEASE,
        "state.json",
    ):
        with contextlib.suppress(TuneRestoreError):
            assert not store.list_dir(f"{place}/{name}"), f"{place}/{name} is listed through a link"
        with contextlib.suppress(TuneRestoreError):
            told = store.get(f"{place}/{name}", max_bytes=10**6)
            raise AssertionError(f"{place}/{name} is read through a link: {told[:80]!r}")
    with contextlib.suppress(TuneRestoreError):
        assert not store.list_dir(place), f"{place} is listed through a link"
    with contextlib.suppress(TuneRestoreError):
        raise AssertionError(
            f"{place} is read through a link: {store.get(place, max_bytes=10**6)!r}"
        )
    for write in (store.put, store.create):
        with contextlib.suppress(TuneRestoreError):
            write(f"{place}/ours.json", b"ours")
    with contextlib.suppress(TuneRestoreError):
        store.delete(f"{place}/secret.txt")


def _check_no_secret(prefix: Path) -> None:
    for path in prefix.rglob("*"):
        if stat.S_ISREG(path.lstat().st_mode):
            assert SECRET.encode() not in path.read_bytes(), f"{path} holds what lies outside"
