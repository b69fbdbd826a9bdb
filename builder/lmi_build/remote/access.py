"""Which place of S3 is meant, with what is needed to reach it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from lmi_build.values.recipe import PublishSpec

if TYPE_CHECKING:
    from collections.abc import Mapping


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
