"""
The same jobs as a definition of SageMaker Pipelines.

Grammar: `Version`, `Metadata`, `Parameters` and `Steps`, each step with `Name`, `Type`,
`Arguments` (the request without the job's name, which Pipelines choose) and
`DependsOn`: Pipeline.to_request and Step.to_request in sagemaker/workflow of the
SageMaker SDK 2.245.0, whose `ProcessingStep` and `TrainingStep` leave the names out.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.jobs.graph import JobGraph
    from lmi_build.jobs.render import Rendered

VERSION = "2020-12-01"
STEP_TYPES = {"CreateProcessingJob": "Processing", "CreateTrainingJob": "Training"}
# Longer definitions have to come from S3.
MAX_INLINE_BYTES = 100 * 1024
_CHOSEN_BY_PIPELINES = ("ProcessingJobName", "TrainingJobName")


def pipeline_definition(rendered: Rendered) -> dict[str, Any]:
    """
    The definition of a pipeline.

    Its steps build the same stages into the same store; a step whose stages are there
    ends at once, so an execution that is started again goes on where one failed.

    Args:
        rendered: Jobs with their requests.
    """
    labels = {job.name: job.label for job in rendered.graph.jobs}
    steps = []
    for job, request in zip(rendered.graph.jobs, rendered.requests, strict=True):
        step: dict[str, Any] = {
            "Name": job.label,
            "Type": STEP_TYPES[request.operation],
            "DisplayName": job.name,
            "Description": "; ".join(job.reasons)[:3072],
            "Arguments": _arguments(request.document),
        }
        if job.after:
            step["DependsOn"] = [labels[name] for name in job.after]
        steps.append(step)
    return {"Version": VERSION, "Metadata": {}, "Parameters": [], "Steps": steps}


def _arguments(document: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in document.items() if k not in _CHOSEN_BY_PIPELINES}


def create_pipeline(rendered: Rendered, name: str, role_arn: str) -> dict[str, Any]:
    """
    The body of `CreatePipeline`, with the definition in it.

    Args:
        rendered: Jobs with their requests.
        name: Of the pipeline.
        role_arn: Role that starts the steps.
    """
    graph: JobGraph = rendered.graph
    return {
        "PipelineName": name,
        "PipelineDefinition": json.dumps(pipeline_definition(rendered)),
        "RoleArn": role_arn,
        "ParallelismConfiguration": {"MaxParallelExecutionSteps": graph.spec.max_jobs},
    }
