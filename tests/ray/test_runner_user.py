"""A runner with an account of its own: it restores, and cannot read what the worker has."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.launch.account import Account, find_account
from airflow_tune_restore.launch.local import LocalLauncher
from airflow_tune_restore.launch.process import _members
from airflow_tune_restore.protocol.attempts import AttemptRecords
from airflow_tune_restore.protocol.check import CheckRequest, ExperimentToCheck, Problem
from airflow_tune_restore.protocol.layout import WHOLE_EXPERIMENT
from airflow_tune_restore.protocol.request import EXIT_INTERRUPTED, RunnerRequest
from airflow_tune_restore.restore.claim import RunnerSettings, claim_attempt
from tests.support import ROOT
from tests.support.experiments.failed import Gate
from tests.support.ray.real_restore import RESTORE_ID, TRAINABLE_ENV, Restoring
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts runners as others")

NUMBER = "61234"
"""A user that no list names."""

REQUEST = RunnerRequest(
    experiment="/e", restore_id="r", trial_id="t", attempt=1, trainable="m:f", trainable_name="f",
    action="resume",
)  # fmt: skip

SECRET = "planted-fernet-key-4d1f"


@pytest.fixture
def account() -> Account:
    return find_account(NUMBER)


@pytest.fixture(scope="module")
def python() -> tuple[str, list[str]]:
    """An interpreter that everybody can start, and what to put on its path to have Ray."""
    site = sysconfig.get_path("purelib")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, shutil.which(version, path="/usr/local/bin:/usr/bin")):
        if candidate and _starts(candidate, site):
            return candidate, [ROOT.as_posix(), site]
    pytest.skip("no Python here that others than root can start")


def _starts(python: str, site: str) -> bool:
    try:
        return not subprocess.run(
            [python, "-c", "import msgpack, pyarrow"],
            user=int(NUMBER), group=int(NUMBER), extra_groups=[], env={"PYTHONPATH": site},
            stderr=subprocess.DEVNULL, check=False,
        ).returncode  # fmt: skip
    except PermissionError:
        return False


@pytest.fixture
def place():
    """A directory whose path everybody can walk, which pytest's own is not."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture
def launcher(account, python):
    interpreter, path = python
    return LocalLauncher(python=interpreter, pythonpath=path, account=account, env=TRAINABLE_ENV)


def own(directory: Path, account: Account) -> Path:
    """Give an experiment to the account, as the sweep's own user has it."""
    for path in (directory, *directory.rglob("*")):
        os.chown(path, account.uid, account.gid)
    return directory


@pytest.fixture
def experiment(failed_experiments, place, account):
    return own(Path(shutil.copytree(failed_experiments["errored"], place / "errored")), account)


@pytest.fixture
def restoring(experiment, launcher):
    restore = Restoring(experiment, "errored")
    restore.launcher = replace(restore.launcher, python=launcher.python, account=launcher.account,
                               pythonpath=launcher.pythonpath)  # fmt: skip
    return restore


def test_it_is_stopped_with_a_snapshot_and_leaves_nothing(restoring, place):
    gate = Gate(place / "gate-is-open", before=5)
    restoring.launcher = replace(restoring.launcher, env={**restoring.launcher.env, **gate.env})
    request, process, seen = restoring.run_until(4)
    environ = Path(f"/proc/{process.pid}/environ").read_text().split("\0")
    (home,) = [Path(line.partition("=")[2]) for line in environ if line.startswith("RAY_TMPDIR=")]
    assert home.stat().st_uid == int(NUMBER)
    os.kill(process.pid, signal.SIGTERM)
    ran = restoring.finish(request, process, tuple(seen))
    assert (ran.code, ran.outcome.iteration) == (EXIT_INTERRUPTED, 4), ran.output
    assert _members(process.pid) == []
    assert not home.exists()


def test_it_runs_a_whole_experiment_detached(experiment, account, launcher):
    restoring = Restoring(experiment, "errored", strategy="whole_experiment")
    request = claim_attempt(
        restoring.store,
        restoring.plan,
        WHOLE_EXPERIMENT,
        RunnerSettings(trainable=restoring.trainable, imports=[]),
    )
    healed = {**TRAINABLE_ENV, "TUNE_TEST_HEALED": "1"}
    output = replace(launcher, env=healed).start_detached(request)
    home = Path(output.name).parent
    with output:
        eventually(lambda: not home.exists())
        said = output.read()
    outcome = AttemptRecords(restoring.store, RESTORE_ID, WHOLE_EXPERIMENT).outcome(request.attempt)
    assert outcome is not None, said
    assert outcome.result == "finished", said
    assert restoring.iterations() == [1, 2, 3, 4, 5, 6]
    assert {path.stat().st_uid for path in experiment.rglob("*")} == {account.uid}


