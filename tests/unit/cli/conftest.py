"""The command line as a user meets it."""

import signal

import pytest

from airflow_tune_restore.cli import commands as cli


@pytest.fixture
def tune_restore(monkeypatch, capsys):
    """Run the command as the program does; return exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["tune-restore", *map(str, arguments)])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with pytest.raises(SystemExit) as ended:
            cli.run()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run
