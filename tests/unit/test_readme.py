"""Documents can be copied from: their Python makes DAGs, their commands parse, their links hold."""

import re
import textwrap
from pathlib import Path

import pytest

from airflow_tune_restore import exceptions
from tests.support import ROOT
from tests.support.commands import all_commands, parse_command

README = ROOT / "README.md"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
INSIDE_A_DAG = """\
from airflow.sdk import DAG
from airflow_tune_restore.task_group import TuneRestoreTaskGroup
with DAG('around'):
"""
"""What a block is put into that makes no DAG of its own."""


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)


def all_blocks(language: str) -> list:
    return [
        pytest.param(block, id=f"{document.name}-{number}")
        for document in DOCUMENTS
        for number, block in enumerate(blocks(document, language), 1)
    ]


def commands() -> list:
    return [
        pytest.param(line, id=f"{document.name}: {line}")
        for document in DOCUMENTS
        for block in blocks(document, "sh")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("tune-restore ")
    ]


def headings(document: Path) -> set[str]:
    """Return the anchors that GitHub makes of a document's headings."""
    without_code = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def load(path: Path, code: str) -> dict:
    """Let Airflow load a DAG file."""
    from tests.support.airflow.names import DagBag

    path.write_text(code)
    bag = DagBag(path)
    assert not bag.import_errors
    return bag.dags


def test_it_fits_on_a_screen_or_two():
    assert len(README.read_text().splitlines()) <= 105


def test_its_first_two_blocks_are_the_commands_of_ci():
    every = re.findall(r"^```.*?\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert every[:2] == ["bash .ci/demo\n", "bash .ci/test\n"]


def test_its_first_python_is_a_dag_file(tmp_path):
    (dag,) = load(tmp_path / "nightly.py", blocks(README, "python")[0]).values()
    assert "restore.trial" in dag.task_dict


@pytest.mark.parametrize("code", all_blocks("python"))
def test_all_python_is_a_dag_file_or_fits_into_one(tmp_path, code):
    is_file = "with DAG(" in code
    (dag,) = load(
        tmp_path / "dag.py", code if is_file else INSIDE_A_DAG + textwrap.indent(code, "    ")
    ).values()
    assert dag.tasks or "TuneRestoreTaskGroup(" not in code


@pytest.mark.parametrize("line", commands())
def test_its_commands_parse(line):
    command, arguments = parse_command(line)
    command.make_context(command.name, arguments)


@pytest.mark.parametrize("command", all_commands(), ids=lambda command: command.name)
def test_its_options_are_documented(command):
    page = (ROOT / "docs" / "shell.md").read_text()
    for option in command.params:
        assert option.param_type_name == "argument" or any(
            re.search(rf"{word}\b", page) for word in (*option.opts, *option.secondary_opts)
        ), option.opts


def test_every_error_is_on_the_page_for_the_person_on_call():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    for name, value in vars(exceptions).items():
        is_base = value is exceptions.TuneRestoreError or name.startswith("_")
        if isinstance(value, type) and not is_base:
            assert f"`{name}`" in page


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        path = document.parent / target if target else document
        assert path.exists(), link
        assert not anchor or anchor in headings(path), link
