"""A launcher for the shell that starts nothing: a script decides what each run does and when it ends."""

import threading

from airflow_tune_restore.launch.base import RunState
from airflow_tune_restore.protocol.request import RunnerExit


class FakeRun:
    """A run that prints one line and ends when its script returns, or when it is stopped."""

    def __init__(self, script):
        self.stopped = 0
        self.ended = threading.Event()
        self.lines = ["a line"]
        self._script = script

    def poll(self):
        self._script(self)
        return RunState.ENDED if self.ended.wait(0.01) else RunState.RUNNING

    def output(self):
        while self.lines:
            yield self.lines.pop(0)

    def stop(self):
        self.stopped += 1
        self.ended.set()

    def exit(self):
        return RunnerExit(exit_code=1, message="the last line")


class FakeLauncher:
    """Starts runs; what each of them does is a function of its request and the run."""

    def __init__(self, store, script):
        self.started = []
        self.polled = set()  # ids of the trials whose runs are followed by now
        self.runs = {}
        self.stop_seconds = 0.0
        self._store = store
        self._script = script

    def settings(self, settings):
        return settings

    def start(self, request):
        self.started.append((request.trial_id, request.attempt))
        run = self.runs[request.trial_id] = FakeRun(lambda run: self._poll(request, run))
        return run

    def _poll(self, request, run):
        self.polled.add(request.trial_id)
        self._script(request, run)

    def find(self, request):
        return self.runs.get(request.trial_id)

    def stop_command(self, request):
        return f"stop {request.trial_id}"
