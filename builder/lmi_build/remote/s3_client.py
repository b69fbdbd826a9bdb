"""An S3 client made from a recipe's place, in the user's environment."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lmi_build.errors import RemoteFailed
from lmi_build.remote.access import StoreAccess
from lmi_build.remote.aws import make_session, s3_endpoint
from lmi_build.remote.s3_faults import explain

if TYPE_CHECKING:
    from lmi_build.remote.access import Access
    from lmi_build.values.publish import Transfer
    from lmi_build.values.settings import Settings

# botocore needs one to sign with even where the server does not care.
_FALLBACK_REGION = "us-east-1"


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
