"""The ARN of a role that a recipe gives by its name alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.jobs.faults import explained
from lmi_build.remote.aws import make_session
from lmi_build.remote.aws_faults import error_code

if TYPE_CHECKING:
    from lmi_build.values.settings import Settings

_DENIED = frozenset({"AccessDenied", "AccessDeniedException"})


def role_arn(role: str, settings: Settings, *, region: str) -> str:
    """
    Complete a role's name.

    IAM knows its path; where IAM may not be asked, the account of who submits and no
    path are taken.

    Args:
        role: An ARN, which stays as it is, or a name.
        settings: Credentials and endpoint.
        region: Tells the partition.

    Raises:
        RemoteFailed: There is no such role, or nobody can be asked.
    """
    if role.startswith("arn:"):
        return role
    from botocore.exceptions import ClientError

    endpoint = settings.secrets.get("aws", {}).get("AWS_ENDPOINT_URL") or None
    doing = f"looking for the role {role}"
    with explained(doing, region):
        session = make_session(settings, region=region)
        iam = session.client("iam", endpoint_url=endpoint)
        try:
            return str(iam.get_role(RoleName=role)["Role"]["Arn"])
        except ClientError as error:
            if error_code(error) not in _DENIED:
                raise
        finally:
            iam.close()
        sts = session.client("sts", endpoint_url=endpoint)
        try:
            account = sts.get_caller_identity()["Account"]
        finally:
            sts.close()
    partition = session.get_partition_for_region(region)
    return f"arn:{partition}:iam::{account}:role/{role}"
