"""The meaning of exceptions of storage clients, by their codes and never by words of their text.

A word in the text may come from a key, a bucket's name or a request id.
"""

import re
from collections.abc import Iterator

_DENIED = frozenset({
    "401", "403", "Forbidden",
    "AccessDenied", "AccountProblem", "AllAccessDisabled", "ExpiredToken", "InvalidAccessKeyId",
    "InvalidToken", "SignatureDoesNotMatch",  # S3
    "AuthenticationFailed", "AuthorizationFailure", "AuthorizationPermissionMismatch",  # Azure
    "ACCESS_DENIED", "EXPIRED_TOKEN", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH",  # pyarrow
})  # fmt: skip
_NO_CREDENTIALS = frozenset({
    "NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "CredentialRetrievalError",
    "TokenRetrievalError", "SSOTokenLoadError", "UnauthorizedSSOTokenError",  # botocore
    "DefaultCredentialsError", "RefreshError", "MalformedError",  # google.auth
    "ClientAuthenticationError", "CredentialUnavailableError",  # azure
})  # fmt: skip
_UNREACHABLE = frozenset({
    "EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError",
    "ClientConnectorError", "ClientConnectorDNSError", "ServerDisconnectedError",
    "ServiceRequestError", "ServiceResponseError", "FSTimeoutError", "NETWORK_CONNECTION",
})  # fmt: skip
_NO_BUCKET = frozenset({"NoSuchBucket", "NO_SUCH_BUCKET", "ContainerNotFound"})
_TAKEN = frozenset({"412", "PreconditionFailed", "BlobAlreadyExists"})
_CONFLICT = frozenset({"409", "ConditionalRequestConflict", "OperationAborted"})
_EMPTY_RANGE = frozenset({"416", "InvalidRange"})


def is_bucket_missing(error: BaseException) -> bool:
    """Whether the bucket or container does not exist, rather than the object in it."""
    return not _NO_BUCKET.isdisjoint(_codes(error))


def is_taken(error: BaseException) -> bool:
    """Whether a create failed because the object exists.

    s3fs raises FileExistsError on AWS, but OSError(EINVAL) where the answer lacks the name of the
    condition (SeaweedFS).
    """
    return isinstance(error, FileExistsError) or not _TAKEN.isdisjoint(_codes(error))


def is_conflict(error: BaseException) -> bool:
    """Whether AWS reports a race that is not decided yet (409): try again."""
    return not _CONFLICT.isdisjoint(_codes(error))


def is_empty_range(error: BaseException) -> bool:
    """Whether a range was refused because the object is empty."""
    return not _EMPTY_RANGE.isdisjoint(_codes(error))


def explain(error: BaseException) -> str:
    """Describe in a sentence or two what an exception means, and what to do."""
    codes = frozenset(_codes(error))
    text = _first_words(error) or type(error).__name__
    if isinstance(error, PermissionError) or not (_DENIED | _NO_CREDENTIALS).isdisjoint(codes):
        return f"access was denied ({text}). Check the credentials and their rights."
    if isinstance(error, ConnectionError | TimeoutError) or not _UNREACHABLE.isdisjoint(codes):
        return f"the store does not answer ({text}). Check its address and the network."
    return f"{text}."


def _codes(error: BaseException) -> Iterator[str]:
    """Yield the class names and codes of an exception and of what caused it."""
    current: BaseException | None = error
    for _ in range(8):  # causes can be circular
        if current is None:
            return
        yield type(current).__name__
        for name in ("error_code", "status_code", "code"):  # azure, azure, gcsfs
            value = getattr(current, name, None)
            yield str(getattr(value, "value", value))
        response = getattr(current, "response", None)  # botocore
        if isinstance(response, dict):
            yield str(response.get("Error", {}).get("Code"))
            yield str(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
        if isinstance(current, OSError):
            # pyarrow has its code inside the text, gcsfs at its start
            yield from re.findall(r"AWS Error ([A-Z_]+)", str(current))
            yield str(current).partition(":")[0]
        current = current.__cause__


def _first_words(error: BaseException) -> str:
    """Return the text up to where servers append request ids, XML or what they signed."""
    shown = "".join(c if c.isprintable() else " " for c in str(error)[:4000])
    text = " ".join(shown.split())
    return re.split(r"(?i)\s*(?:\(?Request ?Id\b|<\?xml)", text)[0][:300].rstrip(". ")
