"""Policies name actions and resources; `*` only where IAM knows nothing narrower."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from job_works import BASE, ROLE, WHEEL, overrides_for, work_of
from lmi_build.jobs.policy import WITHOUT_RESOURCE, policies
from lmi_build.jobs.render import render
from planned_models import ALL, RECIPES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

GPU = RECIPES / "llama-3.1-8b" / "gptq.tensorrt-llm.yaml"
KEY = "1234abcd-12ab-34cd-56ef-1234567890ab"
EVERYTHING = (
    *BASE,
    "job.subnets=[subnet-1, subnet-2]",
    "job.security_group_ids=[sg-1]",
    f"job.volume_kms_key_id={KEY}",
    "job.output_kms_key_id=alias/jobs",
    "job.secrets.HF_TOKEN=secretsmanager:hub/token#key",
    "job.secrets.HTTPS_PROXY=ssm:/team/other",
    "publish.to=s3://artifacts/models",
    "publish.kms_key_id=arn:aws:kms:us-east-1:111122223333:alias/artifacts",
    "publish.tags.team=search",
)
# An inline policy of a role has at most 10,240 characters without white space.
MOST_CHARS = 10_240


def made(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The policies of a recipe's jobs."""
    work = work_of(path, overrides)
    return policies(render(work, wheel=WHEEL).graph, work, ROLE)


def statements(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By their ids, which differ."""
    found = {row["Sid"]: row for row in document["Statement"]}
    assert len(found) == len(document["Statement"])
    return found


@pytest.mark.parametrize(
    "path", ALL, ids=lambda path: f"{path.parent.name}.{path.stem}"
)
@pytest.mark.parametrize("more", [(), EVERYTHING], ids=["plain", "everything"])
def test_no_statement_is_wider_than_it_must_be(
    path: Path, more: tuple[str, ...]
) -> None:
    """No action with a `*`; the resource `*` for actions that take no other."""
    found = made(path, (*overrides_for(path), *more))

    for name in ("role", "submitter"):
        for row in found[name]["Statement"]:
            assert row["Effect"] == "Allow"
            assert not any("*" in action for action in row["Action"])
            assert all(":" in action for action in row["Action"])
            if "*" in row["Resource"]:
                assert row["Resource"] == ["*"]
                assert set(row["Action"]) <= WITHOUT_RESOURCE
            else:
                assert not set(row["Action"]) & WITHOUT_RESOURCE
                assert all(r.startswith("arn:aws:") for r in row["Resource"])
        assert len(json.dumps(found[name], separators=(",", ":"))) <= MOST_CHARS


def test_buckets_are_scoped_to_their_prefixes() -> None:
    """Store and destination; other prefixes of the same bucket are out of reach."""
    role = statements(made(GPU, EVERYTHING)["role"])

    assert role["StoreObjects"]["Resource"] == [
        "arn:aws:s3:::my-models/lmi-build",
        "arn:aws:s3:::my-models/lmi-build/*",
    ]
    assert role["StoreNames"]["Condition"]["StringLike"]["s3:prefix"] == [
        "lmi-build/*",
        "lmi-build",
    ]
    assert role["Publish0Objects"]["Resource"] == [
        "arn:aws:s3:::artifacts/models",
        "arn:aws:s3:::artifacts/models/*",
    ]
    assert "s3:DeleteObject" not in role["Publish0Objects"]["Action"]
    assert "s3:PutObjectTagging" in role["Publish0Objects"]["Action"]
    buckets = {r for row in role.values() for r in row["Resource"] if ":s3:::" in r}
    assert all(
        r.split(":::")[1].split("/")[0] in {"my-models", "artifacts"} for r in buckets
    )


def test_keys_secrets_and_network_are_those_named() -> None:
    """By id, by alias, by reference."""
    role = statements(made(GPU, EVERYTHING)["role"])

    base = "arn:aws:kms:us-east-1:111122223333"
    assert role["VolumeKey0"]["Resource"] == [f"{base}:key/{KEY}"]
    alias = role["DataKey0"]["Condition"]["ForAnyValue:StringEquals"]
    assert alias == {"kms:ResourceAliases": "alias/jobs"}
    alias = role["DataKey1"]["Condition"]["ForAnyValue:StringEquals"]
    assert alias == {"kms:ResourceAliases": "alias/artifacts"}
    assert role["Secrets"]["Resource"] == [
        "arn:aws:secretsmanager:us-east-1:111122223333:secret:hub/token-??????"
    ]
    assert role["Parameters"]["Resource"] == [
        "arn:aws:ssm:us-east-1:111122223333:parameter/team/other"
    ]
    assert (
        "arn:aws:ec2:us-east-1:111122223333:subnet/subnet-1"
        in (role["Interfaces"]["Resource"])
    )


def test_what_is_not_asked_for_is_not_allowed() -> None:
    """Without a VPC, keys and secrets there is nothing about them."""
    role = statements(made(GPU, BASE)["role"])

    assert set(role) == {
        "StoreObjects",
        "StoreNames",
        "Images",
        "Registry",
        "Logs",
        "Metrics",
    }


def test_images_are_those_of_the_jobs() -> None:
    """Repositories of the accounts that own them."""
    role = statements(made(GPU, BASE)["role"])

    assert role["Images"]["Resource"] == [
        "arn:aws:ecr:us-east-1:763104351884:repository/djl-inference",
        "arn:aws:ecr:us-east-1:763104351884:repository/huggingface-pytorch-inference",
    ]


def test_who_submits_may_pass_one_role_to_one_service() -> None:
    """And touch jobs of these names alone."""
    found = made(GPU, BASE)
    submitter = statements(found["submitter"])

    assert submitter["PassRole"]["Resource"] == [ROLE]
    assert submitter["PassRole"]["Condition"] == {
        "StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}
    }
    assert all(
        r.startswith("arn:aws:sagemaker:us-east-1:111122223333:")
        and r.split("/")[1].startswith("llama-3-1-8b-gptq")
        for r in submitter["Jobs"]["Resource"]
    )
    kinds = {r.split(":")[5].split("/")[0] for r in submitter["Jobs"]["Resource"]}
    assert kinds == {"processing-job", "training-job"}
    (trust,) = found["trust"]["Statement"]
    assert trust["Principal"] == {"Service": "sagemaker.amazonaws.com"}
    assert trust["Condition"]["StringEquals"] == {"aws:SourceAccount": "111122223333"}


def test_a_bucket_without_prefix_is_that_bucket() -> None:
    """Everything in it, and no condition on names."""
    plain = [value for value in BASE if "store" not in value]
    role = statements(made(GPU, (*plain, "job.store=s3://my-models"))["role"])

    assert role["StoreObjects"]["Resource"] == ["arn:aws:s3:::my-models/*"]
    assert "Condition" not in role["StoreNames"]
