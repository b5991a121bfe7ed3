"""Running an operator's `execute` without a database: a context with what ours read of it."""

from io import StringIO
from types import SimpleNamespace
from typing import Any

from airflow_tune_restore.protocol.check import CheckAnswer, CheckRequest
from tests.support.checks import FITS, answer_all


class FakeTaskInstance:
    """The identity of a task, and the XComs it pushed."""

    def __init__(
        self, *, run_id: str = "run-1", map_index: int = -1, try_number: int = 1, max_tries: int = 1
    ) -> None:
        self.dag_id = "nightly"
        self.run_id = run_id
        self.task_id = "plan"
        self.map_index = map_index
        self.try_number = try_number
        self.max_tries = max_tries
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


def make_context(*, user: str | None = None, **identity: Any) -> Any:
    """Return a context; `context["ti"].pushed` holds what was pushed. `user` triggered the DAG run."""
    return {
        "ti": FakeTaskInstance(**identity),
        "dag_run": SimpleNamespace(
            dag_id="nightly", conf={}, triggering_user_name=user, start_date=None
        ),
    }


class FakeLauncher:
    """Stands in for LocalLauncher: prints `said`, and leaves what `on_start` leaves."""

    def __init__(
        self, *, lines: tuple[str, ...] = (), on_start: Any = None, refusal: Any = None
    ) -> None:
        self.answer = FITS
        self.said = lines
        self.on_start = on_start
        self.refusal = refusal
        self.requests: list[Any] = []
        self.checked: list[CheckRequest] = []
        self.stopped: list[float] = []
        self.arguments: dict[str, Any] = {}
        self.outlives = True

    def build(self, name: str, **arguments: Any) -> "FakeLauncher":
        """Take the place of `build_launcher`."""
        assert name == "local"
        self.arguments = arguments
        return self

    def check(self, request: CheckRequest, _timeout: Any = None) -> list[CheckAnswer]:
        self.checked.append(request)
        if self.refusal is not None:
            raise self.refusal
        return answer_all(request, self.answer)

    def start(self, request: Any) -> Any:
        self.requests.append(request)
        if self.on_start is not None:
            self.on_start(request)
        return SimpleNamespace(
            lines=lambda: iter(self.said), wait=lambda: 0, stop=self.stopped.append
        )

    def start_detached(self, request: Any, *, outlives: bool = True) -> Any:
        self.outlives = outlives
        self.start(request)
        return StringIO("".join(f"{line}\n" for line in self.said))
