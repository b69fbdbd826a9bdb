"""
Requests as objects of the SageMaker SDK, against its real signatures.

`fixtures/sagemaker-sdk.json` holds the parameters of its classes, with whether each is
required, as read from the two packages; classes that take exactly those stand in here.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from lmi_build.errors import ToolMissing, Unsupported
from lmi_build.jobs import sdk
from lmi_build.jobs.request import PROCESSING_INPUT, PROCESSING_OUTPUT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FILE = Path(__file__).parents[1] / "fixtures" / "sagemaker-sdk.json"
SIGNATURES: dict[str, Any] = json.loads(FILE.read_text())
REQUEST: dict[str, Any] = {
    "ProcessingJobName": "tiny-cpu-0123456789ab",
    "RoleArn": "arn:aws:iam::123456789012:role/jobs",
    "AppSpecification": {
        "ImageUri": "123456789012.dkr.ecr.eu-west-1.amazonaws.com/tools:1",
        "ContainerEntrypoint": ["bash", f"{PROCESSING_INPUT}/job/sagemaker_entry.sh"],
    },
    "ProcessingInputs": [
        {
            "InputName": "job",
            "S3Input": {
                "S3Uri": "s3://bucket/store/inputs/00/",
                "LocalPath": f"{PROCESSING_INPUT}/job",
                "S3DataType": "S3Prefix",
                "S3InputMode": "File",
                "S3DataDistributionType": "FullyReplicated",
            },
        }
    ],
    "ProcessingResources": {
        "ClusterConfig": {
            "InstanceType": "ml.m5.xlarge",
            "InstanceCount": 2,
            "VolumeSizeInGB": 30,
        }
    },
    "ProcessingOutputConfig": {
        "Outputs": [
            {
                "OutputName": "report",
                "S3Output": {
                    "S3Uri": "s3://bucket/store/jobs/x/report",
                    "LocalPath": f"{PROCESSING_OUTPUT}/report",
                    "S3UploadMode": "EndOfJob",
                },
            }
        ],
        "KmsKeyId": "key",
    },
    "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
    "NetworkConfig": {
        "EnableNetworkIsolation": True,
        "EnableInterContainerTrafficEncryption": True,
        "VpcConfig": {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]},
    },
}


def stand_in(name: str, parameters: Mapping[str, bool]) -> type:
    """A class that takes exactly these keywords and keeps them."""

    def begin(self: Any, **given: Any) -> None:
        assert set(given) <= set(parameters), set(given) - set(parameters)
        missing = {n for n, required in parameters.items() if required} - set(given)
        assert not missing, missing
        self.given = given

    return type(name, (), {"__init__": begin})


def runs(parameters: Mapping[str, bool]) -> Callable[..., Any]:
    """A `run` that takes exactly these keywords."""
    made: Any = stand_in("Arguments", parameters)
    return lambda _self, **given: made(**given)


@pytest.fixture(params=["2", "3"])
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    found = SIGNATURES[request.param]
    for path, parameters in found["parameters"].items():
        home, _, name = path.rpartition(".")
        if name == "run":
            continue
        module = sys.modules.get(home)
        if module is None or not hasattr(module, "stands_in"):
            module = ModuleType(home)
            module.stands_in = True  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, home, module)
        made: Any = stand_in(name, parameters)
        if name == "Processor":
            made.run = runs(found["parameters"][f"{path}.run"])
        setattr(module, name, made)
    monkeypatch.setattr(metadata, "version", lambda _name: found["version"])
    return str(request.param)


def test_a_step_takes_the_whole_request(version: str) -> None:
    step = sdk.processing_step("build", REQUEST, session="s", depends_on=["other"])
    arguments = step.given["step_args"].given
    (came,), (left,) = arguments["inputs"], arguments["outputs"]

    assert step.given["name"] == "build"
    assert step.given["depends_on"] == ["other"]
    if version == "2":
        assert came.given["source"] == "s3://bucket/store/inputs/00/"
        assert left.given["destination"] == "s3://bucket/store/jobs/x/report"
    else:
        s3_input = came.given["s3_input"].given
        assert s3_input["s3_uri"] == "s3://bucket/store/inputs/00/"
        assert left.given["s3_output"].given["local_path"].endswith("/report")


@pytest.mark.usefixtures("version")
def test_a_processor_has_what_the_request_says() -> None:
    made = sdk.processor(REQUEST, session="s").given

    assert made["image_uri"] == REQUEST["AppSpecification"]["ImageUri"]
    assert (made["instance_count"], made["volume_size_in_gb"]) == (2, 30)
    assert made["max_runtime_in_seconds"] == 3600
    assert made["output_kms_key"] == "key"
    assert made["network_config"].given["subnets"] == ["subnet-1"]


@pytest.mark.usefixtures("version")
def test_a_training_request_is_refused() -> None:
    with pytest.raises(Unsupported) as error:
        sdk.processor({"TrainingJobName": "x"})

    assert error.value.code == "job.not-processing"


@pytest.mark.parametrize("found", [None, "1.72.0", "4.0.0"])
def test_no_sdk_is_said(monkeypatch: pytest.MonkeyPatch, found: str | None) -> None:
    def version(name: str) -> str:
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(ToolMissing) as error:
        sdk.processor(REQUEST)

    assert error.value.code == "job.no-sdk"
