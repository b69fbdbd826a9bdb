"""
The calls that store one object in S3, and what their answers mean.

A call whose object or upload now belongs to another publisher raises `UploadGone`;
bytes that were damaged on the way are sent again.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmi_build.remote.aws_faults import error_code
from lmi_build.remote.s3_parts import Listed, Upload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from lmi_build.remote.crc import Checksum

METADATA = "lmi-build-sha256"
# Damaged bytes are refused by S3 and sent again; botocore itself does not.
_DAMAGE_ATTEMPTS = 3
_DAMAGE = frozenset(
    {
        "BadDigest",
        "InvalidDigest",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)
# Another publisher of the same bytes completed, aborted or overtook our upload.
_GONE = frozenset({"NoSuchUpload", "InvalidPart", "InvalidPartOrder"})
# A conditional write met an object, or another conditional write.
_TAKEN = frozenset({"PreconditionFailed", "ConditionalRequestConflict"})


class UploadGone(Exception):
    """Our upload is no longer ours; look again."""


@contextmanager
def _gone_is_told() -> Iterator[None]:
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as error:
        if error_code(error) in _GONE | _TAKEN:
            raise UploadGone from error
        raise


def _retry_damage(call: Callable[..., Any], **params: Any) -> Any:
    from botocore.exceptions import ClientError

    for left in range(_DAMAGE_ATTEMPTS - 1, -1, -1):
        try:
            with _gone_is_told():
                return call(**params)
        except ClientError as error:
            if error_code(error) not in _DAMAGE or not left:
                raise
    raise AssertionError("the last attempt returns or raises")


@dataclass(frozen=True, kw_only=True, slots=True)
class Calls:
    """
    A bucket, with what every object that is stored there shares.

    Args:
        client: S3 client.
        where: Parameters of every call: bucket and its expected owner.
        storing: Parameters of every call that makes an object: encryption, tags.
        checksum: CRC of parts.
    """

    client: Any
    where: Mapping[str, str]
    storing: Mapping[str, str]
    checksum: Checksum

    def put(
        self, key: str, body: bytearray, sha256: str, encoded: str, *, exclusive: bool
    ) -> None:
        """
        Store an object by one call.

        Args:
            key: Its key.
            body: All of it.
            sha256: Of it, in hex; kept as metadata.
            encoded: The same in base64; S3 compares it.
            exclusive: Whether an object that is there already is left alone.

        Raises:
            UploadGone: There is one.
        """
        _retry_damage(
            self.client.put_object,
            Key=key,
            Body=body,
            ChecksumSHA256=encoded,
            Metadata={METADATA: sha256},
            **({"IfNoneMatch": "*"} if exclusive else {}),
            **self.where,
            **self.storing,
        )

    def begin(self, key: str, sha256: str) -> Upload:
        """Begin an upload in parts."""
        answer = self.client.create_multipart_upload(
            Key=key,
            ChecksumAlgorithm=self.checksum.name,
            ChecksumType="FULL_OBJECT",
            Metadata={METADATA: sha256},
            **self.where,
            **self.storing,
        )
        return Upload(upload_id=answer["UploadId"])

    def resume(self, key: str) -> Upload | None:
        """The upload of this key that has most, if one was begun as we would."""
        best: Upload | None = None
        for row in self.unfinished(key):
            same = row.get("ChecksumAlgorithm", self.checksum.name)
            if row["Key"] != key or same != self.checksum.name:
                continue
            try:
                parts = self._listed(key, row["UploadId"])
            except UploadGone:
                continue
            if best is None or len(parts) > len(best.parts):
                best = Upload(upload_id=row["UploadId"], parts=parts)
        return best

    def unfinished(self, prefix: str) -> Iterator[Mapping[str, Any]]:
        """Uploads in progress of keys that begin so."""
        pages = self.client.get_paginator("list_multipart_uploads").paginate(
            Prefix=prefix, **self.where
        )
        for page in pages:
            yield from page.get("Uploads", [])

    def _listed(self, key: str, upload_id: str) -> dict[int, Listed]:
        with _gone_is_told():
            pages = list(
                self.client.get_paginator("list_parts").paginate(
                    Key=key, UploadId=upload_id, **self.where
                )
            )
        return {
            part["PartNumber"]: Listed(
                num_bytes=part["Size"],
                etag=part["ETag"],
                checksum=part.get(self.checksum.field),
            )
            for page in pages
            for part in page.get("Parts", [])
        }

    def put_part(
        self, key: str, upload: Upload, number: int, body: bytearray, encoded: str
    ) -> str:
        """
        Send one part; returns its tag.

        Raises:
            UploadGone: The upload was ended.
        """
        answer = _retry_damage(
            self.client.upload_part,
            Key=key,
            UploadId=upload.upload_id,
            PartNumber=number,
            Body=body,
            **{self.checksum.field: encoded},
            **self.where,
        )
        etag: str = answer["ETag"]
        return etag

    def complete(
        self,
        key: str,
        upload: Upload,
        parts: list[dict[str, Any]],
        crc: int,
        num_bytes: int,
        *,
        exclusive: bool,
    ) -> None:
        """
        Make an object of the parts.

        Args:
            key: Its key.
            upload: The upload.
            parts: Number, tag and CRC of each.
            crc: Of all bytes together; S3 compares it.
            num_bytes: How many there are.
            exclusive: Whether an object that is there already is left alone.

        Raises:
            UploadGone: There is one, or the upload was ended.
        """
        with _gone_is_told():
            self.client.complete_multipart_upload(
                Key=key,
                UploadId=upload.upload_id,
                MultipartUpload={"Parts": parts},
                ChecksumType="FULL_OBJECT",
                MpuObjectSize=num_bytes,
                **{self.checksum.field: self.checksum.encode(crc)},
                **({"IfNoneMatch": "*"} if exclusive else {}),
                **self.where,
            )

    def abort(self, key: str, upload_id: str) -> None:
        """End an upload; that somebody else ended it is as good."""
        try:
            with _gone_is_told():
                self.client.abort_multipart_upload(
                    Key=key, UploadId=upload_id, **self.where
                )
        except UploadGone:
            return

    def abort_all(self, prefix: str) -> None:
        """End every upload in progress below a prefix."""
        for row in list(self.unfinished(prefix)):
            self.abort(row["Key"], row["UploadId"])
