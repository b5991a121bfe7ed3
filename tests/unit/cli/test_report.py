"""`tune-restore report`: where the report was written, and what it refuses."""

import json

from tests.support.experiments.built import make_experiment, make_row

BAD = make_row("bad", status="ERROR", error=True)


def test_it_says_where_the_report_is_and_how_large(tune_restore, tmp_path):
    path = tmp_path / "report.html"
    code, out, _ = tune_restore("report", make_experiment(tmp_path / "exp", [BAD]), "-o", path)
    assert code == 0
    assert " ".join(out.split()).startswith(f"Wrote {path} (")
    assert path.read_text().startswith("<!doctype html>")


def test_a_program_gets_the_file_and_its_size(tune_restore, tmp_path):
    path = tmp_path / "report.html"
    experiment = make_experiment(tmp_path / "exp", [BAD])
    _, out, _ = tune_restore("report", experiment, "--output", path, "--json")
    assert json.loads(out) == {"report": str(path), "bytes": path.stat().st_size}


def test_a_directory_is_not_replaced(tune_restore, tmp_path):
    experiment = make_experiment(tmp_path / "exp", [BAD])
    code, out, err = tune_restore("report", experiment, "-o", tmp_path)
    assert (code, out) == (2, "")
    file = tmp_path / "report.html"
    assert err == f"error: {tmp_path} is a directory. Give a file, such as {file}.\n"
