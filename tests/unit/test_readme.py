"""What the README shows can be copied: its Python makes DAGs, its commands parse, its links hold."""

import re
import shlex
import textwrap
from pathlib import Path

import pytest
import typer

from airflow_tune_restore.cli.app import app
from tests.support import ROOT

README = (ROOT / "README.md").read_text()
DOCUMENTS = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def load(path: Path, code: str) -> dict:
    """Let Airflow load a DAG file."""
    from airflow.dag_processing.dagbag import DagBag

    path.write_text(code)
    bag = DagBag(path)
    assert not bag.import_errors
    return bag.dags


def test_its_first_python_is_a_dag_file(tmp_path):
    (dag,) = load(tmp_path / "nightly.py", blocks("python")[0]).values()
    assert "restore.trial" in dag.task_dict


@pytest.mark.parametrize("code", blocks("python")[1:])
def test_its_other_python_fits_into_a_dag(tmp_path, code):
    around = (
        "from airflow.sdk import DAG\n"
        "from airflow_tune_restore.task_group import TuneRestoreTaskGroup\n"
        "with DAG('around'):\n"
    )
    (dag,) = load(tmp_path / "around.py", around + textwrap.indent(code, "    ")).values()
    assert dag.tasks


@pytest.mark.parametrize(
    "line",
    [x for block in blocks("sh") for x in block.splitlines() if x.startswith("tune-restore ")],
)
def test_its_commands_parse(line):
    _, name, *arguments = shlex.split(line, comments=True)
    command = typer.main.get_command(app)
    command.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        assert "://" in target or (document.parent / target).exists(), target
