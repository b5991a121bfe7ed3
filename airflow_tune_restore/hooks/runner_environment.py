"""Turns an Airflow connection into environment variables, for a program that has no Airflow.

The variables are those of the clouds' own libraries: fsspec, pyarrow and Ray all read them.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk.log import mask_secret

from airflow_tune_restore.exceptions import InvalidInputError

if TYPE_CHECKING:
    from airflow.sdk import Connection

_AZURE_VARIABLES = {
    "connection_string": "AZURE_STORAGE_CONNECTION_STRING",
    "account_key": "AZURE_STORAGE_ACCOUNT_KEY",
    "sas_token": "AZURE_STORAGE_SAS_TOKEN",
    "tenant_id": "AZURE_STORAGE_TENANT_ID",
    "client_id": "AZURE_STORAGE_CLIENT_ID",
    "client_secret": "AZURE_STORAGE_CLIENT_SECRET",
}
"""adlfs reads these (adlfs 2026.8, `AzureBlobFileSystem.__init__`)."""

_NOT_SECRET = frozenset(
    "AWS_PROFILE GOOGLE_APPLICATION_CREDENTIALS AZURE_STORAGE_TENANT_ID AZURE_STORAGE_CLIENT_ID".split()
)
"""Credentials are masked in logs, except these: they name an identity but do not prove it."""


def location_environment(connection: "Connection") -> dict[str, str]:
    """Return the variables that name the place of the store: endpoint, region, project, account.

    They contain no credentials, and none are created: no request to a cloud, no key file.

    Raises:
        InvalidInputError: If this type of connection has no such form.
    """
    match connection.conn_type:
        case "aws":
            return _aws_location(connection)
        case "google_cloud_platform":
            project = _google_extra(connection.extra_dejson, "project")
            return {"GOOGLE_CLOUD_PROJECT": project} if project and isinstance(project, str) else {}
        case "wasb" | "adls" | "azure_data_lake":
            return _drop_empty({"AZURE_STORAGE_ACCOUNT_NAME": _azure_account(connection)})
        case other:
            raise InvalidInputError(
                f"Connection {connection.conn_id!r} is of type {other!r}. Runners can use connections of "
                "the types aws, google_cloud_platform, wasb and adls. For others set the credentials in "
                "the environment of the Airflow workers and leave the connection id out."
            )


@contextmanager
def runner_environment(connection: "Connection") -> Iterator[dict[str, str]]:
    """Yield the environment of a runner that may use this connection; secrets in it are masked in logs.

    Raises:
        InvalidInputError: If this type of connection has no such form.
    """
    location = location_environment(connection)
    with ExitStack() as stack:
        match connection.conn_type:
            case "aws":
                credentials = _aws_credentials(connection)
            case "google_cloud_platform":
                credentials = stack.enter_context(_google_credentials(connection))
            case _:
                credentials = _azure_credentials(connection)
        for name, value in credentials.items():
            if name not in _NOT_SECRET:
                mask_secret(value)
        yield location | credentials


def _aws_location(connection: "Connection") -> dict[str, str]:
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    config = S3Hook(aws_conn_id=connection.conn_id).conn_config
    region = config.region_name or ""
    return _drop_empty(
        {
            "AWS_ENDPOINT_URL": config.get_service_endpoint_url(service_name="s3") or "",
            "AWS_REGION": region,
            "AWS_DEFAULT_REGION": region,  # botocore reads only this one
        }
    )


def _aws_credentials(connection: "Connection") -> dict[str, str]:
    """Return keys or a profile; for an assumed role, its temporary keys (a request to STS)."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    hook = S3Hook(aws_conn_id=connection.conn_id)
    config = hook.conn_config
    if config.aws_access_key_id or config.role_arn:
        keys = hook.get_credentials()
        return _drop_empty(
            {
                "AWS_ACCESS_KEY_ID": keys.access_key,
                "AWS_SECRET_ACCESS_KEY": keys.secret_key,
                "AWS_SESSION_TOKEN": keys.token or "",
            }
        )
    # without keys, role and profile the identity of the machine is meant: the runner has the same one
    return _drop_empty({"AWS_PROFILE": config.profile_name or ""})


@contextmanager
def _google_credentials(connection: "Connection") -> Iterator[dict[str, str]]:
    """Yield the path of the key file; a key in the connection is written to a private file first.

    Without a key: nothing. The runner finds the application default credentials by itself.
    """
    extra = connection.extra_dejson
    key = _google_extra(extra, "keyfile_dict")
    if not key:
        path = _google_extra(extra, "key_path")
        yield {"GOOGLE_APPLICATION_CREDENTIALS": str(path)} if path else {}
        return
    text = key if isinstance(key, str) else json.dumps(key)
    mask_secret(json.loads(text).get("private_key"))
    descriptor, name = tempfile.mkstemp(prefix="tune-restore-", suffix=".json")  # mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        yield {"GOOGLE_APPLICATION_CREDENTIALS": name}
    finally:
        Path(name).unlink(missing_ok=True)


def _google_extra(extra: dict[str, Any], name: str) -> Any:
    """Read an extra under its name, or the longer one of older connections."""
    return extra.get(name) or extra.get(f"extra__google_cloud_platform__{name}")


def _azure_credentials(connection: "Connection") -> dict[str, str]:
    """Return an account key, a SAS token, a connection string, or a service principal.

    With a tenant id, login and password are a service principal (as in Airflow's `wasb` connection).
    """
    extra = connection.extra_dejson
    values = {name: extra.get(name) for name in _AZURE_VARIABLES}
    if values["tenant_id"]:
        values["client_id"] = values["client_id"] or connection.login
        values["client_secret"] = values["client_secret"] or connection.password
    else:
        values["account_key"] = values["account_key"] or connection.password
    return _drop_empty({_AZURE_VARIABLES[name]: str(value or "") for name, value in values.items()})


def _azure_account(connection: "Connection") -> str:
    """Return the account: named, else the login (without a tenant id), else the first part of the host.

    The host is `https://account.blob.core.windows.net`, or `account` alone.
    """
    extra, host = connection.extra_dejson, connection.host or ""
    login = "" if extra.get("tenant_id") else connection.login
    from_host = host.partition("://")[2].partition(".")[0] or host.partition(".")[0]
    return str(extra.get("account_name") or login or from_host)


def _drop_empty(env: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if value}
