"""
Policies of IAM with the least rights: for the jobs' role, and for who submits them.

Every action is named, and every resource is one that the requests name. `*` stands
only where IAM knows no narrower resource for an action: `WITHOUT_RESOURCE`.

Sources: "CreateProcessingJob API: Execution Role Permissions" and its sibling for
training in the developer guide of SageMaker; the service authorization reference for
which actions take no resource.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lmi_build.recipe.forms import source_kind
from lmi_build.values.job import PROCESSING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lmi_build.jobs.graph import JobGraph
    from lmi_build.jobs.union import Work

VERSION = "2012-10-17"
SERVICE = "sagemaker.amazonaws.com"
WITHOUT_RESOURCE = frozenset(
    {
        "cloudwatch:PutMetricData",
        "ec2:DescribeDhcpOptions",
        "ec2:DescribeNetworkInterfaces",
        "ec2:DescribeSecurityGroups",
        "ec2:DescribeSubnets",
        "ec2:DescribeVpcs",
        "ecr:GetAuthorizationToken",
        "sagemaker:ListProcessingJobs",
        "sagemaker:ListTrainingJobs",
    }
)
_ROLE = re.compile(r"arn:(aws[a-z-]*):iam::(\d{12}):role/")
_ECR = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.[a-z0-9.-]+/"
    r"(?P<repository>[^:@]+)"
)
_GROUPS = {PROCESSING: "ProcessingJobs", "training": "TrainingJobs"}
_JOBS = {PROCESSING: "Processing", "training": "Training"}
_READ = ("s3:GetObject",)
_WRITE = (
    "s3:AbortMultipartUpload",
    "s3:DeleteObject",
    "s3:GetObject",
    "s3:ListMultipartUploadParts",
    "s3:PutObject",
)
# Nothing that was published is ever deleted.
_PUBLISH = tuple(action for action in _WRITE if action != "s3:DeleteObject")
_CRYPT = ("kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey")
_GRANT = ("kms:CreateGrant", "kms:DescribeKey")

Statement = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """
    What ARNs are made of.

    Args:
        partition: Such as `aws`.
        account: The role's.
        region: Of the jobs.
    """

    partition: str
    account: str
    region: str

    def arn(self, service: str, resource: str) -> str:
        """A resource of this account and region."""
        return f"arn:{self.partition}:{service}:{self.region}:{self.account}:{resource}"

    def s3(self, resource: str) -> str:
        """A bucket or an object."""
        return f"arn:{self.partition}:s3:::{resource}"


def ground_of(role_arn: str, region: str) -> Ground:
    """
    What ARNs beside the role's are made of.

    Raises:
        ValueError: It is not the ARN of a role.
    """
    match = _ROLE.match(role_arn)
    if match is None:
        raise ValueError(f"{role_arn!r} is not the ARN of a role")
    return Ground(partition=match[1], account=match[2], region=region)


def policies(graph: JobGraph, work: Work, role_arn: str) -> dict[str, dict[str, Any]]:
    """
    Every policy that a build as jobs needs.

    Args:
        graph: The jobs.
        work: What they came from.
        role_arn: Their role.

    Returns:
        `role` (what jobs may do), `trust` (who may be that role) and `submitter` (what
        the one who submits and waits may do).
    """
    ground = ground_of(role_arn, graph.region)
    return {
        "role": _document(_role(graph, work, ground)),
        "trust": _document([_trust(ground)]),
        "submitter": _document(_submitter(graph, role_arn, ground)),
    }


def _document(statements: Iterable[Statement]) -> dict[str, Any]:
    return {"Version": VERSION, "Statement": list(statements)}


def _allow(
    sid: str,
    actions: Iterable[str],
    resources: Iterable[str],
    condition: Mapping[str, Any] | None = None,
) -> Statement:
    return {
        "Sid": sid,
        "Effect": "Allow",
        "Action": sorted(set(actions)),
        "Resource": sorted(set(resources)),
        **({"Condition": dict(condition)} if condition else {}),
    }


def _role(graph: JobGraph, work: Work, ground: Ground) -> list[Statement]:
    return [
        *_bucket("Store", graph.store, _WRITE, ground),
        *_sources(work, ground),
        *_destinations(graph, ground),
        *_keys(graph, ground),
        *_images(graph, ground),
        *_logs(graph, ground),
        *_network(graph, ground),
        *_secrets(graph, ground),
    ]


def _trust(ground: Ground) -> Statement:
    """SageMaker may be the role, for jobs of this account alone."""
    return {
        "Sid": "SageMaker",
        "Effect": "Allow",
        "Principal": {"Service": SERVICE},
        "Action": "sts:AssumeRole",
        "Condition": {"StringEquals": {"aws:SourceAccount": ground.account}},
    }


def _bucket(
    sid: str, uri: str, actions: Iterable[str], ground: Ground
) -> list[Statement]:
    """Objects below a prefix, and the list of their names."""
    parts = urlsplit(uri)
    prefix = parts.path.strip("/")
    below = f"{prefix}/*" if prefix else "*"
    # A source may be one object; its own name is below nothing.
    objects = [ground.s3(f"{parts.netloc}/{below}")]
    if prefix:
        objects.append(ground.s3(f"{parts.netloc}/{prefix}"))
    narrowed = {"StringLike": {"s3:prefix": [below, prefix]}} if prefix else None
    return [
        _allow(f"{sid}Objects", actions, objects),
        _allow(f"{sid}Names", ["s3:ListBucket"], [ground.s3(parts.netloc)], narrowed),
    ]


def _sources(work: Work, ground: Ground) -> list[Statement]:
    """Models and data sets that lie in S3."""
    found: dict[str, None] = {}
    for recipe in work.recipes.values():
        if source_kind(recipe.model.source) == "s3":
            found[recipe.model.source] = None
        calibration = recipe.quantize.calibration
        if calibration and calibration.dataset.startswith("s3://"):
            found[calibration.dataset] = None
    return [
        statement
        for index, uri in enumerate(found)
        for statement in _bucket(f"Source{index}", uri, _READ, ground)
    ]


def _destinations(graph: JobGraph, ground: Ground) -> list[Statement]:
    """Where artifacts are published."""
    wishes = [wish for job in graph.jobs for wish in graph.publishes(job).values()]
    tagged = {str(wish["to"]): bool(wish.get("tags")) for wish in wishes}
    return [
        statement
        for index, (uri, tags) in enumerate(tagged.items())
        for statement in _bucket(
            f"Publish{index}",
            uri,
            (*_PUBLISH, "s3:PutObjectTagging") if tags else _PUBLISH,
            ground,
        )
    ]


def _keys(graph: JobGraph, ground: Ground) -> list[Statement]:
    """Keys of what is written to S3, and of volumes."""
    found = []
    wishes = [wish for job in graph.jobs for wish in graph.publishes(job).values()]
    data = [graph.spec.output_kms_key_id, *(w.get("kms_key_id") for w in wishes)]
    for index, key in enumerate(dict.fromkeys(str(key) for key in data if key)):
        found.append(_key(f"DataKey{index}", key, _CRYPT, ground))
    volumes = {job.volume_kms_key_id for job in graph.jobs} - {None}
    for index, key in enumerate(sorted(str(key) for key in volumes)):
        found.append(_key(f"VolumeKey{index}", key, _GRANT, ground))
    return found


def _key(sid: str, key: str, actions: Iterable[str], ground: Ground) -> Statement:
    """A key by its ARN, its id, or an alias of either form."""
    if ":alias/" in key or key.startswith("alias/"):
        # IAM knows keys, not aliases; which key it is, the alias says at the time.
        base = key.partition(":alias/")[0] if key.startswith("arn:") else ""
        keys = f"{base}:key/*" if base else ground.arn("kms", "key/*")
        alias = f"alias/{key.rpartition('alias/')[2]}"
        narrowed = {"ForAnyValue:StringEquals": {"kms:ResourceAliases": alias}}
        return _allow(sid, actions, [keys], narrowed)
    resource = key if key.startswith("arn:") else f"key/{key.removeprefix('key/')}"
    whole = resource if resource.startswith("arn:") else ground.arn("kms", resource)
    return _allow(sid, actions, [whole])


def _images(graph: JobGraph, ground: Ground) -> list[Statement]:
    """Layers of the jobs' images; other registries than ECR's ask for nothing here."""
    repositories = [
        f"arn:{ground.partition}:ecr:{match['region']}:{match['account']}"
        f":repository/{match['repository']}"
        for job in graph.jobs
        if (match := _ECR.match(job.image))
    ]
    if not repositories:
        return []
    actions = (
        "ecr:BatchCheckLayerAvailability",
        "ecr:BatchGetImage",
        "ecr:GetDownloadUrlForLayer",
    )
    return [
        _allow("Images", actions, repositories),
        _allow("Registry", ["ecr:GetAuthorizationToken"], ["*"]),
    ]


def _log_groups(graph: JobGraph, ground: Ground) -> list[str]:
    return [
        ground.arn("logs", f"log-group:/aws/sagemaker/{_GROUPS[kind]}{part}")
        for kind in sorted({job.kind for job in graph.jobs})
        for part in ("", ":*")
    ]


def _logs(graph: JobGraph, ground: Ground) -> list[Statement]:
    actions = (
        "logs:CreateLogGroup",
        "logs:CreateLogStream",
        "logs:DescribeLogStreams",
        "logs:PutLogEvents",
    )
    namespace = {"StringLike": {"cloudwatch:namespace": "/aws/sagemaker/*"}}
    return [
        _allow("Logs", actions, _log_groups(graph, ground)),
        _allow("Metrics", ["cloudwatch:PutMetricData"], ["*"], namespace),
    ]


def _network(graph: JobGraph, ground: Ground) -> list[Statement]:
    """What SageMaker does in the user's VPC as the role."""
    spec = graph.spec
    if not spec.subnets:
        return []
    interfaces = ground.arn("ec2", "network-interface/*")
    subnets = [ground.arn("ec2", f"subnet/{name}") for name in spec.subnets]
    groups = [
        ground.arn("ec2", f"security-group/{name}") for name in spec.security_group_ids
    ]
    looking = sorted(name for name in WITHOUT_RESOURCE if name.startswith("ec2:"))
    made = (
        "ec2:CreateNetworkInterfacePermission",
        "ec2:DeleteNetworkInterface",
        "ec2:DeleteNetworkInterfacePermission",
    )
    return [
        _allow(
            "Interfaces",
            ["ec2:CreateNetworkInterface"],
            [interfaces, *subnets, *groups],
        ),
        _allow("OwnInterfaces", made, [interfaces]),
        _allow("Network", looking, ["*"]),
    ]


