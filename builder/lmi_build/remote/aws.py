"""AWS as the settings describe it, for those who read from it or write to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmi_build.values.settings import Settings


def make_session(settings: Settings, *, region: str | None = None) -> Any:
    """
    A session with the settings' keys or profile, else botocore's own chain.

    Args:
        settings: Its `aws` group holds what the environment said.
        region: Before the settings' own.

    Raises:
        BotoCoreError: There is no such profile.
    """
    import boto3

    aws = settings.secrets.get("aws", {})
    key_id = aws.get("AWS_ACCESS_KEY_ID")
    return boto3.session.Session(
        aws_access_key_id=key_id,
        aws_secret_access_key=aws.get("AWS_SECRET_ACCESS_KEY"),
        aws_session_token=aws.get("AWS_SESSION_TOKEN"),
        region_name=region or aws.get("AWS_REGION") or aws.get("AWS_DEFAULT_REGION"),
        # Keys win, as everywhere in AWS; a profile beside them need not exist.
        profile_name=None if key_id else aws.get("AWS_PROFILE"),
    )


def s3_endpoint(settings: Settings) -> str | None:
    """The S3 server that the settings name, or None for AWS itself."""
    aws = settings.secrets.get("aws", {})
    return aws.get("AWS_ENDPOINT_URL_S3") or aws.get("AWS_ENDPOINT_URL") or None
