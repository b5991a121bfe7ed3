"""Whom runners may run as, and who is refused before anything is started."""

import os
import pwd

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.launch.account import find_account


@pytest.fixture
def as_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.mark.usefixtures("as_root")
def test_a_name_and_its_number_are_the_same():
    somebody = next(entry for entry in pwd.getpwall() if entry.pw_uid != 0)
    account = find_account(somebody.pw_name)
    assert (account.uid, account.gid) == (somebody.pw_uid, somebody.pw_gid)
    assert account.gid in account.groups
    assert find_account(str(somebody.pw_uid)).uid == somebody.pw_uid


@pytest.mark.usefixtures("as_root")
def test_a_number_needs_no_entry():
    account = find_account("61234")
    assert (account.uid, account.gid, account.groups) == (61234, 61234, ())
    variables = account.variables("/own")
    assert (variables["HOME"], variables["TMPDIR"], variables["USER"]) == ("/own", "/own", "61234")


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(
    "user", ["no such user", "-1", "4294967295", "9" * 5_000, "\u0663", "a\0b", "\ud800"]
)
def test_nobody_is_refused(user):
    with pytest.raises(InvalidInputError, match="this worker has no such user"):
        find_account(user)


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("user", ["0", "root"])
def test_root_is_refused(user):
    with pytest.raises(InvalidInputError, match="is root, who may read everything"):
        find_account(user)


def test_a_worker_that_is_not_root_says_so(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 50_000)
    with pytest.raises(InvalidInputError, match="runs as uid 50000, and only root can start"):
        find_account("61234")
