"""The forms of what a job is told: role, names, images, references to secrets."""

from __future__ import annotations

import re

from lmi_build.recipe.aws_forms import check_s3_uri
from lmi_build.recipe.form import fault, slug
from lmi_build.recipe.words import nearest, show
from lmi_build.text import join_words

# Patterns and limits: botocore's service model of SageMaker, CreateProcessingJob and
# CreateTrainingJob; where the two differ the narrower holds, so that a recipe does not
# hang on the kind of its jobs.
ROLE_ARN_PATTERN = r"arn:aws[a-z\-]*:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+"
INSTANCE_PATTERN = r"^ml\.[a-z0-9-]+\.[a-z0-9-]+$"
# A job's name has 63 characters; 12 digits of a key and words for the part come after.
PREFIX_PATTERN = r"^[a-zA-Z0-9](-*[a-zA-Z0-9]){0,29}$"
MAX_VALUE_CHARS = 256
MAX_TAGS = 50
MAX_VOLUME_GB = 16384
# IAM's rule for the name of a role.
_ROLE_NAME = re.compile(r"[\w+=,.@-]{1,64}\Z", re.ASCII)
_MAX_ROLE_ARN_CHARS = 2048
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_IMAGE = re.compile(
    r"[a-z0-9][a-zA-Z0-9.-]*(?::\d+)?/[a-z0-9._/-]+"
    r"(?::[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(?:@sha256:[0-9a-f]{64})?\Z"
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_MAX_IMAGE_CHARS = 255
_NETWORK_ID = re.compile(r"[-0-9a-zA-Z]{1,32}\Z")
# Secrets Manager: names of letters, digits and `/_+=.@-`; Parameter Store: paths.
_REFERENCE = re.compile(
    r"(?:secretsmanager:(?:arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:\d{12}:secret:)?"
    r"[A-Za-z0-9/_+=.@-]{1,512}(?:#[A-Za-z0-9_.-]{1,128})?"
    r"|ssm:(?:arn:aws[a-z-]*:ssm:[a-z0-9-]+:\d{12}:parameter)?/?[A-Za-z0-9_./-]{1,1011})\Z"
)
STAGE_KINDS = (
    "fetch",
    "calibration",
    "quantize",
    "checkpoint",
    "compile",
    "package",
    "verify",
)


def is_reference(value: str) -> bool:
    """Whether text names a secret of Secrets Manager or of the Parameter Store."""
    return _REFERENCE.match(value) is not None


def check_store(value: str) -> str:
    """The shared store: a bucket, or a prefix in one."""
    code = "recipe.job-store"
    if not value.startswith("s3://"):
        raise fault(
            code,
            f"`{show(value)}` is no S3 prefix; jobs share their store there",
            "write `s3://bucket/prefix`",
        )
    check_s3_uri(value, code)
    return value.rstrip("/")


def check_role(value: str) -> str:
    """A role's ARN, or its name in the account of who submits."""
    arn = re.fullmatch(ROLE_ARN_PATTERN, value)
    if (arn and len(value) <= _MAX_ROLE_ARN_CHARS) or _ROLE_NAME.match(value):
        return value
    raise fault(
        "recipe.job-role",
        f"`{show(value)}` is neither the ARN of a role nor a role's name",
        "write `arn:aws:iam::111122223333:role/NAME`, or the role's name alone",
    )


def check_instance(value: str) -> str:
    """An instance type, by form; the catalogue knows which there are."""
    if re.fullmatch(INSTANCE_PATTERN[1:-1], value):
        return value
    dotted = re.fullmatch(r"[a-z0-9-]+\.[a-z0-9-]+", value)
    raise fault(
        "recipe.job-instance",
        f"`{show(value)}` is no instance type",
        f"write `ml.{value}`" if dotted else "write one such as `ml.m5.2xlarge`",
    )


def check_instance_or_auto(value: str) -> str:
    """An instance type, or `auto` for what the plan needs."""
    return value if value == "auto" else check_instance(value)


def check_stage_kind(value: str) -> str:
    """A kind of stage."""
    if value in STAGE_KINDS:
        return value
    near = nearest(value, list(STAGE_KINDS))
    listed = f"write {join_words(STAGE_KINDS)}"
    raise fault(
        "recipe.job-stage",
        f"there is no kind of stage `{show(value)}`",
        f"did you mean `{near}`? {listed}" if near else listed,
    )


def check_image(value: str) -> str:
    """An image's URI, or the digest that pins the catalogue's image."""
    short = len(value) <= _MAX_IMAGE_CHARS
    if short and (_IMAGE.match(value) or _DIGEST.match(value)):
        return value
    raise fault(
        "recipe.job-image",
        f"`{show(value)}` is no image of at most {_MAX_IMAGE_CHARS} characters",
        "write `REGISTRY/REPOSITORY:TAG`, `REGISTRY/REPOSITORY@sha256:...`, or"
        " `sha256:...` alone to pin the catalogue's image",
    )


def check_volume(value: object) -> object:
    """A disk's size in GB, or `auto` for what the plan needs."""
    if value == "auto" or (type(value) is int and 1 <= value <= MAX_VOLUME_GB):
        return value
    raise fault(
        "recipe.job-volume",
        f"`{show(str(value))}` is no disk: `auto`, or 1 to {MAX_VOLUME_GB} GB",
        "write `auto`, or whole GB such as `200`",
    )


def check_prefix(value: str) -> str:
    """What the names of jobs start with."""
    if re.fullmatch(PREFIX_PATTERN[1:-1], value):
        return value
    example = slug(value).replace("_", "-").replace(".", "-")[:30].strip("-")
    raise fault(
        "recipe.job-name",
        f"`{show(value)}` cannot start a job's name: up to 30 letters and digits,"
        " `-` only between them",
        f"write `{example or 'lmi-build'}`",
    )


def check_network_id(value: str) -> str:
    """A subnet or a security group."""
    if _NETWORK_ID.match(value):
        return value
    raise fault(
        "recipe.job-network",
        f"`{show(value)}` is no id of a subnet or of a security group",
        "write ids such as `subnet-0abc123` and `sg-0abc123`",
    )


def check_variable(name: str) -> str:
    """A variable of a job's container."""
    if _VARIABLE.match(name) and len(name) <= MAX_VALUE_CHARS:
        return name
    raise fault(
        "recipe.job-environment",
        f"`{show(name)}` is no variable name of at most {MAX_VALUE_CHARS} characters",
        "use letters, digits and `_`, no digit first",
    )


def check_variable_value(value: str) -> str:
    """A variable's value, within a job's limit."""
    if len(value) <= MAX_VALUE_CHARS:
        return value
    raise fault(
        "recipe.job-environment",
        f"a value of {len(value)} characters; a job takes {MAX_VALUE_CHARS}",
        "shorten it, or have the image read it from a file",
    )


def check_tags(value: dict[str, str]) -> dict[str, str]:
    """Tags of a job, within SageMaker's limit."""
    if len(value) <= MAX_TAGS:
        return value
    raise fault(
        "recipe.tags",
        f"{len(value)} tags, a job takes {MAX_TAGS}",
        f"remove {len(value) - MAX_TAGS}",
    )
