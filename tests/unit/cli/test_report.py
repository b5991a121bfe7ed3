"""`tune-restore report`: where the report was written, and what it refuses."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

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


def test_a_link_stays_and_its_target_is_replaced(tune_restore, tmp_path):
    target, link = tmp_path / "target.html", tmp_path / "link.html"
    target.write_text("old")
    link.symlink_to(target)
    code, _, _ = tune_restore("report", make_experiment(tmp_path / "exp", [BAD]), "-o", link)
    assert (code, link.is_symlink()) == (0, True)
    assert target.read_text().startswith("<!doctype html>")


def test_a_pipe_is_written_to_and_not_replaced(tune_restore, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text)
        code, _, _ = tune_restore("report", make_experiment(tmp_path / "exp", [BAD]), "-o", pipe)
        if not pipe.is_fifo():  # the reader still waits for a writer
            pytest.fail("the pipe was replaced by a file")
        assert (code, read.result()[:15]) == (0, "<!doctype html>")


@pytest.mark.parametrize("length", [255, 256])
def test_a_name_may_be_as_long_as_the_disk_allows(tune_restore, tmp_path, length):
    path = tmp_path / ("x" * length)
    code, _, err = tune_restore("report", make_experiment(tmp_path / "exp", [BAD]), "-o", path)
    assert (code, "File name too long" in err) == ((0, False) if length < 256 else (2, True))
    assert not list(tmp_path.glob(".*"))


def test_a_link_to_itself_is_refused(tune_restore, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(link)
    code, _, err = tune_restore("report", make_experiment(tmp_path / "exp", [BAD]), "-o", link)
    assert (code, link.is_symlink()) in ((0, False), (2, True)), err
    assert "Traceback" not in err