def _secrets(graph: JobGraph, ground: Ground) -> list[Statement]:
    """Secrets by the references that the recipe gives."""
    secrets, parameters = [], []
    for reference in graph.spec.secrets.values():
        kind, _, name = reference.partition(":")
        if kind == "secretsmanager":
            name = name.partition("#")[0]
            # Secrets Manager puts six characters of its own behind a name.
            ours = ground.arn("secretsmanager", f"secret:{name}-??????")
            secrets.append(name if name.startswith("arn:") else ours)
        else:
            ours = ground.arn("ssm", f"parameter/{name.lstrip('/')}")
            parameters.append(name if name.startswith("arn:") else ours)
    found = []
    if secrets:
        found.append(_allow("Secrets", ["secretsmanager:GetSecretValue"], secrets))
    if parameters:
        found.append(_allow("Parameters", ["ssm:GetParameter"], parameters))
    return found


def _submitter(graph: JobGraph, role_arn: str, ground: Ground) -> list[Statement]:
    """Create, watch and stop these jobs, and read and fill their store."""
    kinds = sorted({job.kind for job in graph.jobs})
    names = {kind: [j.name for j in graph.jobs if j.kind == kind] for kind in kinds}
    jobs = [
        ground.arn("sagemaker", f"{kind}-job/{_without_digits(name)}-*")
        for kind in kinds
        for name in names[kind]
    ]
    words = [_JOBS[kind] for kind in kinds]
    actions = [
        f"sagemaker:{v}{w}Job" for w in words for v in ("Create", "Describe", "Stop")
    ]
    passed = {"StringEquals": {"iam:PassedToService": SERVICE}}
    reading = ("logs:DescribeLogStreams", "logs:FilterLogEvents", "logs:GetLogEvents")
    found = [
        _allow("Jobs", [*actions, "sagemaker:AddTags", "sagemaker:ListTags"], jobs),
        _allow("List", [f"sagemaker:List{w}Jobs" for w in words], ["*"]),
        _allow("PassRole", ["iam:PassRole"], [role_arn], passed),
        _allow("ReadRole", ["iam:GetRole"], [role_arn]),
        _allow("ReadLogs", reading, _log_groups(graph, ground)),
        *_bucket("Store", graph.store, _WRITE, ground),
    ]
    key = graph.spec.output_kms_key_id
    if key:
        found.append(_key("DataKey", key, _CRYPT, ground))
    volume = next(
        (j.volume_kms_key_id for j in graph.jobs if j.volume_kms_key_id), None
    )
    if volume:
        found.append(_key("VolumeKey", volume, _GRANT, ground))
    return found


def _without_digits(name: str) -> str:
    """A job's name without what changes from build to build."""
    return name.rpartition("-")[0]
