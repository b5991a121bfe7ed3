"""What an Airflow connection means as environment variables, for a program that has no Airflow.

The variables are those of the clouds' own libraries, so that fsspec, pyarrow and Ray read them alike.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk.log import mask_secret

from airflow_tune_restore.exceptions import InvalidInputError

if TYPE_CHECKING:
    from airflow.sdk import Connection

_AZURE_VARIABLES = {
    "connection_string": "AZURE_STORAGE_CONNECTION_STRING",
    "account_name": "AZURE_STORAGE_ACCOUNT_NAME",
    "account_key": "AZURE_STORAGE_ACCOUNT_KEY",
    "sas_token": "AZURE_STORAGE_SAS_TOKEN",
    "tenant_id": "AZURE_STORAGE_TENANT_ID",
    "client_id": "AZURE_STORAGE_CLIENT_ID",
    "client_secret": "AZURE_STORAGE_CLIENT_SECRET",
}
"""adlfs reads these (adlfs 2026.8, `AzureBlobFileSystem.__init__`)."""

_PUBLIC = frozenset(
    "AWS_REGION AWS_DEFAULT_REGION AWS_ENDPOINT_URL AWS_PROFILE GOOGLE_APPLICATION_CREDENTIALS "
    "GOOGLE_CLOUD_PROJECT AZURE_STORAGE_ACCOUNT_NAME AZURE_STORAGE_TENANT_ID "
    "AZURE_STORAGE_CLIENT_ID".split()
)
"""Masking a region or a host would only make logs unreadable."""


WHERE = frozenset(
    "AWS_REGION AWS_DEFAULT_REGION AWS_ENDPOINT_URL GOOGLE_CLOUD_PROJECT "
    "AZURE_STORAGE_ACCOUNT_NAME".split()
)
"""What says where a store is, and nothing of who may open it: this may be shown to anybody."""


@contextmanager
def runner_environment(connection: "Connection") -> Iterator[dict[str, str]]:
    """Yield the environment of a runner that may use this connection; secrets in it are masked in logs.

    Raises:
        InvalidInputError: If this type of connection has no such form.
    """
    match connection.conn_type:
        case "aws":
            env = _aws(connection)
        case "google_cloud_platform":
            with _google(connection) as env:
                yield env
            return
        case "wasb" | "adls" | "azure_data_lake":
            env = _azure(connection)
        case other:
            raise InvalidInputError(
                f"Connection {connection.conn_id!r} is of type {other!r}; we can hand aws, "
                "google_cloud_platform, wasb and adls connections to a runner. For others set the "
                "credentials in the environment of the Airflow workers and leave the connection id out."
            )
    _mask(env)
    yield env


def _aws(connection: "Connection") -> dict[str, str]:
    """Read keys, endpoint and region; an assumed role gives its temporary keys."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    hook = S3Hook(aws_conn_id=connection.conn_id)
    config = hook.conn_config
    region = config.region_name or ""
    env = {
        "AWS_ENDPOINT_URL": config.get_service_endpoint_url(service_name="s3") or "",
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,  # botocore reads this one only
    }
    if config.aws_access_key_id or config.role_arn:
        keys = hook.get_credentials()
        env["AWS_ACCESS_KEY_ID"] = keys.access_key
        env["AWS_SECRET_ACCESS_KEY"] = keys.secret_key
        env["AWS_SESSION_TOKEN"] = keys.token or ""
    elif config.profile_name:
        env["AWS_PROFILE"] = config.profile_name
    # without keys, role and profile the machine's own identity is meant: the runner has the same one
    return _filled(env)


@contextmanager
def _google(connection: "Connection") -> Iterator[dict[str, str]]:
    """Name the key file; a key kept in the connection is written to a file only this user can read."""
    extra = connection.extra_dejson
    project = _google_extra(extra, "project")
    env = _filled({"GOOGLE_CLOUD_PROJECT": project if isinstance(project, str) else ""})
    key = _google_extra(extra, "keyfile_dict")
    path = _google_extra(extra, "key_path")
    if not key:
        if path:
            env["GOOGLE_APPLICATION_CREDENTIALS"] = str(path)
        yield env  # without a key: application default credentials, which the runner finds by itself
        return
    text = key if isinstance(key, str) else json.dumps(key)
    mask_secret(json.loads(text).get("private_key"))
    descriptor, name = tempfile.mkstemp(prefix="tune-restore-", suffix=".json")  # mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        yield {**env, "GOOGLE_APPLICATION_CREDENTIALS": name}
    finally:
        Path(name).unlink(missing_ok=True)


def _google_extra(extra: dict[str, Any], name: str) -> Any:
    """Read an extra under its name, or the longer one of older connections."""
    return extra.get(name) or extra.get(f"extra__google_cloud_platform__{name}")


def _azure(connection: "Connection") -> dict[str, str]:
    """Read an account key, a SAS token, a connection string, or a service principal.

    With a tenant id, login and password are a service principal (as in Airflow's `wasb` connection).
    """
    extra = connection.extra_dejson
    values = {name: extra.get(name) for name in _AZURE_VARIABLES}
    login, password = connection.login, connection.password
    if values["tenant_id"]:
        values["client_id"] = values["client_id"] or login
        values["client_secret"] = values["client_secret"] or password
        values["account_name"] = values["account_name"] or _azure_account(connection.host)
    else:
        values["account_name"] = values["account_name"] or login or _azure_account(connection.host)
        values["account_key"] = values["account_key"] or password
    return _filled({_AZURE_VARIABLES[name]: str(value or "") for name, value in values.items()})


def _azure_account(host: str | None) -> str:
    """Return the account in `https://account.blob.core.windows.net`, or in `account` alone."""
    return (host or "").partition("://")[2].partition(".")[0] or (host or "").partition(".")[0]


def _filled(env: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if value}


def _mask(env: dict[str, str]) -> None:
    for name, value in env.items():
        if name not in _PUBLIC:
            mask_secret(value)
