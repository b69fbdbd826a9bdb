"""SageMaker instance types: the names are SageMaker's, the numbers hold together."""

from __future__ import annotations

import re

import botocore.session
import pytest
from moto.ec2.models.instance_types import INSTANCE_TYPES

from lmi_build.catalog import instances as module
from lmi_build.catalog.instances import (
    GIB,
    MIB,
    USES,
    Instance,
    instance,
    instances,
    use_problem,
)

ROWS = list(instances().values())
# Host memory in GiB for each vCPU, by the letter of a family without a device.
GIB_PER_VCPU = {"c": 2, "m": 4, "r": 8}


def known_names() -> set[str]:
    """Instance types of SageMaker's API, for endpoints, training and processing."""
    model = botocore.session.get_session().get_service_model("sagemaker")
    shapes = (
        "ProductionVariantInstanceType",
        "TrainingInstanceType",
        "ProcessingInstanceType",
    )
    return {name for shape in shapes for name in model.shape_for(shape).enum}


def test_every_name_is_one_of_sagemaker() -> None:
    assert set(instances()) <= known_names()


def test_no_size_of_a_listed_accelerator_is_missing() -> None:
    families = {row.name.split(".")[1] for row in ROWS if row.accelerator != "none"}
    listed = {name for name in known_names() if name.split(".")[1] in families}
    assert listed <= set(instances())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_instance_holds_together(row: Instance) -> None:
    has_device = row.accelerator != "none"
    assert has_device is (row.num_devices > 0)
    assert has_device is bool(row.device)
    assert has_device is (row.device_memory_bytes > 0)
    assert has_device is (row.num_cores > 0)
    assert (row.accelerator == "gpu") is bool(row.compute_capability)
    assert row.num_vcpus > 0
    assert row.memory_bytes >= 8 * GIB
    family = row.name.split(".")[1]
    if not has_device:
        assert row.memory_bytes == row.num_vcpus * GIB_PER_VCPU[family[0]] * GIB


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_numbers_are_those_of_ec2(row: Instance) -> None:
    """EC2's own answers to DescribeInstanceTypes, as moto ships them."""
    found = INSTANCE_TYPES[row.name.removeprefix("ml.")]
    assert row.num_vcpus == found["VCpuInfo"]["DefaultVCpus"]
    assert row.memory_bytes == found["MemoryInfo"]["SizeInMiB"] * MIB
    if row.accelerator != "none":
        words = found["NetworkInfo"]["NetworkPerformance"]
        said = re.fullmatch(r"(?:Up to )?(?:(\d+)x )?([\d.]+) Gigabit", words)
        assert said is not None
        assert row.network_gbps == int(said[1] or 1) * float(said[2])
    devices = [
        *found.get("GpuInfo", {}).get("Gpus", ()),
        *found.get("NeuronInfo", {}).get("NeuronDevices", ()),
    ]
    assert len(devices) == (row.accelerator != "none")
    for device in devices:
        assert row.device == device["Name"]
        assert row.num_devices == device["Count"]
        # EC2 gives a Trainium2 512 GiB, and counts its physical cores.
        if row.device != "Trainium2":
            assert row.device_memory_bytes == device["MemoryInfo"]["SizeInMiB"] * MIB
            assert row.cores_per_device == device.get("CoreInfo", {}).get("Count", 1)


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("ml.g4dn.xlarge", "7.5"),
        ("ml.g5.xlarge", "8.6"),
        ("ml.g6.xlarge", "8.9"),
        ("ml.g6e.xlarge", "8.9"),
        ("ml.p4d.24xlarge", "8.0"),
        ("ml.p4de.24xlarge", "8.0"),
        ("ml.p5.48xlarge", "9.0"),
        ("ml.p5e.48xlarge", "9.0"),
        ("ml.p5en.48xlarge", "9.0"),
        ("ml.p6-b200.48xlarge", "10.0"),
        ("ml.p6-b300.48xlarge", "10.3"),
        ("ml.g7.2xlarge", "12.0"),
        ("ml.g7e.2xlarge", "12.0"),
    ],
)
def test_compute_capabilities_are_those_of_the_vendor(
    name: str, capability: str
) -> None:
    assert instance(name).compute_capability == capability


def test_cores_are_what_a_model_can_be_split_into() -> None:
    assert instance("ml.inf2.48xlarge").num_cores == 24
    assert instance("ml.trn1.32xlarge").num_cores == 32
    assert instance("ml.g5.12xlarge").num_cores == 4


def test_a_name_may_lack_its_prefix() -> None:
    assert instance("g5.xlarge") is instance("ml.g5.xlarge")
    with pytest.raises(KeyError):
        instance("ml.g5.3xlarge")


def test_faults_of_the_data_name_the_family() -> None:
    good = {
        "accelerator": "none",
        "source": "a test",
        "sizes": {"xlarge": [0, 4, 8]},
        "uses": ["training"],
    }
    where = "instances.toml: [c9]"
    assert module.family_rows("c9", good, where=where)[0].name == "ml.c9.xlarge"
    for table, words in (
        ({**good, "accelerator": "tpu"}, '`accelerator` is "tpu"'),
        ({**good, "sizes": {"xlarge": [0, 4]}}, "`sizes.xlarge` has 2 numbers"),
        ({**good, "sizes": {"xlarge": [0, 4, 7.5]}}, "`sizes`"),
        ({**good, "vcpus": 4}, "unknown keys"),
        ({**good, "uses": ["cooking"]}, "`uses` has ['cooking']"),
        ({**good, "sizes": {"xlarge": [1, 4, 8]}}, "`sizes.xlarge` is [1, 4, 8]"),
        ({**good, "sizes": {"xlarge": [0, 0, 8]}}, "`sizes.xlarge` is [0, 0, 8]"),
        (
            {**good, "accelerator": "gpu", "sizes": {"xlarge": [1, 4, 8]}},
            "`device_memory_mib` is 0",
        ),
        ({**good, "network_gbps": {"2xlarge": 5}}, "`network_gbps` has ['2xlarge']"),
    ):
        with pytest.raises(ValueError, match=r"instances\.toml: \[c9\]") as caught:
            module.family_rows("c9", table, where=where)
        assert words in str(caught.value)


_SHAPES = {
    "processing": "ProcessingInstanceType",
    "training": "TrainingInstanceType",
    "transform": "TransformInstanceType",
    "optimization": "OptimizationJobDeploymentInstanceType",
    "endpoint": "ProductionVariantInstanceType",
}


@pytest.mark.parametrize("use", USES)
def test_uses_are_those_of_the_api(use: str) -> None:
    """SageMaker's own lists, for every instance of ours."""
    model = botocore.session.get_session().get_service_model("sagemaker")
    allowed = set(model.shape_for(_SHAPES[use]).enum)

    assert {row.name for row in ROWS if use in row.uses} == allowed & set(instances())


def test_inferentia_runs_no_job_that_compiles() -> None:
    """The numbers of a Processing job are no place for it; the way out is Trainium."""
    processing = use_problem("ml.inf2.24xlarge", "processing", path="job.instance")
    training = use_problem("ml.inf2.24xlarge", "training", path="job.instance")

    assert processing is not None
    assert "training" in processing.hint
    assert training is not None
    assert "ml.trn1" in training.hint
    assert processing.unsupported
    assert use_problem("ml.trn1.32xlarge", "training", path="job.instance") is None
    with pytest.raises(ValueError, match="none of"):
        use_problem("ml.trn1.32xlarge", "cooking", path="job.instance")
