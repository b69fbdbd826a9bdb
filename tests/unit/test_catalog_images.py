"""Where the images are: names that a registry could have, by region."""

from __future__ import annotations

import re

import botocore.session
import pytest

from lmi_build.catalog.images import image_uri, regions, registries
from lmi_build.catalog.neuron_releases import newest_neuron
from lmi_build.catalog.releases import newest

URI = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.(?P<suffix>[a-z0-9.-]+)"
    r"/djl-inference:(?P<tag>[\w.-]{1,128})\Z"
)


@pytest.mark.parametrize("region", regions(newest().tag))
def test_every_region_gives_an_image(region: str) -> None:
    found = URI.match(image_uri(newest().tag, region))
    assert found is not None
    assert found["region"] == region
    assert found["tag"] == newest().tag


def test_the_suffix_is_that_of_the_partition() -> None:
    loader = botocore.session.get_session().get_component("data_loader")
    partitions = loader.load_data("endpoints")["partitions"]
    suffixes = {
        region: partition["dnsSuffix"]
        for partition in partitions
        for region in partition["regions"]
    }
    for region, registry in registries().items():
        # A region younger than the endpoints of this botocore says nothing.
        assert registry.suffix == suffixes.get(region, registry.suffix)
    assert sum(region in suffixes for region in regions()) > 30


def test_accounts_differ_where_a_region_is_opted_in() -> None:
    assert registries()["us-east-1"].account == "763104351884"
    assert registries()["eu-south-1"].account == "692866216735"
    assert image_uri("t", "cn-north-1") == (
        "727897471807.dkr.ecr.cn-north-1.amazonaws.com.cn/djl-inference:t"
    )


def test_a_region_may_lack_one_kind_of_image() -> None:
    young = "ap-southeast-6"
    assert young in regions()
    assert young in regions("0.38.0-lmi29.0.0-cu130")
    assert young not in regions(newest().tag)
    assert image_uri("0.38.0-lmi29.0.0-cu130", young)
    with pytest.raises(KeyError, match=young):
        image_uri(newest().tag, young)


def test_an_unknown_region_or_repository_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="us-east-9"):
        image_uri("t", "us-east-9")
    with pytest.raises(KeyError, match="other"):
        registries("other")


def test_another_repository_has_regions_of_its_own() -> None:
    newest_vllm = newest_neuron("huggingface-vllm-neuronx")
    name = newest_vllm.repository

    assert image_uri(newest_vllm.tag, "us-west-2", repository=name) == (
        "763104351884.dkr.ecr.us-west-2.amazonaws.com/"
        "huggingface-vllm-inference-neuronx:"
        "0.11.0-optimum0.4.4-neuronx-py310-sdk2.26.1-ubuntu22.04"
    )
    assert len(regions(repository=name)) == 11
    with pytest.raises(KeyError, match="eu-south-1"):
        image_uri(newest_vllm.tag, "eu-south-1", repository=name)
