"""
Secrets of a job, read by reference when it runs.

A request names them; their values are read here, go into the group of settings that
the stages ask for, and are redacted wherever something is written down.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmi_build.errors import RemoteFailed, UsageInvalid
from lmi_build.remote.aws import make_session
from lmi_build.text import join_words
from lmi_build.values.job import SECRET_VARIABLES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.values.settings import Settings

# The group of settings that a variable belongs to.
_GROUPS: Mapping[str, str] = dict.fromkeys(SECRET_VARIABLES, "hub")
_MANAGER = "secretsmanager:"
_PARAMETER = "ssm:"
_DENIED = ("AccessDenied", "NotAuthorized", "Unauthorized")


def with_secrets(
    settings: Settings, references: Mapping[str, str], *, region: str | None
) -> Settings:
    """
    Read every secret and put it where stages ask for it.

    Args:
        settings: Credentials.
        references: Variable to `secretsmanager:NAME-or-ARN[#key]` or `ssm:/parameter`.
        region: Where they are; None takes the container's.

    Raises:
        UsageInvalid: `job.bad-secret`: the reference or the variable is not known.
        RemoteFailed: `job.secret-unreadable`.
    """
    groups = {name: dict(group) for name, group in settings.secrets.items()}
    hidden = list(settings.hidden_values)
    for variable, reference in references.items():
        if variable not in _GROUPS:
            raise UsageInvalid(
                f"`{variable}` is not a variable that a stage reads",
                code="job.bad-secret",
                hints=(f"use {join_words(tuple(_GROUPS))}",),
            )
        value = _resolve(variable, reference, settings, region)
        groups.setdefault(_GROUPS[variable], {})[variable] = value
        hidden.append(value)
    return replace(settings, secrets=groups, hidden_values=tuple(hidden))


def _resolve(
    variable: str, reference: str, settings: Settings, region: str | None
) -> str:
    if not reference.startswith((_MANAGER, _PARAMETER)):
        raise _bad_reference(variable)
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        session = make_session(settings, region=region)
        if reference.startswith(_PARAMETER):
            return _parameter(session, reference.removeprefix(_PARAMETER))
        name, _, key = reference.removeprefix(_MANAGER).partition("#")
        return _secret(session, name, key, variable)
    except (BotoCoreError, ClientError) as error:
        raise _unreadable(variable, reference, error) from error


def _parameter(session: Any, name: str) -> str:
    answer = session.client("ssm").get_parameter(Name=name, WithDecryption=True)
    return str(answer["Parameter"]["Value"])


def _secret(session: Any, name: str, key: str, variable: str) -> str:
    answer = session.client("secretsmanager").get_secret_value(SecretId=name)
    text = str(answer.get("SecretString") or "")
    if not key:
        return text
    try:
        return str(json.loads(text)[key])
    except (ValueError, KeyError, TypeError) as error:
        # Not from the error: its text would hold the secret's.
        raise RemoteFailed(
            f"{variable}: the secret `{name}` has no key `{key}`"
            f" ({type(error).__name__})",
            code="job.secret-unreadable",
            hints=(f'store it as JSON: {{"{key}": "..."}}, or leave out `#{key}`',),
        ) from None


def _bad_reference(variable: str) -> UsageInvalid:
    # The text is not shown: it could be the secret itself.
    return UsageInvalid(
        f"{variable} is not a reference to a secret",
        code="job.bad-secret",
        hints=(
            "write `secretsmanager:NAME`, `secretsmanager:NAME#key` or `ssm:/NAME`",
        ),
    )


def _unreadable(variable: str, reference: str, error: Exception) -> RemoteFailed:
    response: Any = getattr(error, "response", None) or {}
    code = str(response.get("Error", {}).get("Code", type(error).__name__))
    name = reference.partition(":")[2].partition("#")[0]
    action = (
        "ssm:GetParameter"
        if reference.startswith(_PARAMETER)
        else "secretsmanager:GetSecretValue"
    )
    hint = f"check that `{name}` exists in the job's region"
    if any(word in code for word in _DENIED):
        hint = f"allow the job's role {action} on `{name}`, and kms:Decrypt on its key"
    return RemoteFailed(
        f"{variable}: `{name}` cannot be read: {code}",
        code="job.secret-unreadable",
        hints=(hint,),
    )
