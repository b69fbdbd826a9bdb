"""Laws of choosing the files of a data set: deterministic, enough, the train split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmi_build.errors import SourceInvalid
from lmi_build.sources.dataset_choice import byte_budget, choose_files

LARGE = 1 << 30


def taken(names: list[str], path: str = "", *, budget: int = LARGE) -> list[str]:
    """What is chosen of files of a hundred bytes."""
    sizes = dict.fromkeys(names, 100)
    return list(choose_files(sizes, path, repo="a/b", budget=budget)[0])


@pytest.mark.parametrize(
    ("names", "path", "wanted"),
    [
        # Shards of one split, as the hub lays them out.
        (
            ["data/test-0.parquet", "data/train-1.parquet", "data/train-0.parquet"],
            "",
            ["data/train-0.parquet", "data/train-1.parquet"],
        ),
        # A split's name may go on.
        (
            ["data/train_sft-0.parquet", "data/test_sft-0.parquet"],
            "",
            ["data/train_sft-0.parquet"],
        ),
        # Several configurations: the first folder by name, not a mixture.
        (
            ["wiki-2/train-0.parquet", "wiki-103/train-0.parquet"],
            "",
            ["wiki-103/train-0.parquet"],
        ),
        # Files at the top go before folders; JSONL goes before Parquet.
        (["x/train.jsonl", "train.parquet", "train.jsonl"], "", ["train.jsonl"]),
        # No split is named: everything but what names another one.
        (["rows.jsonl", "validation.jsonl"], "", ["rows.jsonl"]),
        # Only another split is there.
        (["test.csv"], "", ["test.csv"]),
        # `training` in a longer word is no split.
        (["constraints.jsonl", "train.jsonl"], "", ["train.jsonl"]),
        # Papers of the repository and hidden files are no data.
        (["README.md", "dataset_infos.json", ".x/a.jsonl", "a.txt"], "", ["a.txt"]),
        # Named files, folders and patterns.
        (["README.md", "a.jsonl"], "README.md", ["README.md"]),
        (["en/train.json.gz", "de/train.json.gz"], "en", ["en/train.json.gz"]),
        (
            ["d/train_gen-0.parquet", "d/train_sft-0.parquet"],
            "d/train_sft-*",
            ["d/train_sft-0.parquet"],
        ),
        (["d/test-0.parquet", "d/train-0.parquet"], "d/test-*", ["d/test-0.parquet"]),
        (["d/[a]-0.txt", "d/a-0.txt"], "d/[a]-*", ["d/[a]-0.txt"]),
    ],
)
def test_the_files_that_are_taken(
    names: list[str], path: str, wanted: list[str]
) -> None:
    """One example for each rule of the table in the module."""
    assert taken(names, path) == wanted


@pytest.mark.parametrize(
    ("names", "path", "part"),
    [
        (["model.bin"], "", "`model.bin`"),
        ([], "", "nothing"),
        (["a.jsonl"], "b", "`a.jsonl`"),
        (["a.zip", "b.jsonl"], "a.zip", "no format that is read"),
        ([f"{i}.jsonl" for i in range(9)], "x*", "and 3 more"),
    ],
)
def test_nothing_to_read_names_what_is_there(
    names: list[str], path: str, part: str
) -> None:
    """The message lists files of the repository; a script's branch is a hint."""
    with pytest.raises(SourceInvalid) as caught:
        taken(names, path)

    assert caught.value.code == "calibration.no-data-files"
    assert part in caught.value.message
    converted = any("refs/convert/parquet" in hint for hint in caught.value.hints)
    assert converted == (not any(name.endswith(".jsonl") for name in names))


@given(
    sizes=st.dictionaries(
        st.integers(0, 99).map(lambda i: f"data/train-{i:05}.jsonl"),
        st.integers(1, 50),
        min_size=1,
    ),
    budget=st.integers(1, 500),
)
def test_no_more_files_than_the_budget_needs(
    sizes: dict[str, int], budget: int
) -> None:
    """The first files by name; without the last one the budget is not reached."""
    chosen, offered = choose_files(sizes, "", repo="a/b", budget=budget)

    assert list(offered) == sorted(sizes)
    assert chosen == offered[: len(chosen)]
    assert sum(sizes[name] for name in chosen[:-1]) < budget
    assert len(chosen) == len(offered) or sum(map(sizes.get, chosen)) >= budget  # type: ignore[arg-type]


def test_an_empty_file_is_no_data() -> None:
    """A marker of a tool holds nothing."""
    found, _ = choose_files(
        {"train.jsonl": 0, "train-1.jsonl": 5}, "", repo="a/b", budget=9
    )

    assert found == ("train-1.jsonl",)


def test_the_budget_grows_with_what_is_drawn() -> None:
    """64 bytes a token, and never less than a few megabytes."""
    assert byte_budget(1) == 4 << 20
    assert byte_budget(1 << 20) == 64 << 20
