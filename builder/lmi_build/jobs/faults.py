"""
What the faults of SageMaker mean, and what to do about them.

What a fault looks like is botocore's service model of SageMaker, and the common errors
of AWS's JSON services. A job that does not exist is a `ValidationException` to the
service, whatever its model says, so that the message has to be read.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lmi_build.errors import LmiBuildError, RemoteFailed, UsageInvalid
from lmi_build.jobs.console import console_domain
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

_CODES: Mapping[str, str] = {
    **CODES,
    "UnrecognizedClientException": "remote.bad-credentials",
    "InvalidClientTokenId": "remote.bad-credentials",
    "InvalidSignatureException": "remote.bad-credentials",
    "AccessDeniedException": "job.denied",
    "AccessDenied": "job.denied",
    "ThrottlingException": "remote.throttled",
    "TooManyRequestsException": "remote.throttled",
    "ResourceLimitExceeded": "job.quota",
    "ResourceInUse": "job.exists",
    "ValidationException": "job.refused",
    "ValidationError": "job.refused",
}
_BOTOCORE: Mapping[str, str] = {
    **BOTOCORE,
    "NoRegionError": "job.no-region",
    "ParamValidationError": "job.refused",
}
_QUOTA = re.compile(r"service limit '([^']+)' is ([\d.]+)")
_DENIED = re.compile(r"not authorized to perform: ([\w:*]+)(?: on resource: (\S+))?")
_SKEWED = ("signature expired", "signature not yet current")
_ABSENT = ("could not find", "not found", "does not exist")


def _message(error: Exception) -> str:
    response = getattr(error, "response", None) or {}
    told = response.get("Error", {}).get("Message") or response.get("Message")
    return str(told or error).rstrip(".")


def says(error: Exception, *words: str) -> bool:
    """Whether a fault's message has one of the words."""
    text = _message(error).lower()
    return any(word in text for word in words)


def is_absent(error: Exception) -> bool:
    """Whether a fault says that there is no such job, stream or group."""
    code = error_code(error)
    if code in {"ResourceNotFound", "ResourceNotFoundException"}:
        return True
    vague = code in {"ValidationException", "ValidationError"}
    return vague and says(error, *_ABSENT)


@contextmanager
def explained(doing: str, region: str) -> Iterator[None]:
    """Turn botocore's faults into ours; leave ours alone."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise explain(error, doing=doing, region=region) from error


def explain(error: Exception, *, doing: str, region: str | None) -> LmiBuildError:
    """
    Say what a fault of the service means and what to do about it.

    Args:
        error: From botocore, after its own retries.
        doing: What was being done.
        region: Where.
    """
    code = error_code(error)
    slug = _slug(error, code)
    told = _message(error)
    text = f"{doing}: {code}: {told}{tries(error)}" if code else f"{doing}: {told}"
    # Nothing was asked of anybody yet: that is the command line's fault.
    cls = UsageInvalid if slug == "job.no-region" else RemoteFailed
    return cls(text, code=slug, hints=_hints(slug, told, region or ""))


def _slug(error: Exception, code: str) -> str:
    if code == "InvalidSignatureException" and says(error, *_SKEWED):
        return "remote.clock-skew"
    return slug_of(
        error, codes=_CODES, botocore=_BOTOCORE, otherwise="remote.unreachable"
    )


def _hints(slug: str, told: str, region: str) -> tuple[str, ...]:
    resumes = "run the same command again: it goes on where it stopped"
    return {
        **ADVICE,
        "job.quota": _quota_hints(told, region),
        "job.denied": _denied_hints(told),
        "job.exists": ("it is ours or somebody else's: `lmi-build job status NAME`",),
        "job.refused": (
            "look at the request: `lmi-build job render RECIPE --out DIR`",
            "an image, a role or a bucket may be in another region or account",
        ),
        "job.no-region": ("set `job.region` in the recipe, or AWS_REGION",),
        "remote.expired-token": (SIGN_IN, resumes),
        "remote.unreachable": (
            f"check the network, and that SageMaker is in {region or 'the region'}",
            resumes,
        ),
    }.get(slug, (resumes,))


def _quota_hints(told: str, region: str) -> tuple[str, ...]:
    found = _QUOTA.search(told)
    quota = f"`{found.group(1)}` (now {found.group(2)})" if found else "the quota"
    domain = console_domain(region)
    place = f"https://{region}.{domain}/servicequotas/home/services/sagemaker/quotas"
    hint = f"ask for more of {quota}" + (f": {place}" if domain else "")
    return (
        hint,
        (
            "or use another instance, or fewer at once: `--set job.max_jobs=1`,"
            " `--set job.num_hosts=1`"
        ),
    )


def _denied_hints(told: str) -> tuple[str, ...]:
    found = _DENIED.search(told)
    action = found.group(1) if found else ""
    who = "see who you are: aws sts get-caller-identity"
    if action == "iam:PassRole":
        return ("allow this identity iam:PassRole on the role of `job.role`", who)
    allow = f"allow this identity {action}" if action else "allow this identity more"
    return (f"{allow}; `lmi-build job render --policy` writes what is needed", who)
