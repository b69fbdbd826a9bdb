"""An S3 client made from a recipe and the environment, and what its faults mean."""

from __future__ import annotations

import ipaddress
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from lmi_build.errors import LmiBuildError, RemoteFailed
from lmi_build.remote.aws import make_session, s3_endpoint
from lmi_build.values.recipe import PublishSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.values.publish import Transfer
    from lmi_build.values.settings import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreAccess:
    """
    How a shared store is reached.

    Args:
        to: `s3://bucket/prefix`.
        kms_key_id: Key for server-side encryption.
        tags: Object tags.
        expected_bucket_owner: Account that must own the bucket.
        endpoint_url: Another S3 endpoint than the environment's.
        region: AWS region before the environment's.
    """

    to: str
    kms_key_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    expected_bucket_owner: str | None = None
    endpoint_url: str | None = None
    region: str | None = None


Access: TypeAlias = PublishSpec | StoreAccess

# botocore needs one to sign with even where the server does not care.
_FALLBACK_REGION = "us-east-1"
_ACTIONS = (
    "s3:ListBucket, s3:GetObject, s3:PutObject, s3:AbortMultipartUpload, "
    "s3:ListMultipartUploadParts, s3:ListBucketMultipartUploads"
)
# A shared store also ends leases and half-done work.
_STORE_ACTIONS = f"{_ACTIONS}, s3:DeleteObject"
_HTTP_SERVER_ERROR = 500

