"""What the faults of S3 mean, with what to do about them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lmi_build.errors import LmiBuildError, RemoteFailed
from lmi_build.remote.access import StoreAccess
from lmi_build.remote.aws_faults import (
    ADVICE,
    BOTOCORE,
    CODES,
    SIGN_IN,
    error_code,
    slug_of,
    tries,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.remote.access import Access

_ACTIONS = (
    "s3:ListBucket, s3:GetObject, s3:PutObject, s3:AbortMultipartUpload, "
    "s3:ListMultipartUploadParts, s3:ListBucketMultipartUploads"
)
# A shared store also ends leases and half-done work.
_STORE_ACTIONS = f"{_ACTIONS}, s3:DeleteObject"

# S3's error code (or the bare HTTP status of a HEAD) to ours.
_CODES: Mapping[str, str] = {
    **CODES,
    "NoSuchBucket": "remote.no-bucket",
    "NoSuchKey": "remote.not-found",
    "404": "remote.not-found",
    "AccessDenied": "remote.access-denied",
    "AllAccessDisabled": "remote.access-denied",
    "403": "remote.access-denied",
    "InvalidAccessKeyId": "remote.bad-credentials",
    "InvalidToken": "remote.bad-credentials",
    "RequestTimeTooSkewed": "remote.clock-skew",
    "TokenRefreshRequired": "remote.expired-token",
    "PermanentRedirect": "remote.wrong-region",
    "301": "remote.wrong-region",
    "AuthorizationHeaderMalformed": "remote.wrong-region",
    "IllegalLocationConstraintException": "remote.wrong-region",
    "SlowDown": "remote.throttled",
    "ServiceUnavailable": "remote.throttled",
    "503": "remote.throttled",
    "BadDigest": "remote.checksum-refused",
    "InvalidDigest": "remote.checksum-refused",
    "XAmzContentChecksumMismatch": "remote.checksum-refused",
    "XAmzContentSHA256Mismatch": "remote.checksum-refused",
    "NotImplemented": "remote.not-implemented",
    "501": "remote.not-implemented",
}
_BOTOCORE: Mapping[str, str] = {
    **BOTOCORE,
    "InvalidEndpointDiscoveryConfigurationError": "remote.unreachable",
    "EndpointConnectionError": "remote.unreachable",
    "ConnectTimeoutError": "remote.unreachable",
    "ReadTimeoutError": "remote.unreachable",
    "ConnectionClosedError": "remote.unreachable",
    "HTTPClientError": "remote.unreachable",
    "ConnectionError": "remote.unreachable",
    "ProxyConnectionError": "remote.unreachable",
    "ResponseStreamingError": "remote.unreachable",
    "IncompleteReadError": "remote.unreachable",
}


@contextmanager
def explained(uri: str, access: Access) -> Iterator[None]:
    """Turn botocore's faults into ours; leave ours alone."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise explain(error, uri=uri, access=access) from error


def explain(error: Exception, *, uri: str, access: Access) -> LmiBuildError:
    """
    Say what a fault of S3 means and what to do about it.

    Args:
        error: From botocore, after its own retries.
        uri: What was being read or written.
        access: The destination, for concrete hints.
    """
    code = error_code(error)
    slug = _slug(error, code)
    detail = _detail(error, code)
    return RemoteFailed(f"{uri}: {detail}", code=slug, hints=_hints(slug, access))


def _slug(error: Exception, code: str) -> str:
    if code.startswith("KMS."):
        return "remote.kms-refused"
    return slug_of(error, codes=_CODES, botocore=_BOTOCORE, otherwise="remote.refused")


def _detail(error: Exception, code: str) -> str:
    if not code:
        return str(error)
    response: dict[str, Any] = getattr(error, "response", {})
    message = str(response.get("Error", {}).get("Message", "")).rstrip(".")
    again = tries(error)
    return f"{code}: {message}{again}" if message else f"{code}{again}"


def _names(access: Access) -> dict[str, str]:
    """Where the user says what of a place, for hints."""
    if isinstance(access, StoreAccess):
        return {
            "to": "`--store`",
            "region": "AWS_REGION",
            "endpoint_url": "AWS_ENDPOINT_URL_S3",
            "kms_key_id": "LMI_BUILD_STORE_KMS_KEY_ID",
        }
    names = ("to", "region", "endpoint_url", "kms_key_id")
    return {name: f"`publish.{name}`" for name in names}


def _hints(slug: str, access: Access) -> tuple[str, ...]:
    resumes = "run the same command again: what has arrived is kept and not sent twice"
    if slug in ADVICE:
        return ADVICE[slug]
    if slug == "remote.expired-token":
        return (SIGN_IN, resumes)
    if slug == "remote.unreachable":
        endpoint = _names(access)["endpoint_url"]
        where = access.endpoint_url or "AWS"
        return (f"check the network and {endpoint} ({where})", resumes)
    return _place_hints(access).get(slug, (resumes,))


def _place_hints(access: Access) -> dict[str, tuple[str, ...]]:
    """What to do about faults of one place."""
    said = _names(access)
    bucket = urlsplit(access.to).netloc
    return {
        "remote.no-bucket": (
            f"create it: aws s3 mb s3://{bucket}",
            f"or correct {said['to']}, {said['region']} or {said['endpoint_url']}",
        ),
        "remote.not-found": (
            f"list what is there: aws s3 ls {access.to.rstrip('/')}/",
        ),
        "remote.access-denied": _access_hints(access, bucket),
        "remote.wrong-region": (
            (
                f"set {said['region']} to what aws s3api get-bucket-location "
                f"--bucket {bucket} says"
            ),
        ),
        "remote.checksum-refused": (
            (
                "something between here and S3 changes bytes: try another network; "
                "damaged bytes were refused, none were stored"
            ),
        ),
        "remote.kms-refused": (
            (
                f"check {said['kms_key_id']} ({access.kms_key_id}): it must exist, be "
                "enabled, and be in the bucket's region"
            ),
        ),
        "remote.not-implemented": (
            "use a server that honours `If-None-Match` and `If-Match` on PutObject",
        ),
    }


def _access_hints(access: Access, bucket: str) -> tuple[str, ...]:
    actions = _STORE_ACTIONS if isinstance(access, StoreAccess) else _ACTIONS
    tagging = ", and s3:PutObjectTagging" if access.tags else ""
    crypt = ", and kms:GenerateDataKey, kms:Decrypt" if access.kms_key_id else ""
    owner = access.expected_bucket_owner
    return (
        f"allow this identity {actions} on s3://{bucket}{tagging}{crypt}",
        f"check that account {owner} owns the bucket"
        if owner
        else "see who you are: aws sts get-caller-identity",
    )
