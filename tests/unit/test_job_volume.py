"""Disk, memory and time of jobs, and the images and disks the catalogue knows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job_works import BASE, WHEEL, work_of
from lmi_build.catalog.images import image_uri, regions
from lmi_build.catalog.instances import instances
from lmi_build.catalog.job_images import default_image, job_images
from lmi_build.jobs.api_check import check_request
from lmi_build.jobs.render import render
from lmi_build.jobs.volume import DEFAULT_SECONDS, MAX_SECONDS, Demand
from lmi_build.sizing.build_hours import build_hours, stage_hours
from planned_models import RECIPES

GPU = RECIPES / "flan-t5-xl" / "none.tensorrt-llm.yaml"
METHODS = ("none", "rtn", "int8", "fp8", "smoothquant", "gptq", "awq")
BACKENDS = ("tensorrt-llm", "neuronx", "onnxruntime")


@given(
    st.integers(0, 10**12),
    st.integers(0, 10**12),
    st.sampled_from(METHODS),
    st.sampled_from(BACKENDS),
)
def test_stages_make_a_build(
    num_params: int, num_bytes: int, method: str, backend: str
) -> None:
    """Quantizing and compiling are the whole build; both count the copying."""

    def high(kind: str) -> float:
        found = stage_hours(
            kind,
            num_params=num_params,
            num_bytes=num_bytes,
            method=method,
            backend=backend,
        )
        assert found is not None
        return found.high

    whole = build_hours(
        num_params=num_params, num_bytes=num_bytes, method=method, backend=backend
    )
    assert whole is not None
    made = high("quantize") + high("compile") - high("fetch")
    assert made == pytest.approx(whole.high)


def test_what_nobody_knows_is_said() -> None:
    """A method or a backend that the table has not."""
    for kind, method, backend in (
        ("quantize", "other", "onnxruntime"),
        ("compile", "none", "other"),
    ):
        found = stage_hours(
            kind, num_params=1, num_bytes=1, method=method, backend=backend
        )
        assert found is None


@given(st.floats(0, 1e9))
def test_a_limit_is_whole_hours_within_the_api(seconds: float) -> None:
    """Longer than the stages, where the API allows it."""
    limit = Demand(
        disk_bytes=0, ram_bytes=0, ram_stage="", seconds=seconds
    ).max_runtime_seconds

    assert 3600 <= limit <= MAX_SECONDS
    assert limit % 3600 == 0
    assert limit > seconds or limit == MAX_SECONDS


def test_without_an_estimate_a_day() -> None:
    """As SageMaker's own default is."""
    unknown = Demand(disk_bytes=0, ram_bytes=0, ram_stage="", seconds=None)

    assert unknown.max_runtime_seconds == DEFAULT_SECONDS == 86_400


def test_images_of_the_catalogue_can_be_asked_for() -> None:
    """In every region, within the API's length."""
    for image in job_images().values():
        found = regions(image.tag, repository=image.repository)
        assert "us-east-1" in found
        for region in found:
            uri = image_uri(image.tag, region, repository=image.repository)
            request = {"AppSpecification": {"ImageUri": uri}}
            faults = check_request("CreateProcessingJob", request)
            assert not any(f.path == "AppSpecification.ImageUri" for f in faults)
    assert default_image().has("torch")
    assert not default_image().has("onnxruntime-genai")


def test_hosts_with_an_own_disk_have_its_size() -> None:
    """And it is no surprise to the catalogue's older column."""
    for row in instances().values():
        assert row.local_disk_gb is None or row.local_disk_gb > 0
        assert not row.own_disk or row.local_disk_gb is not None


def test_a_host_with_an_own_disk_takes_no_key_and_no_larger_volume() -> None:
    """A Processing request names a size within it; the key goes to other jobs alone."""
    work = work_of(GPU, (*BASE, "job.volume_kms_key_id=alias/volumes"))

    jobs = {job.label: job for job in render(work, wheel=WHEEL).graph.jobs}

    gpu, cpu = jobs["gpu"], jobs["cpu"]
    own = instances()[gpu.instance].local_disk_gb
    assert own is not None
    assert gpu.volume_size_gb is not None
    assert gpu.volume_size_gb <= own
    assert gpu.volume_kms_key_id is None
    assert any("takes no key" in reason for reason in gpu.reasons)
    assert cpu.volume_kms_key_id == "alias/volumes"


def test_a_release_that_needs_no_device_compiles_on_a_plain_host() -> None:
    """As a processing job, on a host with the memory, in the release's own image."""
    path = RECIPES / "llama-3.1-8b" / "none.neuronx.yaml"
    image = "111122223333.dkr.ecr.us-east-1.amazonaws.com/neuronx:0.34"
    more = ("compile.release=djl-neuronx-0.34.0", f"job.images.compile={image}")
    work = work_of(path, (*BASE, *more))

    graph = render(work, wheel=WHEEL).graph

    compile_job = next(job for job in graph.jobs if job.image == image)
    machine = instances()[compile_job.instance]
    assert compile_job.kind == "processing"
    assert machine.accelerator == "none"
    assert machine.memory_bytes > compile_job.ram_bytes
    assert "compiles without a device" in compile_job.reasons[0]