# S3's error code (or the bare HTTP status of a HEAD) to ours.
_CODES = {
    "NoSuchBucket": "remote.no-bucket",
    "NoSuchKey": "remote.not-found",
    "404": "remote.not-found",
    "AccessDenied": "remote.access-denied",
    "AllAccessDisabled": "remote.access-denied",
    "403": "remote.access-denied",
    "InvalidAccessKeyId": "remote.bad-credentials",
    "SignatureDoesNotMatch": "remote.bad-credentials",
    "InvalidToken": "remote.bad-credentials",
    "RequestTimeTooSkewed": "remote.clock-skew",
    "ExpiredToken": "remote.expired-token",
    "ExpiredTokenException": "remote.expired-token",
    "TokenRefreshRequired": "remote.expired-token",
    "RequestExpired": "remote.expired-token",
    "PermanentRedirect": "remote.wrong-region",
    "301": "remote.wrong-region",
    "AuthorizationHeaderMalformed": "remote.wrong-region",
    "IllegalLocationConstraintException": "remote.wrong-region",
    "SlowDown": "remote.throttled",
    "ServiceUnavailable": "remote.throttled",
    "RequestLimitExceeded": "remote.throttled",
    "Throttling": "remote.throttled",
    "503": "remote.throttled",
    "BadDigest": "remote.checksum-refused",
    "InvalidDigest": "remote.checksum-refused",
    "XAmzContentChecksumMismatch": "remote.checksum-refused",
    "XAmzContentSHA256Mismatch": "remote.checksum-refused",
    "NotImplemented": "remote.not-implemented",
    "501": "remote.not-implemented",
}
_BOTOCORE = {
    "NoCredentialsError": "remote.no-credentials",
    "PartialCredentialsError": "remote.no-credentials",
    "CredentialRetrievalError": "remote.no-credentials",
    "ProfileNotFound": "remote.no-credentials",
    "NoAuthTokenError": "remote.no-credentials",
    "SSOTokenLoadError": "remote.expired-token",
    "UnauthorizedSSOTokenError": "remote.expired-token",
    "TokenRetrievalError": "remote.expired-token",
    "SSLError": "remote.tls",
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


def make_client(access: Access, settings: Settings, transfer: Transfer) -> Any:
    """
    Connect nothing yet, but know how.

    Credentials come from the settings' `aws` group when it holds a key, else from
    botocore's own chain (profile, container, instance). Payloads are not signed:
    every body carries a checksum in a signed header, which S3 verifies, and signing
    would read each byte once more.

    Raises:
        RemoteFailed: `remote.offline`, `remote.no-credentials` (unknown profile).
    """
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    endpoint_url = endpoint_of(access, settings)
    if settings.offline and not _is_loopback(endpoint_url):
        raise RemoteFailed(
            f"{access.to} is remote, and the network is switched off",
            code="remote.offline",
            hints=(
                "leave out --offline, or "
                + ("--store" if isinstance(access, StoreAccess) else "use a folder"),
            ),
        )
    try:
        session = make_session(settings, region=access.region)
        return session.client(
            "s3",
            endpoint_url=endpoint_url,
            region_name=session.region_name or _FALLBACK_REGION,
            config=Config(
                retries={"mode": "standard", "total_max_attempts": transfer.attempts},
                connect_timeout=transfer.connect_timeout_seconds,
                read_timeout=transfer.read_timeout_seconds,
                # File threads ask while part threads send.
                max_pool_connections=2 * transfer.concurrency,
                tcp_keepalive=True,
                response_checksum_validation="when_required",
                s3={
                    "addressing_style": "path" if endpoint_url else "auto",
                    "payload_signing_enabled": False,
                },
            ),
        )
    except (BotoCoreError, ValueError) as error:
        raise explain(error, uri=access.to, access=access) from error


def endpoint_of(access: Access, settings: Settings) -> str | None:
    """The recipe's endpoint, else the environment's, else None for AWS itself."""
    return access.endpoint_url or s3_endpoint(settings)


def _is_loopback(endpoint_url: str | None) -> bool:
    host = urlsplit(endpoint_url or "").hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def error_code(error: Exception) -> str:
    """S3's code of a client error, or an empty string."""
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


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
    if code in _CODES:
        return _CODES[code]
    if code:
        response: dict[str, Any] = getattr(error, "response", {})
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        server = status >= _HTTP_SERVER_ERROR
        return "remote.server-error" if server else "remote.refused"
    names = [cls.__name__ for cls in type(error).__mro__]
    return next((_BOTOCORE[n] for n in names if n in _BOTOCORE), "remote.refused")


def _detail(error: Exception, code: str) -> str:
    if not code:
        return str(error)
    response: dict[str, Any] = getattr(error, "response", {})
    message = str(response.get("Error", {}).get("Message", "")).rstrip(".")
    tries = response.get("ResponseMetadata", {}).get("RetryAttempts", 0)
    again = f" (after {tries + 1} tries)" if tries else ""
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
    said = _names(access)
    actions = _STORE_ACTIONS if isinstance(access, StoreAccess) else _ACTIONS
    bucket = urlsplit(access.to).netloc
    resumes = "run the same command again: what has arrived is kept and not sent twice"
    owner = access.expected_bucket_owner
    return {
        "remote.no-bucket": (
            f"create it: aws s3 mb s3://{bucket}",
            f"or correct {said['to']}, {said['region']} or {said['endpoint_url']}",
        ),
        "remote.not-found": (
            f"list what is there: aws s3 ls {access.to.rstrip('/')}/",
        ),
        "remote.access-denied": (
            f"allow this identity {actions} on s3://{bucket}"
            + (", and s3:PutObjectTagging" if access.tags else "")
            + (", and kms:GenerateDataKey, kms:Decrypt" if access.kms_key_id else ""),
            f"check that account {owner} owns the bucket"
            if owner
            else "see who you are: aws sts get-caller-identity",
        ),
        "remote.bad-credentials": (
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN",
        ),
        "remote.clock-skew": ("set this machine's clock: timedatectl set-ntp true",),
        "remote.expired-token": ("sign in again: aws sso login", resumes),
        "remote.no-credentials": (
            (
                "sign in (aws sso login), or set AWS_PROFILE or AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY"
            ),
        ),
        "remote.wrong-region": (
            (
                f"set {said['region']} to what aws s3api get-bucket-location "
                f"--bucket {bucket} says"
            ),
        ),
        "remote.throttled": (resumes,),
        "remote.server-error": (resumes,),
        "remote.unreachable": (
            (
                f"check the network and {said['endpoint_url']} "
                f"({access.endpoint_url or 'AWS'})"
            ),
            resumes,
        ),
        "remote.tls": ("point AWS_CA_BUNDLE to the certificates of your network",),
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
    }.get(slug, (resumes,))
