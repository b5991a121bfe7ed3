"""Calls of REST APIs: Airflow's, and that of a Ray head."""

import http.client
import json
import time
import urllib.error
import urllib.request
from typing import Any

from tests.support.waiting import PATIENCE_SECONDS

REPEATABLE = frozenset({"GET", "PUT", "PATCH"})


def call(
    url: str,
    token: str = "",
    *,
    method: str = "GET",
    body: Any = None,
    patience: float = PATIENCE_SECONDS,
) -> Any:
    """Return the decoded answer.

    A busy server does not answer in time, or with 5xx: what may be asked twice is asked again, for so
    long.
    """
    request = urllib.request.Request(
        url,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
    )
    deadline = time.monotonic() + (patience if method in REPEATABLE else 0)
    while True:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
                text = answer.read()
            return json.loads(text) if text else None
        except (OSError, http.client.HTTPException) as error:
            is_refusal = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if is_refusal or time.monotonic() > deadline:
                raise
            time.sleep(0.5)
