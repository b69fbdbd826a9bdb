"""
Rendered requests as objects of the SageMaker Python SDK, for those who live in it.

```python
rendered = render(gather(load_many([Path("recipe.yaml")]), settings))
request = rendered.requests[0].document
step = processing_step("build", request, session=PipelineSession())
```

The SDK is not a dependency; whichever of its versions 2 and 3 is installed is used. A
`Processor` made here sends the request that was rendered, and nothing else: `run` it
with `run_arguments`, or give what `run` returns in a `PipelineSession` to a step.

Source: `sagemaker` 2.257.7, `processing.py`, `network.py`, `workflow/steps.py`;
`sagemaker-core` 2.27.0 of `sagemaker` 3.27.0, `processing.py`, `network.py`, `shapes`;
`sagemaker-mlops` 1.27.0, `workflow/steps.py`.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

from lmi_build.errors import ToolMissing, Unsupported

if TYPE_CHECKING:
    from collections.abc import Mapping

DISTRIBUTION = "sagemaker"
# Version to the modules of processors, networks, steps and shapes of requests.
_HOMES = {
    2: {
        "processing": "sagemaker.processing",
        "network": "sagemaker.network",
        "steps": "sagemaker.workflow.steps",
    },
    3: {
        "processing": "sagemaker.core.processing",
        "network": "sagemaker.core.network",
        "steps": "sagemaker.mlops.workflow.steps",
        "shapes": "sagemaker.core.shapes",
    },
}


def sdk_version() -> int:
    """
    Major version of the installed SDK.

    Raises:
        ToolMissing: `job.no-sdk`: there is none, or one that is not known here.
    """
    try:
        found = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError as error:
        raise _no_sdk("the SageMaker Python SDK is not installed") from error
    major = int(found.partition(".")[0])
    if major not in _HOMES:
        raise _no_sdk(f"version {found} of the SageMaker Python SDK is not known")
    return major


def _no_sdk(why: str) -> ToolMissing:
    return ToolMissing(
        why,
        code="job.no-sdk",
        hints=(
            "install one: `pip install 'sagemaker>=2.200'`",
            "or take the request alone: `lmi-build job render RECIPE --out DIR`",
        ),
    )


def processor(request: Mapping[str, Any], *, session: Any = None) -> Any:
    """
    A `Processor` that has everything of a request but its inputs and outputs.

    Args:
        request: Of CreateProcessingJob.
        session: Of the SDK; None lets it make one.

    Raises:
        ToolMissing: `job.no-sdk`.
        Unsupported: `job.not-processing`: the request is of another kind of job.
    """
    version = sdk_version()
    network = request.get("NetworkConfig")
    made = None
    if network is not None:
        made = _home(version, "network").NetworkConfig(**network_arguments(network))
    return _home(version, "processing").Processor(
        **processor_arguments(request), network_config=made, sagemaker_session=session
    )


def run_arguments(request: Mapping[str, Any]) -> dict[str, Any]:
    """
    What `Processor.run` is called with to send the request.

    Raises:
        ToolMissing: `job.no-sdk`.
        Unsupported: `job.not-processing`.
    """
    _refuse_other_kinds(request)
    version = sdk_version()
    inputs = request.get("ProcessingInputs", ())
    outputs = request.get("ProcessingOutputConfig", {}).get("Outputs", ())
    if version == 2:  # noqa: PLR2004 - the SDK's
        home = _home(version, "processing")
        return {
            "inputs": [home.ProcessingInput(**input_arguments(i)) for i in inputs],
            "outputs": [home.ProcessingOutput(**output_arguments(o)) for o in outputs],
        }
    shapes = _home(version, "shapes")
    return {
        "inputs": [
            shapes.ProcessingInput(
                input_name=row["InputName"],
                s3_input=shapes.ProcessingS3Input(**_snake(row["S3Input"])),
                app_managed=False,
            )
            for row in inputs
        ],
        "outputs": [
            shapes.ProcessingOutput(
                output_name=row["OutputName"],
                s3_output=shapes.ProcessingS3Output(**_snake(row["S3Output"])),
                app_managed=False,
            )
            for row in outputs
        ],
    }


def processing_step(
    name: str, request: Mapping[str, Any], *, session: Any, **step: Any
) -> Any:
    """
    A `ProcessingStep` of SageMaker Pipelines.

    Args:
        name: The step's.
        request: Of CreateProcessingJob.
        session: A `PipelineSession`.
        step: Further arguments of `ProcessingStep`, such as `depends_on`.

    Raises:
        ToolMissing: `job.no-sdk`.
        Unsupported: `job.not-processing`.
    """
    made = processor(request, session=session)
    arguments = made.run(**run_arguments(request))
    steps = _home(sdk_version(), "steps")
    return steps.ProcessingStep(name=name, step_args=arguments, **step)


def processor_arguments(request: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `Processor` in both versions, but session and network."""
    _refuse_other_kinds(request)
    cluster = request["ProcessingResources"]["ClusterConfig"]
    outputs = request.get("ProcessingOutputConfig", {})
    stopping = request.get("StoppingCondition", {})
    return {
        "role": request["RoleArn"],
        "image_uri": request["AppSpecification"]["ImageUri"],
        "entrypoint": request["AppSpecification"].get("ContainerEntrypoint"),
        "instance_count": cluster["InstanceCount"],
        "instance_type": cluster["InstanceType"],
        "volume_size_in_gb": cluster["VolumeSizeInGB"],
        "volume_kms_key": cluster.get("VolumeKmsKeyId"),
        "output_kms_key": outputs.get("KmsKeyId"),
        "max_runtime_in_seconds": stopping.get("MaxRuntimeInSeconds"),
        "base_job_name": request["ProcessingJobName"],
        "env": request.get("Environment"),
        "tags": request.get("Tags"),
    }


