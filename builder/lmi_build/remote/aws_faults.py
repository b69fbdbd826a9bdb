"""What the faults of AWS's services have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

# A service's error code to ours.
CODES: Mapping[str, str] = {
    "ExpiredToken": "remote.expired-token",
    "ExpiredTokenException": "remote.expired-token",
    "RequestExpired": "remote.expired-token",
    "SignatureDoesNotMatch": "remote.bad-credentials",
    "RequestLimitExceeded": "remote.throttled",
    "Throttling": "remote.throttled",
}
# Classes of botocore's own faults, which no service has answered.
BOTOCORE: Mapping[str, str] = {
    "NoCredentialsError": "remote.no-credentials",
    "PartialCredentialsError": "remote.no-credentials",
    "CredentialRetrievalError": "remote.no-credentials",
    "ProfileNotFound": "remote.no-credentials",
    "NoAuthTokenError": "remote.no-credentials",
    "SSOTokenLoadError": "remote.expired-token",
    "UnauthorizedSSOTokenError": "remote.expired-token",
    "TokenRetrievalError": "remote.expired-token",
    "SSLError": "remote.tls",
}
# What to do about faults that are the same at every service.
ADVICE: Mapping[str, tuple[str, ...]] = {
    "remote.bad-credentials": (
        "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN",
    ),
    "remote.clock-skew": ("set this machine's clock: timedatectl set-ntp true",),
    "remote.no-credentials": (
        (
            "sign in (aws sso login), or set AWS_PROFILE or AWS_ACCESS_KEY_ID and"
            " AWS_SECRET_ACCESS_KEY"
        ),
    ),
    "remote.tls": ("point AWS_CA_BUNDLE to the certificates of your network",),
}
SIGN_IN = "sign in again: aws sso login"
_HTTP_SERVER_ERROR = 500


def error_code(error: Exception) -> str:
    """The service's code of a fault, or an empty string."""
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def tries(error: Exception) -> str:
    """How often botocore asked, for the end of a message; empty for once."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    retries = response.get("ResponseMetadata", {}).get("RetryAttempts", 0)
    return f" (after {retries + 1} tries)" if retries else ""


def slug_of(
    error: Exception,
    *,
    codes: Mapping[str, str],
    botocore: Mapping[str, str],
    otherwise: str,
) -> str:
    """
    Our code of a fault.

    Args:
        error: From botocore.
        codes: The service's codes to ours.
        botocore: Classes of faults that no service has answered, to our codes.
        otherwise: Our code of any other such class.
    """
    code = error_code(error)
    if code in codes:
        return codes[code]
    if code:
        response: dict[str, Any] = getattr(error, "response", {})
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        server = status >= _HTTP_SERVER_ERROR
        return "remote.server-error" if server else "remote.refused"
    names = [cls.__name__ for cls in type(error).__mro__]
    return next((botocore[name] for name in names if name in botocore), otherwise)
