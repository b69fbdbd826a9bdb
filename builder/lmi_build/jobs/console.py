"""Addresses of jobs in the console of each partition."""

from __future__ import annotations

from lmi_build.values.job import PROCESSING, TRAINING

# Partition by the start of its regions' names: console's domain.
_DOMAINS = (
    ("cn-", "console.amazonaws.cn"),
    ("us-gov-", "console.amazonaws-us-gov.com"),
    # Partitions whose consoles' addresses are not known here.
    ("us-iso", ""),
    ("eu-iso", ""),
    ("eusc-", ""),
)
_DOMAIN = "console.aws.amazon.com"
_LOG_GROUPS = {
    PROCESSING: "/aws/sagemaker/ProcessingJobs",
    TRAINING: "/aws/sagemaker/TrainingJobs",
}


def console_domain(region: str) -> str:
    """The console's domain for a region; empty where there is none to show."""
    for start, domain in _DOMAINS:
        if region.startswith(start):
            return domain
    return _DOMAIN


def log_group(kind: str) -> str:
    """Where SageMaker puts the output of such jobs."""
    return _LOG_GROUPS[kind]


def console_url(kind: str, name: str, region: str) -> str:
    """The job's own page; empty where the partition has no public console."""
    domain = console_domain(region)
    if not domain:
        return ""
    page = "processing-jobs" if kind == PROCESSING else "jobs"
    return f"https://{region}.{domain}/sagemaker/home?region={region}#/{page}/{name}"


def logs_url(kind: str, name: str, region: str) -> str:
    """The job's log streams; empty where the partition has no public console."""
    domain = console_domain(region)
    if not domain:
        return ""
    # The console escapes twice, with `$` for the second `%`.
    group = log_group(kind).replace("/", "$252F")
    stream = f"{name}/".replace("/", "$252F")
    return (
        f"https://{region}.{domain}/cloudwatch/home?region={region}"
        f"#logsV2:log-groups/log-group/{group}$3FlogStreamNameFilter$3D{stream}"
    )
