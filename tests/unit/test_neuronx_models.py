"""Model types by loader: the data, what a release has, and what is said else."""

from __future__ import annotations

import pytest

from lmi_build.backends.neuronx import models as module
from lmi_build.backends.neuronx.models import (
    LoaderModel,
    known,
    library_version,
    model_problems,
    neuron_models,
)
from lmi_build.catalog.neuron_releases import LOADERS, NeuronRelease, neuron_releases

RELEASES = list(neuron_releases().values())
NEWEST = neuron_releases()["djl-neuronx-0.30.0"]
TNX = {"bloom", "gpt2", "gptj", "gpt_neox", "llama", "mistral", "mixtral", "opt"}


def test_transformers_neuronx_has_eight_types() -> None:
    """Those of its automatic class, and no others."""
    assert {n for n, row in neuron_models().items() if "tnx" in row.loaders} == TNX


def test_two_of_them_cannot_be_saved() -> None:
    """The old base class has no `save`, so nothing can be compiled ahead."""
    unsaved = {n for n in TNX if not neuron_models()[n].loaders["tnx"].serialized}

    assert unsaved == {"gptj", "gpt_neox"}
    for name in unsaved:
        (problem,) = model_problems(name, "tnx", NEWEST)
        assert "cannot be saved" in problem.message


@pytest.mark.parametrize("release", RELEASES, ids=lambda row: row.name)
@pytest.mark.parametrize("loader", LOADERS)
def test_a_problem_exactly_where_it_is_unsupported(
    release: NeuronRelease, loader: str
) -> None:
    """`model_problems`, `supported` and `known` never contradict each other."""
    for name, row in neuron_models().items():
        supported = row.supported(loader, release)

        assert (list(model_problems(name, loader, release)) == []) == supported
        assert (f"`{name}`" in known(loader, release)) == supported
        assert not supported or library_version(loader, release)


@pytest.mark.parametrize("release", RELEASES, ids=lambda row: row.name)
def test_the_hint_is_a_way_out(release: NeuronRelease) -> None:
    """A release and a loader that a hint names do have the model type."""
    for name, row in neuron_models().items():
        for problem in model_problems(name, "tnx", release):
            words = problem.hint.split("`")
            loaders = [w.partition(": ")[2] for w in words if ".loader: " in w]
            names = [w.partition(": ")[2] for w in words if ".release: " in w]
            there = neuron_releases()[names[0]] if names else release
            for loader in loaders:
                assert row.supported(loader, there)
            assert there.published or not names


def test_qwen_goes_elsewhere() -> None:
    """Qwen is no model of transformers-neuronx; another loader may have it."""
    (problem,) = model_problems("qwen2", "tnx", NEWEST)

    assert problem.code == "neuronx.architecture"
    assert problem.unsupported
    assert "`qwen2`" in problem.message
    assert problem.hint


def test_a_version_reaches_from_since_to_until() -> None:
    """Versions are compared as numbers, not as text."""
    row = LoaderModel(since="0.9", until="0.13")

    assert [row.reached(v) for v in ("0.8.268", "0.9.474", "0.10.0.360")] == [
        False,
        True,
        True,
    ]
    assert not row.reached("0.13.380")
    assert not row.reached("")


def test_faults_of_the_data_name_the_table() -> None:
    """A wrong table is told by file, name and word."""
    loader = {"since": "0.9"}
    assert module._model("x", {"tnx": loader}).loaders["tnx"].since == "0.9"
    for table, words in (
        ({}, r"\[x\] has none of"),
        ({"tnx": loader, "heads": 4}, r"\[x\] has unknown keys"),
        ({"tnx": {}}, r"\[x\.tnx\] lacks"),
        ({"tnx": {"since": "soon"}}, "`soon`, which is no version"),
        ({"tnx": {**loader, "positions": "none"}}, "`positions` is 'none'"),
    ):
        with pytest.raises(ValueError, match=rf"models\.toml: {words}|{words}"):
            module._model("x", table)
