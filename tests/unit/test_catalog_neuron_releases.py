"""Releases of the Neuron containers: what the data promises, and how it is refused."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from lmi_build.backends.neuronx.signatures import neuron_config_fields, signatures
from lmi_build.catalog import neuron_releases as module
from lmi_build.catalog.images import image_uri, regions
from lmi_build.catalog.instances import instances
from lmi_build.catalog.neuron_releases import (
    CONTAINERS,
    NeuronRelease,
    neuron_releases,
    newest_neuron,
)
from lmi_build.catalog.tables import read_named_row

if TYPE_CHECKING:
    from collections.abc import Mapping

RELEASES = list(neuron_releases().values())
LMI = [row for row in RELEASES if row.container == "djl-neuronx"]
VERSION = re.compile(r"\d+(\.\d+)+\Z")


def named(release: NeuronRelease) -> str:
    """Name of a test's parameter."""
    return release.name


def numbers(version: str) -> tuple[int, ...]:
    """A version as numbers."""
    return tuple(int(part) for part in version.split("."))


@pytest.mark.parametrize("release", RELEASES, ids=named)
def test_a_release_is_whole(release: NeuronRelease) -> None:
    """Versions are versions, the tag is that of the version and of the SDK."""
    pins = (
        release.version,
        release.sdk,
        release.neuronx_cc,
        release.torch_neuronx,
        release.torch,
        release.transformers,
        release.python,
    )
    assert all(VERSION.match(pin) for pin in pins), pins
    assert release.torch_neuronx.startswith(release.torch)
    assert release.name == f"{release.container}-{release.version}"
    assert release.published == bool(release.tag)
    assert not release.tag or f"sdk{release.sdk}" in release.tag
    assert release.loaders
    assert release.source


@pytest.mark.parametrize("release", RELEASES, ids=named)
def test_a_loader_has_its_library(release: NeuronRelease) -> None:
    """What a release loads with is installed in it; its layout is that library's."""
    libraries = {
        "tnx": release.transformers_neuronx,
        "optimum": release.optimum_neuron,
        "nxdi": release.nxdi,
        "trace": release.torch_neuronx,
    }
    assert all(libraries[loader] for loader in release.loaders)
    assert (release.layout in {"split", "presharded"}) == ("tnx" in release.loaders)
    assert (release.layout == "presharded") <= release.sharded_weights


@pytest.mark.parametrize("release", LMI, ids=named)
def test_what_a_release_says_of_its_library(release: NeuronRelease) -> None:
    """The catalogue agrees with the constructors of the version that is installed."""
    row = signatures()[release.tnx_row]

    assert release.cpu_compile == row.cpu_compile
    assert release.sharded_weights == row.sharded_weights
    assert release.continuous_field == row.continuous_field
    assert row.version == release.transformers_neuronx
    for field in release.options:
        assert field in neuron_config_fields(release.tnx_row)


@pytest.mark.parametrize("release", LMI, ids=named)
def test_keys_of_serving_properties(release: NeuronRelease) -> None:
    """Keys that every release reads, and those that came later."""
    always = {
        "tensor_parallel_degree",
        "max_rolling_batch_size",
        "n_positions",
        "context_length_estimate",
        "dtype",
        "quantize",
        "compiled_graph_path",
    }
    assert always <= set(release.properties)
    minor = numbers(release.version)[1]
    assert ("model_loader" in release.properties) == (minor >= 27)
    assert ("partition_schema" in release.properties) == (minor >= 27)
    assert ("rolling_batch_strategy" in release.properties) == (minor >= 27)
    assert ("shard_over_sequence" in release.properties) == (minor >= 30)
    # A key by another name, whose content becomes `on_device_embedding`.
    odd = "on_device_embedding_config" in release.properties
    assert odd == (minor in {28, 29})
    assert ("on_device_embedding" in release.options) == (minor == 27 or minor >= 30)
    assert release.context_buckets == (minor >= 29)


def test_releases_are_sorted_and_versions_rise() -> None:
    """Newest first within a container; no pin of a newer image is older."""
    for container in CONTAINERS:
        rows = [row for row in RELEASES if row.container == container]
        versions = [numbers(row.version) for row in rows]
        assert versions == sorted(versions, reverse=True)
        for newer, older in pairwise(rows):
            assert numbers(newer.neuronx_cc) >= numbers(older.neuronx_cc)
            assert numbers(newer.sdk) >= numbers(older.sdk)


def test_the_default_is_the_newest_that_lmi_documents() -> None:
    """Branches after 0.30 have no image."""
    assert newest_neuron().name == "djl-neuronx-0.30.0"
    assert newest_neuron().tag == "0.30.0-neuronx-sdk2.20.1"
    assert newest_neuron("huggingface-vllm-neuronx").optimum_neuron == "0.4.4"
    with pytest.raises(KeyError, match="djl-lmi"):
        newest_neuron("djl-lmi")
    assert {row.version for row in LMI if not row.published} == {
        "0.31.0",
        "0.32.0",
        "0.33.0",
        "0.34.0",
    }
    assert all(row.end_of_life for row in LMI)
    assert all(row.note for row in LMI if not row.published)


@pytest.mark.parametrize("release", RELEASES, ids=named)
def test_there_are_machines_and_an_image(release: NeuronRelease) -> None:
    """Its families are in the catalogue; a published tag has an address."""
    families = {name.split(".")[1] for name in instances()}

    assert set(release.families) <= families
    if release.published:
        where = regions(release.tag, repository=release.repository)
        assert "us-west-2" in where
        address = image_uri(release.tag, "us-west-2", repository=release.repository)
        assert address.endswith(f"/{release.repository}:{release.tag}")


@pytest.mark.parametrize("release", LMI, ids=named)
def test_where_packages_lie(release: NeuronRelease) -> None:
    """The path of packages is that of the image's Python."""
    assert release.site_packages == (
        f"/usr/local/lib/python{release.python}/dist-packages"
    )
    assert release.working_directory == "/tmp"  # noqa: S108 - of the image


def test_a_wrong_word_is_a_fault_of_the_package() -> None:
    """A word that no other part knows never gets past the reader."""
    good = {
        "container": "djl-neuronx",
        "version": "1.0.0",
        "repository": "djl-inference",
        "published": False,
        "sdk": "2.20",
        "neuronx_cc": "2.15",
        "torch_neuronx": "2.1",
        "torch": "2.1",
        "transformers": "4.45",
        "python": "3.10",
        "loaders": ["tnx"],
        "families": ["inf2"],
        "source": "a test",
    }

    def read(table: Mapping[str, object]) -> module.NeuronRelease:
        where = f"{module.FILE}: [x]"
        return read_named_row(
            module.NeuronRelease, "x", table, where=where, words=module._words
        )

    read(good)
    for key, value in (
        ("container", "djl"),
        ("layout", "flat"),
        ("loaders", ["vllm"]),
        ("options", {"fuse_qkv": "fuse_qkv"}),
    ):
        with pytest.raises(ValueError, match=rf"\[x\], `{key}` has"):
            read({**good, key: value})
