"""Releases of TensorRT-LLM and its LMI images: the data obeys what is known of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from packaging.version import Version

from lmi_build.catalog import releases as module
from lmi_build.catalog.releases import BOUNDS, CONTAINERS, newest, release, releases
from lmi_build.catalog.tables import read_named_row
from lmi_build.catalog.trtllm_flags import build_flags, flag_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

# What a line of serving.properties can have before its `=`, after `option.`.
KEY = re.compile(r"[a-z][a-z0-9_]*\Z")
ROWS = list(releases().values())


@pytest.mark.parametrize("container", CONTAINERS)
def test_releases_are_sorted_from_the_newest(container: str) -> None:
    rows = [row for row in ROWS if row.container == container]
    versions = [Version(row.lmi or row.trtllm) for row in rows]
    assert versions == sorted(versions, reverse=True)
    assert len(set(versions)) == len(versions)


def test_newest_is_published_and_has_a_tag() -> None:
    assert newest().name == "djl-tensorrtllm-0.33.0"
    assert newest().tag == "0.33.0-tensorrtllm0.21.0-cu128"
    assert all(newest(container).published for container in CONTAINERS)
    with pytest.raises(KeyError):
        newest("djl-lmi")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_names_tags_and_versions_agree(row: module.Release) -> None:
    assert row.name == f"{row.container}-{row.lmi or row.trtllm}"
    assert release(row.name) is row
    image = row.container == "djl-tensorrtllm"
    assert bool(row.lmi) is image
    assert bool(row.tag) is (image and row.published)
    assert bool(row.layout) is image
    assert (row.builder == "trtllm-build") is not image
    if row.image:
        assert not image
        assert row.image.rpartition(":")[2] == row.trtllm
        assert Version(row.trtllm) >= Version("0.20")
    if row.tag:
        lmi, _, rest = row.tag.partition("-tensorrtllm")
        assert lmi == row.lmi
        # A tag may say the release that a candidate leads to.
        assert rest.partition("-cu")[0] == Version(row.trtllm).base_version


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_release_builds_engines_if_and_only_if_it_has_options(
    row: module.Release,
) -> None:
    assert bool(row.flags) is ("engine" in row.artifacts)
    if row.flags:
        version = Version(row.trtllm)
        known = Version(flag_rows()[row.flags].version)
        assert build_flags(row.flags)
        assert version.release[:2] == known.release[:2]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_layouts_follow_the_version_of_the_image(row: module.Release) -> None:
    if row.published and row.layout:
        assert row.layout == ("triton" if Version(row.lmi).minor <= 32 else "engine")
        assert row.builder == ("toolkit" if row.layout == "triton" else "llmapi")
    # The PyTorch backend came with 0.17.
    served = "hf-quantized" in row.artifacts
    assert served is (Version(row.trtllm).release >= (0, 17))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_properties_are_keys_that_a_file_can_hold(row: module.Release) -> None:
    assert set(row.properties) <= set(BOUNDS)
    assert all(KEY.match(key) for key in row.properties.values())
    assert len(set(row.properties.values())) == len(row.properties)
    assert bool(row.properties) is (row.published and row.layout != "")
    # One of the two says how long an answer may be; no release reads both.
    if row.properties:
        assert ("max_output_len" in row.properties) is not (
            "max_seq_len" in row.properties
        )


def test_keys_that_a_release_ignores_are_absent() -> None:
    last = release("djl-tensorrtllm-0.33.0").properties
    assert "max_output_len" not in last
    assert last["max_batch_size"] == "max_rolling_batch_size"
    before = release("djl-tensorrtllm-0.32.0").properties
    # The old name with the new meaning: prompt and answer together.
    assert before["max_seq_len"] == "max_output_len"
    assert "max_beam_width" not in before


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_gpus_are_those_of_the_support_matrix(row: module.Release) -> None:
    capabilities = row.compute_capabilities
    numbers = [tuple(map(int, item.split("."))) for item in capabilities]
    assert numbers == sorted(numbers, reverse=True)
    # T4 went with 0.15, Blackwell came with 0.17.
    version = Version(row.trtllm).release
    assert ("7.5" in capabilities) is (version < (0, 15))
    assert ("10.0" in capabilities) is (version >= (0, 17))


def test_a_wrong_word_is_refused_with_file_and_table() -> None:
    good = {
        "container": "tensorrt-llm",
        "trtllm": "1.0.0",
        "builder": "trtllm-build",
        "source": "a test",
        "flags": "",
        "artifacts": [],
        "compute_capabilities": [],
        "published": False,
    }

    def read(table: Mapping[str, object]) -> module.Release:
        where = f"{module.FILE}: [x]"
        return read_named_row(
            module.Release, "x", table, where=where, words=module._words
        )

    read(good)
    for key, value in (
        ("container", "djl"),
        ("layout", "t"),
        ("artifacts", ["gguf"]),
        ("properties", {"length": "max_seq_len"}),
    ):
        with pytest.raises(ValueError, match=rf"releases\.toml: \[x\], `{key}` has"):
            read({**good, key: value})
