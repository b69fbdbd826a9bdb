"""The forms of what AWS names: buckets, keys, accounts, regions, tags."""

from __future__ import annotations

import re

from lmi_build.recipe.form import fault, slug
from lmi_build.recipe.words import show

REGION_PATTERN = r"^[a-z]{2,4}(-[a-z]+)+-[0-9]$"
OWNER_PATTERN = r"^[0-9]{12}$"

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z")
_IPV4 = re.compile(r"\d+\.\d+\.\d+\.\d+\Z")
_ENDPOINT = re.compile(
    r"https?://(?:\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+)(?::\d{1,5})?/?\Z"
)
_KMS = re.compile(
    r"(?:arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:)?"
    r"(?:(?:key/)?(?:mrk-[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
    r"|alias/[A-Za-z0-9/_-]{1,250})\Z"
)
_TAG_CHARACTERS = re.compile(r"[\w .:/=+@-]*\Z")

# A key may have 1024 bytes; the rest is for the version's folder and file names.
_MAX_PREFIX_BYTES = 512
# S3 object tagging: at most 10 tags, keys of 128 and values of 256 characters.
_MAX_TAGS = 10
_MAX_TAG_KEY_CHARS = 128
_MAX_TAG_VALUE_CHARS = 256


def _bucket_like(text: str) -> str:
    name = slug(text).replace("_", "-").replace("..", ".")
    sound = _BUCKET.match(name) and not _IPV4.match(name)
    return name if sound else "my-models"


def check_s3_uri(value: str, code: str) -> None:
    """`s3://bucket/prefix`, by S3's naming rules."""
    bucket, _, prefix = value.removeprefix("s3://").partition("/")
    if not _BUCKET.match(bucket) or ".." in bucket or _IPV4.match(bucket):
        raise fault(
            code,
            f"`{show(bucket)}` is no bucket name: 3 to 63 of `a-z0-9.-`",
            f"write `s3://{_bucket_like(bucket)}/{show(prefix or 'prefix')}`",
        )
    parts = prefix.rstrip("/").split("/")
    if prefix and any(part in {"", ".", ".."} for part in parts):
        raise fault(
            code,
            f"the prefix `{show(prefix)}` has an empty, `.` or `..` part",
            "write `s3://bucket/one/two`, without them",
        )
    if len(prefix.encode()) > _MAX_PREFIX_BYTES:
        raise fault(
            code,
            f"the prefix has {len(prefix.encode())} bytes, {_MAX_PREFIX_BYTES} fit",
            "shorten it",
        )


def check_destination(value: str) -> str:
    """Where artifacts are published: a bucket or a folder."""
    code = "recipe.publish-destination"
    if not value.strip():
        raise fault(
            code, "the destination is empty", "write `s3://bucket/prefix` or a folder"
        )
    if value.startswith("s3://"):
        check_s3_uri(value, code)
    elif "://" in value:
        scheme = show(value.partition("://")[0])
        raise fault(
            code,
            f"artifacts cannot be published to `{scheme}://`",
            "write `s3://bucket/prefix` or a folder",
        )
    elif ".." in value.replace("\\", "/").split("/"):
        raise fault(
            code,
            f"the folder `{show(value)}` climbs up with `..`",
            "write an absolute path, or one below the working folder",
        )
    return value


def check_kms_key(value: str) -> str:
    """A key id, an alias or an ARN."""
    if _KMS.match(value):
        return value
    raise fault(
        "recipe.kms-key",
        f"`{show(value)}` is no KMS key",
        "write `alias/name`, a key id, or the ARN of either",
    )


def check_owner(value: str) -> str:
    """An AWS account."""
    if re.fullmatch(OWNER_PATTERN[1:-1], value):
        return value
    raise fault(
        "recipe.bucket-owner",
        f"`{show(value)}` is no AWS account",
        'write its 12 digits in quotes, such as `"111122223333"`',
    )


def check_region(value: str) -> str:
    """An AWS region, by form; new ones appear every year."""
    if re.fullmatch(REGION_PATTERN[1:-1], value):
        return value
    raise fault(
        "recipe.region",
        f"`{show(value)}` is no AWS region",
        "write one such as `us-east-1` (no zone letter)",
    )


def check_endpoint(value: str) -> str:
    """A server's address: scheme, host, port, and nothing else."""
    if _ENDPOINT.match(value):
        return value
    raise fault(
        "recipe.endpoint",
        "the endpoint is no plain server address",
        "write `https://host:port`, without path, query or login",
    )


def check_tags(value: dict[str, str]) -> dict[str, str]:
    """Object tags, within S3's limits."""
    if len(value) > _MAX_TAGS:
        raise fault(
            "recipe.tags",
            f"{len(value)} tags, S3 allows {_MAX_TAGS}",
            f"remove {len(value) - _MAX_TAGS}",
        )
    return value


def check_tag_key(name: str) -> str:
    """A tag's key."""
    if name.lower().startswith("aws:"):
        raise fault(
            "recipe.tags", f"`{show(name)}` is reserved by AWS", "drop the `aws:`"
        )
    return _check_tag_text(name, 1, _MAX_TAG_KEY_CHARS, "key")


def check_tag_value(value: str) -> str:
    """A tag's value."""
    return _check_tag_text(value, 0, _MAX_TAG_VALUE_CHARS, "value")


def _check_tag_text(value: str, low: int, high: int, what: str) -> str:
    if low <= len(value) <= high and _TAG_CHARACTERS.match(value):
        return value
    raise fault(
        "recipe.tags",
        f"`{show(value)}` is no tag {what}: {low} to {high} letters, digits, spaces "
        "or `+-=._:/@`",
        "shorten it, and replace other characters by `-`",
    )
