"""The approval: a person says yes or no in Airflow's UI, and nothing waits for it but this task."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow.providers.standard.exceptions import HITLTimeoutError
from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Context

from airflow_tune_restore import arguments
from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.hooks.literals import check_literals
from airflow_tune_restore.operators.next_step import describe_next_run
from airflow_tune_restore.version_compat import (
    AirflowFailException,
    read_request,
    response_arguments,
)

_CHOICES = (ApprovalOperator.APPROVE, ApprovalOperator.REJECT)


class ApproveRestoresOperator(ApprovalOperator):
    """Airflow's `ApprovalOperator`, for the page of a `PreviewRestoreOperator`.

    It differs in two ways. Without an answer in time and without a default it fails at once, because a
    retry would only ask again. And it fails if Airflow would show another page than the given one: of a
    task that is cleared, Airflow keeps the page that it had shown first.

    Args:
        response_timeout: How long to wait for an answer; timedelta or seconds. None: for ever. The
            `execution_timeout` of the DAG's other tasks does not count here.
        **kwargs: Arguments of `ApprovalOperator`: `subject`, `body` (both templated), `defaults`
            (`Approve` or `Reject`, the answer after the timeout), `assigned_users` and `notifiers`.
    """

    ui_color = "#fdf3d8"

    def __init__(
        self, *, response_timeout: timedelta | float | str | None = None, **kwargs: Any
    ) -> None:
        timeout = arguments.parse_optional_limit("approval_timeout", response_timeout)
        super().__init__(**kwargs, **response_arguments(ApprovalOperator, timeout))

    def execute(self, context: Context) -> Any:
        """Ask, unless Airflow would show something else."""
        shown = read_request(self, context)
        if (shown.subject, shown.body) != (self.subject, self.body):
            raise AirflowFailException(
                "Airflow shows the page of an earlier preview of this DAG run: it keeps what a task has "
                f"asked first. Nothing was started. {describe_next_run(context)}"
            )
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Take the answer; after a timeout without a default, fail."""
        try:
            return super().execute_complete(context, event)
        except HITLTimeoutError:
            raise AirflowFailException(
                "Nobody has answered in time. Nothing was started, and no lease was taken. "
                f"{describe_next_run(context)}"
            ) from None


def parse_approval(*, require_approval: Any, **others: Any) -> dict[str, Any] | None:
    """Check, when the DAG is parsed, the arguments of the group that are about its approval.

    Returns:
        Arguments of `ApproveRestoresOperator`; None without `require_approval`.

    Raises:
        InvalidInputError: If one is not valid, or is given without `require_approval`.
    """
    check_literals({"require_approval": require_approval, **others}, ())
    given = [name for name, value in others.items() if value is not None]
    if not require_approval:
        if given:
            raise InvalidInputError(
                f"{' and '.join(given)} needs require_approval=True: nobody is asked without it."
            )
        return None
    timeout, default = others["approval_timeout"], others["approval_default"]
    if default not in (None, *_CHOICES):
        raise InvalidInputError(
            f"approval_default={default!r} is not one of {', '.join(_CHOICES)}."
        )
    if default is not None and timeout is None:
        raise InvalidInputError(
            f"approval_default={default!r} needs approval_timeout=: it is the answer after it."
        )
    users, notifiers = others["assigned_users"], others["notifiers"]
    _check_users(users)
    return {
        "response_timeout": timeout,
        "defaults": default,
        "assigned_users": users,
        "notifiers": notifiers,
    }


def _check_users(users: Any) -> None:
    each = [users] if isinstance(users, Mapping) else users
    is_list = each is None or (isinstance(each, Sequence) and not isinstance(each, str))
    if not is_list or not all(
        isinstance(user, Mapping) and user.keys() == {"id", "name"} for user in each or ()
    ):
        raise InvalidInputError(
            f"assigned_users={users!r} is not a list of users as Airflow names them: "
            '[{"id": "…", "name": "…"}].'
        )