def network_arguments(network: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `NetworkConfig` in both versions."""
    vpc = network.get("VpcConfig", {})
    encrypt = network.get("EnableInterContainerTrafficEncryption")
    return {
        "enable_network_isolation": network.get("EnableNetworkIsolation"),
        "encrypt_inter_container_traffic": encrypt,
        "security_group_ids": vpc.get("SecurityGroupIds"),
        "subnets": vpc.get("Subnets"),
    }


def input_arguments(row: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of version 2's `ProcessingInput`."""
    found = row["S3Input"]
    return {
        "source": found["S3Uri"],
        "destination": found["LocalPath"],
        "input_name": row["InputName"],
        "s3_data_type": found["S3DataType"],
        "s3_input_mode": found["S3InputMode"],
        "s3_data_distribution_type": found["S3DataDistributionType"],
    }


def output_arguments(row: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of version 2's `ProcessingOutput`."""
    found = row["S3Output"]
    return {
        "source": found["LocalPath"],
        "destination": found["S3Uri"],
        "output_name": row["OutputName"],
        "s3_upload_mode": found["S3UploadMode"],
    }


_SNAKE = {
    "S3Uri": "s3_uri",
    "LocalPath": "local_path",
    "S3DataType": "s3_data_type",
    "S3InputMode": "s3_input_mode",
    "S3DataDistributionType": "s3_data_distribution_type",
    "S3UploadMode": "s3_upload_mode",
}


def _snake(row: Mapping[str, Any]) -> dict[str, Any]:
    """Members of a request under the names of version 3's shapes."""
    return {_SNAKE[name]: value for name, value in row.items()}


def _refuse_other_kinds(request: Mapping[str, Any]) -> None:
    if "ProcessingJobName" not in request:
        raise Unsupported(
            "the request is not one of a processing job",
            code="job.not-processing",
            hints=(
                (
                    "a pipeline of all kinds of jobs: `lmi-build job render RECIPE"
                    " --pipeline --out DIR`"
                ),
                "or create it with boto3: the request is whole",
            ),
        )


def _home(version: int, name: str) -> Any:
    return importlib.import_module(_HOMES[version][name])