SPY = '''
    """Writes down what it can read of other processes; it is imported by check and runner alike."""

    import json
    import os
    from pathlib import Path

    told = {"uid": os.getuid(), "groups": os.getgroups(), "parent": "", "found": []}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            content = (directory / "environ").read_bytes()
        except OSError as error:
            content = type(error).__name__.encode()
        if int(directory.name) == os.getppid():
            told["parent"] = content.decode(errors="replace")[:100]
        if b"SECRET" in content:
            told["found"].append(int(directory.name))
    Path(os.environ["SPY_REPORT"]).write_text(json.dumps(told))
    from tests.trainables import counting
'''.replace("SECRET", SECRET)

WORKER = """
    import sys
    from airflow_tune_restore.launch.account import find_account
    from airflow_tune_restore.launch.local import LocalLauncher
    from airflow_tune_restore.protocol.check import CheckRequest

    python, user, report, *path = sys.argv[1:]
    account = find_account(user) if user else None
    launcher = LocalLauncher(python=python, pythonpath=path, account=account, env={"SPY_REPORT": report})
    launcher.check(CheckRequest(trainable="spy:counting"))
"""


@pytest.mark.parametrize("user", [NUMBER, ""])
def test_it_cannot_read_the_environment_of_the_worker(place, python, user):
    """Of a worker that has Airflow's secrets in its environment; without an account it can."""
    interpreter, path = python
    (place / "spy.py").write_text(textwrap.dedent(SPY))
    report = place / "report.json"
    report.touch()
    report.chmod(0o666)
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WORKER), interpreter, user, report, place, *path],
        env={**os.environ, "AIRFLOW__CORE__FERNET_KEY": SECRET, "PYTHONPATH": ROOT.as_posix()},
        check=True,
    )  # fmt: skip
    told = json.loads(report.read_text())
    if user:
        assert told == {"uid": int(NUMBER), "groups": [], "parent": "PermissionError", "found": []}
    else:
        assert told["uid"] == 0
        assert told["found"]


def test_a_key_file_is_readable_for_it_alone(account, python, place):
    interpreter, _ = python
    key = place / "key.json"
    key.write_text("key")
    key.chmod(0o600)
    env = {"GOOGLE_APPLICATION_CREDENTIALS": key.as_posix()}
    script = place / "python"
    script.write_text(
        f"#!{interpreter}\nimport os\npath = os.environ['GOOGLE_APPLICATION_CREDENTIALS']\n"
        "print(os.getuid(), open(path).read(), oct(os.stat(path).st_mode & 0o777), path)\n"
    )
    script.chmod(0o755)
    launcher = LocalLauncher(python=script.as_posix(), account=account, env=env)
    process = launcher.start(REQUEST)
    (line,) = process.lines()
    uid, content, mode, path = line.split()
    assert (uid, content, mode) == (NUMBER, "key", "0o600")
    process.wait()
    assert not Path(path).exists()
    with launcher.start_detached(REQUEST) as output:
        lines = []
        eventually(lambda: lines.extend(output.readlines()) or lines)
    assert lines[0].split()[:3] == [NUMBER, "key", "0o600"]
    shutil.rmtree(Path(lines[0].split()[3]).parent)  # which the real runner does


def test_the_check_says_what_it_may_not_write_to(experiment, launcher):
    asked = ExperimentToCheck(experiment=experiment.as_posix(), trainable_name="counting")
    request = CheckRequest(trainable="tests.trainables:counting", experiments=[asked])
    (answer,) = launcher.check(request)
    assert answer.problem is None
    os.chown(experiment, 0, 0)
    (answer,) = launcher.check(request)
    assert answer.problem is Problem.REFUSED
    assert re.search(rf"uid {NUMBER} cannot write to .*Run: chown -R {NUMBER} ", answer.message)


def test_an_interpreter_that_it_may_not_start_is_named(account, place):
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    (closed / "python").symlink_to("/bin/sh")
    launcher = LocalLauncher(python=f"{closed}/python", account=account)
    with pytest.raises(InvalidInputError, match=f"python as {NUMBER}: Permission denied"):
        launcher.start(REQUEST)
