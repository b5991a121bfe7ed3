"""One hostile experiment: a clear error or a harmless value for it, and the others go on."""

import json
import math
import os
import struct
import subprocess
import sys

import pytest

from airflow_tune_restore.exceptions import StorageError
from airflow_tune_restore.experiments.experiment import recorded_tuner, samples_left
from airflow_tune_restore.experiments.health import Health
from airflow_tune_restore.experiments.raw_row import MalformedStateError
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.experiments.read_checkpoints import read_checkpoint_choices
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.experiments.state import parse_state
from airflow_tune_restore.protocol import layout
from airflow_tune_restore.protocol.pickle_reader import read_pickle
from airflow_tune_restore.protocol.printable import printable
from airflow_tune_restore.protocol.request import TrialAction
from airflow_tune_restore.restore.plan import RestorePlan
from airflow_tune_restore.storage.local import LocalStore
from airflow_tune_restore.storage.memory import MemoryStore
from campaigns.hostile_inputs import _bombs
from tests.support import ROOT
from tests.support.experiments.built import STATE_NAME, make_experiment, make_row, make_state
from tests.support.records import plan_night
from tests.support.waiting import PATIENCE_SECONDS


@pytest.mark.parametrize("start", [10**400, -5, True, "soon", math.nan, math.inf])
def test_a_start_time_that_is_none_orders_a_state_first(start):
    assert parse_state(make_state([make_row("a")], start_time=start)).start_time == -math.inf


def test_a_frame_that_nests_deeply_is_refused_before_it_must_be_written_again():
    deep = json.loads("[" * 150 + "]" * 150)
    with pytest.raises(MalformedStateError, match="nests deeper"):
        parse_state(make_state([make_row("a")], deep=deep))


@pytest.mark.parametrize("iteration", [10**400, -1])
def test_an_iteration_that_counts_nothing_is_none(iteration):
    row = make_row("a", last_result={"training_iteration": iteration})
    assert parse_state(make_state([row])).trials[0].iteration == 0


def test_what_is_only_shown_never_stops_anybody():
    row = make_row("a", last_result_time=1.0)
    row[1] = row[1].replace('"last_result": {}', '"last_result": {"score": ' + "9" * 5000 + "}")
    trial = parse_state(make_state([row])).trials[0]
    assert trial.last_result == {}


def unreadable_checkpoints(value):
    row = make_row("t", status="ERROR", checkpoint=True, last_result={"training_iteration": 2})
    run = json.loads(row[1])
    run["checkpoint_manager"] = value
    return [row[0], json.dumps(run)]


@pytest.mark.parametrize("value", ["zz", {"_type": "CLOUDPICKLE_FALLBACK", "value": "8005"}, 7, []])
def test_a_trial_whose_checkpoints_are_unknown_is_not_started_from_scratch(value):
    store = MemoryStore()
    store.put(STATE_NAME, make_state([unreadable_checkpoints(value)]))
    experiment = read_experiment(store)
    assert read_checkpoint_choices(store, list(experiment.trials))["t"].lost
    (trial,) = plan_night(store).trials
    assert trial.action is TrialAction.KEEP
    assert "cannot be read" in trial.reason


def text(name: str) -> bytes:
    return b"X" + struct.pack("<I", len(name)) + name.encode()


def test_many_references_to_one_bundle_are_not_added_up_for_a_day():
    """A million references to a CPU: the sum shows how many of them were read."""
    bundle = b"}(" + (text("CPU") + b"K\x01") * 20_000 + b"u\x94"
    pickled = b"}" + text("_bundles") + b"](" + bundle + b"h\x00" * 50_000 + b"es."
    row = make_row("a", placement_group_factory=pickled.hex())
    assert 0 < parse_state(make_state([row])).trials[0].resources["CPU"] <= 10_000


@pytest.mark.parametrize("amount", [b"G\x7f\xf0\0\0\0\0\0\0", b"\x8a\x40" + b"\x7f" * 64, b"K\x00"])
def test_a_plan_with_absurd_resources_can_be_read_again(amount):
    pickled = b"}" + text("_bundles") + b"](}" + text("CPU") + amount + b"ses."
    store = MemoryStore()
    row = make_row("a", status="ERROR", placement_group_factory=pickled.hex())
    store.put(STATE_NAME, make_state([row]))
    plan = plan_night(store)
    assert RestorePlan.from_json(plan.to_json()) == plan


