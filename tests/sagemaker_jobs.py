"""Jobs made by hand: what `job render` and `job submit` leave in S3, in a few lines."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import boto3

from lmi_build import api
from lmi_build.events import ignore
from lmi_build.execute.executor import execute
from lmi_build.jobs.simulation.job import simulate_job
from lmi_build.jobs.simulation.server import KEYS, REGION
from lmi_build.jobs.wheel import make_wheel
from lmi_build.plan.saved import plan_to_json
from lmi_build.sagemaker.entry import entry_script
from lmi_build.values.job import (
    ENTRY_FILE,
    JOB_FILE,
    PLAN_FILE,
    PROCESSING,
    JobDocument,
    job_to_json,
)
from lmi_build.values.settings import Settings
from make_tiny_model import make_tiny_model

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lmi_build.jobs.simulation.job import JobEnd
    from lmi_build.values.stage import Plan

BUCKET = "jobs-bucket"
STORE = f"s3://{BUCKET}/store"
# Twelve artifacts of one model: three ways to quantize it, four batch sizes.
MATRIX = """\
schema: lmi-build/v1
name: tiny
model: {source: ./model}
quantize:
  method: fp8
  granularity: tensor
  activations: static
  calibration: {num_samples: 2, max_seq_len: 32}
bounds: {max_input_len: 48, max_output_len: 16, max_batch_size: 4}
compile:
  backend: tensorrt-llm
  target: ml.g6.12xlarge
  release: djl-tensorrtllm-0.33.0
  artifact: hf-quantized
matrix:
  quantize.ignore: [[lm_head], [lm_head, "*.down_proj"], [lm_head, "*.o_proj"]]
  bounds.max_batch_size: [1, 2, 4, 8]
"""


# One of them.
SINGLE = MATRIX.partition("matrix:")[0]


def make_matrix(root: Path, text: str = MATRIX) -> Path:
    """A tiny model whose widths have kernels, and a recipe of it."""
    make_tiny_model(
        root / "model",
        num_key_value_heads=4,
        hidden_size=128,
        intermediate_size=256,
        tie_word_embeddings=False,
        dtype="float16",
    )
    recipe = root / "recipe.yaml"
    recipe.write_text(text)
    return recipe


# Of stages that read what is on the user's machine; the others run in the job.
LOCAL = ("fetch", "calibration")


def container_environment() -> dict[str, str]:
    """What an image on this machine would set: its Python, and credentials."""
    kept = {name: os.environ[name] for name in ("PATH",) if name in os.environ}
    return {
        **kept,
        **KEYS,
        "AWS_REGION": REGION,
        "LMI_BUILD_PYTHON": sys.executable,
        "LMI_BUILD_THREADS": "1",
    }


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A bucket, a machine that plans, and a scratch folder for hosts."""

    url: str
    root: Path

    @property
    def client(self) -> Any:
        """Of the server."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    @property
    def settings(self) -> Settings:
        """Of the machine that plans; the shared store is behind its own."""
        aws = {**KEYS, "AWS_REGION": REGION, "AWS_ENDPOINT_URL_S3": self.url}
        return Settings(
            cache_dir=self.root / "cache",
            store=STORE,
            threads=1,
            worker_environment={"PATH": container_environment()["PATH"]},
            secrets={"aws": aws},
        )

    def plan(self, recipe: Path) -> Plan:
        """Plan, and make what only this machine can make."""
        recipes = api.load_recipe(recipe)
        plan = api.make_plan(recipes, self.settings)
        local = tuple(stage for stage in plan.stages if stage.kind in LOCAL)
        store = api.open_store(self.settings)
        execute(
            replace(plan, stages=local),
            store=store,
            settings=self.settings,
            emit=ignore,
        )
        store.close()
        return plan

    def without_verify(self, plan: Plan) -> Plan:
        """The plan of the same artifacts, unmeasured: a quarter of the work."""
        return replace(
            plan,
            stages=tuple(s for s in plan.stages if s.kind != "verify"),
            artifacts=tuple(
                replace(
                    item,
                    stages={k: v for k, v in item.stages.items() if k != "verify"},
                )
                for item in plan.artifacts
            ),
        )

    def request(
        self, plan: Plan, *, name: str = "tiny-job", hosts: int = 1, **more: Any
    ) -> dict[str, Any]:
        """Upload the channel `job` and make the request that names it."""
        wheel = make_wheel()
        stages = tuple(s.key for s in plan.stages if s.kind not in LOCAL)
        document = JobDocument(
            **{
                "name": name,
                "kind": PROCESSING,
                "stages": stages,
                "store": STORE,
                "wheel": wheel.name,
                "endpoint_url": self.url,
                "num_hosts": hosts,
                "max_runtime_seconds": 600,
                **more,
            }
        )
        channel = {
            JOB_FILE: json.dumps(job_to_json(document)).encode(),
            PLAN_FILE: json.dumps(plan_to_json(plan)).encode(),
            wheel.name: wheel.data,
            ENTRY_FILE: entry_script(),
        }
        for file, data in channel.items():
            self.client.put_object(
                Bucket=BUCKET, Key=f"store/inputs/{name}/{file}", Body=data
            )
        return request_of(document, hosts=hosts)

    def run(self, request: Mapping[str, Any], **more: Any) -> JobEnd:
        """Run a Processing job."""
        return simulate_job(
            more.pop("kind", PROCESSING),
            request,
            client=self.client,
            environment={**container_environment(), **more.pop("environment", {})},
            scratch=self.root / "hosts",
            **more,
        )

    def empty(self, prefix: str) -> None:
        """Remove what lies below a prefix of the bucket."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=BUCKET, Prefix=prefix
        )
        for page in pages:
            for row in page.get("Contents", ()):
                self.client.delete_object(Bucket=BUCKET, Key=row["Key"])

    def keys(self, prefix: str) -> set[str]:
        """Keys of the bucket below a prefix of the store."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=BUCKET, Prefix=f"store/{prefix}"
        )
        return {r["Key"][6:] for page in pages for r in page.get("Contents", ())}

    def read(self, key: str) -> bytes:
        """An object of the store."""
        answer = self.client.get_object(Bucket=BUCKET, Key=f"store/{key}")
        data: bytes = answer["Body"].read()
        return data


def request_of(document: JobDocument, *, hosts: int) -> dict[str, Any]:
    """The smallest request of a job."""
    channel = f"{STORE}/inputs/{document.name}/"
    entry = f"/opt/ml/processing/input/job/{ENTRY_FILE}"
    return {
        "ProcessingJobName": document.name,
        "RoleArn": "arn:aws:iam::000000000000:role/tests",
        "AppSpecification": {
            "ImageUri": "local",
            "ContainerEntrypoint": ["bash", entry],
        },
        "ProcessingResources": {
            "ClusterConfig": {
                "InstanceCount": hosts,
                "InstanceType": "ml.m5.xlarge",
                "VolumeSizeInGB": 30,
            }
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": document.max_runtime_seconds},
        "ProcessingInputs": [
            {
                "InputName": "job",
                "S3Input": {
                    "S3Uri": channel,
                    "LocalPath": "/opt/ml/processing/input/job",
                    "S3DataType": "S3Prefix",
                    "S3InputMode": "File",
                },
            }
        ],
        "ProcessingOutputConfig": {
            "Outputs": [
                {
                    "OutputName": "report",
                    "S3Output": {
                        "S3Uri": f"{STORE}/reports/{document.name}",
                        "LocalPath": "/opt/ml/processing/output/report",
                        "S3UploadMode": "EndOfJob",
                    },
                }
            ]
        },
    }
