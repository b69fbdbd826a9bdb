"""Options of `trtllm-build`: the data obeys what is known of the versions."""

from __future__ import annotations

from itertools import pairwise

import pytest
from packaging.version import Version

from lmi_build.catalog import trtllm_flags as module
from lmi_build.catalog.releases import releases
from lmi_build.catalog.trtllm_flags import KINDS, Flag, build_flags, fits, flag_rows

ROWS = flag_rows()


def test_rows_are_sorted_and_each_is_of_use() -> None:
    versions = [Version(row.version) for row in ROWS.values()]
    assert all(older < newer for older, newer in pairwise(versions))
    assert {row.flags for row in releases().values() if row.flags} == set(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_every_option_is_well_formed(row: str) -> None:
    for name, flag in build_flags(row).items():
        assert flag.name == name
        assert name.isidentifier()
        assert flag.kind in KINDS
        assert len(set(flag.choices)) == len(flag.choices)
        assert not set(flag.aliases) & set(build_flags(row))
        # A switch or a yes or no always has a state.
        assert flag.kind not in {"switch", "enable"} or flag.default is not None


def options(name: str) -> dict[str, Flag]:
    """One option in every row that has it."""
    return {row: flags[name] for row in ROWS if name in (flags := build_flags(row))}


def test_turning_points_are_where_the_release_notes_say() -> None:
    every = list(ROWS)

    def since(row: str) -> list[str]:
        return every[every.index(row) :]

    def until(row: str) -> list[str]:
        return every[: every.index(row) + 1]

    assert list(options("max_input_len")) == every
    assert list(options("max_output_len")) == until("0.11")
    assert list(options("max_seq_len")) == since("0.11")
    assert list(options("strongly_typed")) == until("0.10")
    assert list(options("weight_only_precision")) == until("0.10")
    assert list(options("use_custom_all_reduce")) == until("0.11")
    assert list(options("multi_block_mode")) == until("0.11")
    assert list(options("tp_size")) == ["0.9", "0.10", "0.11"]
    assert list(options("builder_opt")) == until("0.13")
    assert list(options("kv_cache_type")) == since("0.13")
    assert list(options("enable_xqa")) == until("0.15")
    assert list(options("auto_parallel")) == since("0.9")[:-1]


def test_defaults_change_where_the_release_notes_say() -> None:
    batch = {row: flag.default for row, flag in options("max_batch_size").items()}
    assert {batch[row] for row in ("0.8", "0.9", "0.10")} == {1}
    assert {batch[row] for row in ("0.11", "0.12", "0.13")} == {256}
    assert {batch[row] for row in ROWS if Version(row) >= Version("0.14")} == {2048}
    fused = {row: flag.kind for row, flag in options("use_fused_mlp").items()}
    assert fused["0.12"] == "switch"
    assert fused["0.13"] == "enable"
    blocks = {row: flag.default for row, flag in options("tokens_per_block").items()}
    assert [blocks[row] for row in ("0.9", "0.10", "0.18", "0.20")] == [128, 64, 64, 32]
    paged = options("use_paged_context_fmha")
    assert paged["0.18"].default == "disable"
    assert paged["0.20"].default == "enable"


def test_a_value_fits_its_option() -> None:
    flags = build_flags("0.16")
    assert fits(flags["max_seq_len"], 2048)
    assert not fits(flags["max_seq_len"], True)  # noqa: FBT003 - the law is about it
    assert not fits(flags["max_seq_len"], "2048")
    assert fits(flags["gemm_plugin"], "auto")
    assert not fits(flags["gemm_plugin"], "float64")
    assert fits(flags["context_fmha"], "disable")
    assert not fits(flags["context_fmha"], "off")
    assert fits(flags["fast_build"], True)  # noqa: FBT003
    assert fits(flags["output_dir"], "engine")


def test_faults_of_the_data_name_the_row() -> None:
    row = {"version": "1.0.0", "read": "run", "source": "a test"}
    base = {"0.1": module._row("0.1", {**row, "flags": {"a": {"kind": "int"}}}, {})}
    for table, words in (
        ({**row, "base": "0.0"}, "`base` is '0.0'"),
        ({**row, "base": "0.1", "removes": ["b"]}, "`removes` has 'b'"),
        ({**row, "base": "0.1", "flags": {"a": {"kind": "int"}}}, "says already"),
        ({**row, "read": "guessed"}, "`read` is 'guessed'"),
        ({**row, "flags": {"c": {"kind": "bool"}}}, "kind 'bool'"),
        ({**row, "flags": {"c": {"kind": "choice"}}}, "choices"),
        ({**row, "flags": {"c": {"kind": "int", "default": "1"}}}, "default '1'"),
        ({**row, "flags": {"c": {"kind": "int", "value": 1}}}, "unknown keys"),
    ):
        with pytest.raises(ValueError, match=r"trtllm_flags\.toml: \[0\.2\]") as caught:
            module._row("0.2", table, base)
        assert words in str(caught.value)


def test_a_row_takes_over_its_base() -> None:
    row = {"version": "1.0.0", "read": "run", "source": "a test"}
    flags = {"a": {"kind": "int"}, "b": {"kind": "str"}}
    older = module._row("0.1", {**row, "flags": flags}, {})
    newer = module._row(
        "0.2",
        {
            **row,
            "base": "0.1",
            "removes": ["b"],
            "flags": {"c": {"kind": "switch", "default": False}},
        },
        {"0.1": older},
    )
    assert list(newer.flags) == ["a", "c"]
    assert newer.flags["a"] == older.flags["a"]
