"""The search for planted credentials finds them in disguise; who searches is a night (test_night.py)."""

import base64

import pytest

from tests.support.airflow.canary import leaks


@pytest.mark.parametrize("shift", range(6))
def test_the_search_finds_what_is_disguised(shift):
    secret = "canary-of-the-environment-7f3a"

    def hexed(body: bytes) -> bytes:
        return body.hex().encode()

    for wrap in (bytes, hexed, base64.b64encode, lambda body: base64.b64encode(hexed(body))):
        body = b"#" * 7 + wrap(b"x" * shift + secret.encode() + b"y" * shift) + b"#"
        assert leaks({"here": body}, (secret,)), wrap
    assert not leaks({"here": secret[:-1].encode()}, (secret,))