def test_absurd_numbers_of_samples_are_unknown():
    body = b"}" + text("_total_samples") + b"\x8a\x40" + b"\x7f" * 64 + b"s."
    assert samples_left(read_pickle(body), 3) is None


def test_a_name_in_a_pickle_that_nothing_can_encode_is_none():
    name = b"X\x03\x00\x00\x00\xed\xa0\x80"
    assert (
        recorded_tuner(read_pickle(b"}" + text("__trainable_name") + name + b"s.")).trainable_name
        is None
    )


READ_BOMBS = """
from airflow_tune_restore.experiments.read import read_experiment
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.storage.memory import MemoryStore
from campaigns.hostile_inputs import _bombs
from tests.support.experiments.built import STATE_NAME, make_row, make_state

for bomb in _bombs():
    print(bomb[:100], len(bomb), flush=True)
    store = MemoryStore()
    for name in ("bad", "good"):
        store.put(f"{name}/{STATE_NAME}", make_state([make_row("t")]))
    store.put("bad/tuner.pkl", bomb)  # which a scan does not look into
    store.put("bad/basic-variant-state-2026-11-23_10-00-00.json", bomb)
    reports = {report.name: report for report in scan(store)}
    assert reports["good"].trials == reports["bad"].trials == {"TERMINATED": 1}
    assert read_experiment(store.at("bad")).count_by_status == {"TERMINATED": 1}
"""


def test_a_pickle_that_explodes_is_read_or_refused_beside_a_good_experiment():
    """In a process of its own: who walks into one of them never comes back, and no signal reaches it."""
    done = subprocess.run(
        [sys.executable, "-c", READ_BOMBS],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-500:] + done.stderr
    assert len(done.stdout.splitlines()) == len(_bombs())


class Refusing(MemoryStore):
    """Will not list one trial directory, and one directory beside the experiments."""

    def at(self, path):
        return Refusing(self._objects, root=f"{self._root}{path}/", clock=self._clock)

    def list_dir(self, path=""):
        if path == "dir_secret" or self._root.endswith("forbidden/"):
            raise StorageError("access denied")
        return super().list_dir(path)


def test_a_directory_that_cannot_be_listed_stops_no_other():
    store = Refusing()
    store.put(f"good/{STATE_NAME}", make_state([make_row("t")]))
    store.put(f"bad/{STATE_NAME}", make_state([make_row("secret", status="RUNNING")]))
    old = {key: (body, store.now().replace(year=2020)) for key, (body, _) in store._objects.items()}
    store._objects.update(old)
    store.put("forbidden/x/tuner.pkl", b"")
    health = {report.name: report.health for report in scan(store)}
    assert health.pop("good") in (Health.FINISHED, Health.RUNNING)
    assert health == {"bad": Health.UNREADABLE, "forbidden": Health.UNREADABLE}


def test_a_state_of_a_name_that_cannot_be_shown_is_passed_over(tmp_path):
    experiment = make_experiment(tmp_path / "e", [make_row("t")])
    (experiment / os.fsdecode(b"experiment_state-\xff\x1b.json")).write_bytes(b"{}")
    assert read_experiment(LocalStore(experiment)).state_file.name == STATE_NAME


def test_segments_are_injective_for_names_nobody_should_use():
    names = [
        "",
        "%",
        "%2E",
        ".",
        "..",
        "A",
        "a",
        "%41",
        "%00",
        "\0",
        "\ud800",
        "\udcff",
        "é",
        "e\u0301",
    ]
    assert len({layout.segment(name) for name in names}) == len(names)
    assert all(layout.segment(name) not in ("", ".", "..") for name in names)


@pytest.mark.parametrize(
    "name", ["²", "٣", "1", "0000001", "-00001", "9" * 16, "9" * 5000, "", "00000x"]
)
def test_what_only_looks_like_a_number_of_ours_is_none(name):
    assert layout.attempt_number(name) is None


@pytest.mark.parametrize(
    ("foreign", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("two\nlines\r\0", "two lines  "),
        ("::group::folded", ":group::folded"),
        ("a ::endgroup:: b", "a :endgroup:: b"),
        ("\u202eevil\ud800", " evil "),
        ("[red]markup", "[red]markup"),
    ],
)
def test_foreign_text_is_shown_as_one_harmless_line(foreign, shown):
    assert printable(foreign) == shown
