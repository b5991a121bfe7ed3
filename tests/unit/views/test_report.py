"""The report of an experiment: one file that holds all, runs nothing else, and stays small."""

import base64
import hashlib
import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest

from airflow_tune_restore.cli.report import write_report
from airflow_tune_restore.exceptions import InvalidInputError, StateUnreadableError
from airflow_tune_restore.storage.fs import open_store
from airflow_tune_restore.views import report
from airflow_tune_restore.views.report import PAGE, build_report
from tests.support.experiments.built import make_experiment, make_row
from tests.support.experiments.restored import ENDING, MARKUP, RESUMED, make_restored

NOW = datetime(2026, 12, 1, 4, 0, tzinfo=UTC)
OWN = [
    path
    for path in PAGE.iterdir()
    if path.suffix in (".js", ".css", ".html") and "uPlot" not in path.name
]  # noqa: E501


class Parsed(HTMLParser):
    """The elements of a page as a browser finds them, and the texts of some."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._is_open = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")
        self._is_open = True

    def handle_endtag(self, tag: str) -> None:
        self._is_open = False

    def handle_data(self, data: str) -> None:
        if self._is_open:
            self.texts[-1] += data

    def of(self, wanted: str) -> list[tuple[dict[str, str | None], str]]:
        found = zip(self.elements, self.texts, strict=True)
        return [(attributes, text) for (tag, attributes), text in found if tag == wanted]


def build(place: object) -> str:
    return build_report(open_store(str(place)), address=str(place), written_at=NOW)


def embedded(page: str) -> dict:
    (data,) = [text for attributes, text in Parsed(page).of("script") if attributes.get("id")]
    return json.loads(data)


@pytest.fixture(scope="module")
def restored(tmp_path_factory):
    return make_restored(tmp_path_factory.mktemp("restored"))


@pytest.fixture(scope="module")
def page(restored):
    return build(restored)


def test_what_the_routes_would_answer_is_in_it(page):
    answers = embedded(page)["answers"]
    assert embedded(page)["problems"] == {}
    assert answers["experiment"]["name"] == MARKUP
    assert answers["experiment"]["evidence"]
    assert answers["experiment/plan"]["total"] == 5
    assert [each["restore_id"] for each in answers["experiment/restores"]["restores"]] == ["r1"]
    (change,) = [
        c for c in answers["experiment/restore"]["r1"]["changes"] if c["trial_id"] == RESUMED
    ]
    assert (change["iteration_before"], change["iteration_after"]) == (2, 6)
    assert "config/factor" in answers["experiment/column"]


def test_the_curve_of_a_resumed_trial_has_both_parts_and_the_seam(page):
    curves = embedded(page)["answers"]["experiment/curves"]
    (curve,) = [each for each in curves["trials"] if each["trial_id"] == RESUMED]
    assert curve["iteration"] == [1, 2, 3, 4, 5, 6]
    assert [(seam["index"], seam["restore_id"]) for seam in curve["seams"]] == [(2, "r1")]


def test_the_end_of_the_error_text_of_a_restored_trial_is_in_it(page):
    assert ENDING in embedded(page)["answers"]["experiment/trial"][RESUMED]["error_file"]


def test_hostile_names_add_no_element(page, tmp_path):
    plain = make_restored(tmp_path)
    plain.rename(tmp_path / "plain")
    tags = [tag for tag, _ in Parsed(build(tmp_path / "plain")).elements]
    assert [tag for tag, _ in Parsed(page).elements] == tags
    assert "img" not in tags
    assert MARKUP not in page
    assert ENDING not in page


def test_only_the_scripts_and_styles_in_it_may_run(page):
    parsed = Parsed(page)
    (policy,) = [
        attributes["content"]
        for attributes, _ in parsed.of("meta")
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    assert rules["default-src"] == ["'none'"]
    assert "connect-src" not in rules
    scripts = [text for attributes, text in parsed.of("script") if "id" not in attributes]
    assert rules["script-src"] == [_hash(text) for text in scripts]
    assert rules["style-src"] == [_hash(text) for _, text in parsed.of("style")]
    assert "unsafe" not in policy


def test_nothing_in_it_is_loaded_from_elsewhere(page):
    for tag, attributes in Parsed(page).elements:
        assert "src" not in attributes, tag
        assert (attributes.get("href") or "#").startswith(("#", "data:")), tag


def test_every_script_and_style_of_the_page_is_in_it(page):
    names = {path.name for path in PAGE.iterdir() if path.suffix in (".js", ".css")}
    named = set(re.findall(r'static/([\w.]+)"', (PAGE / "index.html").read_text()))
    assert named == names
    for name in names:
        assert (PAGE / name).read_text() in page


def test_the_license_of_the_drawing_library_is_in_it(page):
    assert (PAGE / "LICENSE.uPlot").read_text() in page


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_the_page_puts_text_in_as_text_and_needs_no_inline_style(path):
    text = path.read_text()
    for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser",
                 "createContextualFragment", "srcdoc", "style=", "http://", "https://"):  # fmt: skip
        assert name not in text.replace("http://www.w3.org/2000/svg", ""), name
    assert "</script" not in text or path.suffix == ".html"
    assert len(text.splitlines()) < 300


def test_what_cannot_be_read_costs_its_own_part(restored, monkeypatch):
    def refuse(*_args, **_options):
        raise InvalidInputError("The plan cannot be made.")

    monkeypatch.setattr(report, "view_plan", refuse)
    found = embedded(build(restored))
    assert found["problems"] == {"experiment/plan": "The plan cannot be made."}
    assert "experiment/curves" in found["answers"]


def test_what_is_too_large_is_left_out_and_says_so(restored, monkeypatch):
    monkeypatch.setattr(report, "MAX_CHARACTERS", 6000)
    found = embedded(build(restored))
    assert "experiment" in found["answers"]
    assert "left out" in found["problems"]["experiment/plan"]


def test_a_report_of_5000_trials_is_smaller_than_5_mb(tmp_path):
    name = "a_rather_long_name_of_a_hyperparameter"
    rows = [
        make_row(
            f"{number:05x}_{number:05}",
            status="ERROR" if number % 3 == 0 else "TERMINATED",
            error=number % 3 == 0,
            last_result={"score": number / 7, "training_iteration": 9}
            | {f"m{k}": number / 3 for k in range(8)},
            config={f"{name}_{k}": number / (k + 3) for k in range(8)},
            evaluated_params={f"{name}_{k}": number / (k + 3) for k in range(8)},
        )
        for number in range(5000)
    ]
    page = build(make_experiment(tmp_path / "large", rows))
    assert len(page.encode()) < 5_000_000
    answers = embedded(page)["answers"]
    assert len(answers["experiment"]["trials"]["ids"]) == 5000
    assert len(answers["experiment/curves"]["trials"]) == 50
    assert len(answers["experiment/trial"]) == report.MAX_DETAILS
    assert embedded(page)["problems"] == {}


def test_a_directory_without_an_experiment_is_refused(tmp_path):
    with pytest.raises(StateUnreadableError):
        build(tmp_path)


def test_the_shell_replaces_a_file_by_a_whole_one(restored, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("older")
    size = write_report(str(restored), path)
    assert path.stat().st_size == size
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_the_shell_does_not_replace_a_directory(restored, tmp_path):
    with pytest.raises(
        InvalidInputError, match=r"is a directory\. Give a file, such as .*report\.html"
    ):
        write_report(str(restored), tmp_path)


def test_a_file_that_cannot_be_written_is_named(restored, tmp_path):
    with pytest.raises(InvalidInputError, match="No such file or directory"):
        write_report(str(restored), tmp_path / "missing" / "report.html")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
