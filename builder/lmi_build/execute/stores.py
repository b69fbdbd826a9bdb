"""The store that the settings describe."""

from __future__ import annotations

import platform
import re
from typing import TYPE_CHECKING

from lmi_build.errors import UsageInvalid
from lmi_build.store.lease import LEASE_SECONDS
from lmi_build.store.mirror import LOOK_SECONDS
from lmi_build.store.store import Store
from lmi_build.store.tiered import TieredStore
from lmi_build.values.publish import Transfer

if TYPE_CHECKING:
    from lmi_build.remote.s3_place import S3Place
    from lmi_build.values.settings import Settings

# AWS, "General purpose bucket naming rules".
_URL = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?\Z", re.DOTALL)


def open_store(
    settings: Settings,
    *,
    transfer: Transfer | None = None,
    host: str = "",
    lease_seconds: float = LEASE_SECONDS,
    look_seconds: float = LOOK_SECONDS,
) -> Store:
    """
    The local store, with the shared one behind it where there is one.

    Nothing is created or connected before it is needed.

    Args:
        settings: The user's environment.
        transfer: Parts, parallelism, patience towards S3.
        host: This machine's name among those that share the store.
        lease_seconds: How long a key is kept for a machine that says nothing.
        look_seconds: How often half-done work is looked at.

    Raises:
        UsageInvalid: `store.bad-url`.
    """
    if not settings.store:
        return Store(settings.cache_dir)
    bucket, prefix = split_store_url(settings.store)

    def connect() -> S3Place:
        from lmi_build.remote.access import StoreAccess
        from lmi_build.remote.s3_place import S3Place

        return S3Place(
            bucket,
            prefix,
            access=StoreAccess(
                to=settings.store, kms_key_id=settings.store_kms_key_id or None
            ),
            settings=settings,
            transfer=transfer or Transfer(),
            exclusive=True,
        )

    return TieredStore(
        settings.cache_dir,
        connect,
        host=host or platform.node(),
        lease_seconds=lease_seconds,
        look_seconds=look_seconds,
    )


def split_store_url(url: str) -> tuple[str, str]:
    """
    Bucket and key prefix of a shared store; the prefix is empty or ends in a slash.

    Raises:
        UsageInvalid: `store.bad-url`.
    """
    match = _URL.match(url)
    prefix = (match.group(2) or "").rstrip("/") if match else ""
    dotted = any(part in {"", ".", ".."} for part in prefix.split("/"))
    if match is None or (prefix and dotted):
        raise UsageInvalid(
            f"`{url}` is not the address of a shared store",
            code="store.bad-url",
            hints=("write `--store s3://bucket/prefix`",),
        )
    return match.group(1), f"{prefix}/" if prefix else ""
