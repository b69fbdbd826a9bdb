"""`compile.options` of Transformers NeuronX: fields of NeuronConfig, and ours."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lmi_build.backends.neuronx.signatures import (
    Field,
    fits,
    neuron_config_fields,
    signatures,
    swallowed,
)
from lmi_build.errors import Problem
from lmi_build.text import did_you_mean, join_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.catalog.neuron_releases import NeuronRelease
    from lmi_build.digest import JSONValue

_LENGTHS = "bounds.max_input_len` and `bounds.max_output_len"
# Options that another key of the recipe sets, by what to write instead.
OWNED: Mapping[str, str] = {
    "amp": "model.dtype",
    "batch_size": "bounds.max_batch_size",
    "batch_size_for_shared_caches": "bounds.max_batch_size",
    "context_length_estimate": "compile.options.context_buckets",
    "continuous_batching": "bounds.max_batch_size",
    "dtype": "model.dtype",
    "max_num_seqs": "bounds.max_batch_size",
    "max_rolling_batch_size": "bounds.max_batch_size",
    "n_positions": _LENGTHS,
    "quant": "quantize.method",
    "quantize": "quantize.method",
    "tensor_parallel_degree": "compile.tensor_parallel_size",
    "tp_degree": "compile.tensor_parallel_size",
}
# Options that would make the build something else than the recipe says, by why.
REFUSED: Mapping[str, str] = {
    "lhs_aligned": "the loader decides on which side it pads",
    "padding_side": "the loader decides on which side it pads",
    "token_buckets": "LMI passes one number of positions, whose buckets its loader"
    " makes itself",
    "unroll": "all layers are one graph, as LMI's loader has it",
    "use_2d_cache_ids": "the loader decides on which side it pads",
}
# Options of ours, which no NeuronConfig has, or not that of every version.
OURS: Mapping[str, Field] = {
    "cc_flags": Field(name="cc_flags", kind="strs"),
    "compilation_worker_count": Field(name="compilation_worker_count", kind="int"),
    "context_buckets": Field(name="context_buckets", kind="ints"),
}
_EXAMPLES = {
    "cc_flags": '["-O2"]',
    "compilation_worker_count": "2",
    "context_buckets": "[512, 2048]",
}
# Fields that change no graph, so that no loader need know of them.
_NO_GRAPH = frozenset({"compilation_worker_count"})


def lmi_option_names(release: NeuronRelease) -> Mapping[str, str]:
    """
    What the `tnx` loader of a release can be told, by our names of it.

    `lmi_option_names(release)["context_buckets"]` is `context_length_estimate`, which
    is written `option.context_length_estimate` in `serving.properties`.

    Args:
        release: The container that will serve.
    """
    own = {"context_buckets": "context_length_estimate"}
    known = {ours: key for ours, key in own.items() if key in release.properties}
    return {**release.options, **known}


def option_problems(
    options: Mapping[str, JSONValue],
    release: NeuronRelease,
    loader: str = "tnx",
    *,
    model_type: str = "",
) -> Iterator[Problem]:
    """
    Everything wrong with the options of a recipe for Transformers NeuronX.

    The server builds every graph again from its properties, so a field that it cannot
    be told would make it look for other graphs than those that were compiled.

    Args:
        options: `compile.options`.
        release: The container that will serve.
        loader: `tnx`; the options of the others are checked where they are lowered.
        model_type: As `config.json` has it; empty where it is not known yet.

    Raises:
        ValueError: The loader is another one.
        KeyError: There are no signatures of the release's transformers-neuronx.
    """
    if loader != "tnx":
        raise ValueError(f"options of `{loader}` are not those of NeuronConfig")
    fields = neuron_config_fields(release.tnx_row)
    sound: dict[str, Any] = {}
    for name, value in options.items():
        field = OURS.get(name) or fields.get(name)
        problems = list(_one(name, value, release, field))
        yield from problems
        if field is not None and not problems:
            sound[name] = value
            yield from _model_problems(field, model_type, release)
    yield from _combinations(sound, release)


def _one(
    name: str, value: JSONValue, release: NeuronRelease, field: Field | None
) -> Iterator[Problem]:
    """What is wrong with one option, whatever the others are."""
    path = f"compile.options.{name}"
    if name in OWNED:
        yield Problem(
            code="compile.owned-option",
            message=f"`{name}` follows from the recipe",
            path=path,
            hint=f"remove the line and set `{OWNED[name]}`",
        )
    elif name in REFUSED or _is_owned_embedding(name, release):
        reason = REFUSED.get(name, "weights that are split by rank need it to be true")
        yield Problem(
            code="compile.owned-option",
            message=f"`{name}` cannot be set: {reason}",
            path=path,
            hint="remove the line",
        )
    elif field is None:
        yield _unknown(name, release, path)
    elif not _told(name, release):
        yield _untold(name, release, path)
    elif value is None or not fits(field, value) or not _in_range(field, value):
        yield _bad(field, value, path)


def _is_owned_embedding(name: str, release: NeuronRelease) -> bool:
    return name == "on_device_embedding" and release.layout == "presharded"


def _told(name: str, release: NeuronRelease) -> bool:
    """Whether the loader that serves builds the same graphs with this option."""
    return name in OURS or name in _NO_GRAPH or name in lmi_option_names(release)


def _settable(release: NeuronRelease) -> list[str]:
    """Options that a recipe can set for a release, sorted."""
    names = {*lmi_option_names(release), *OURS}
    return sorted(n for n in names if not _is_owned_embedding(n, release))


def _unknown(name: str, release: NeuronRelease, path: str) -> Problem:
    near = did_you_mean(name, [*_settable(release), *OWNED])
    others = [
        row.name
        for row in signatures().values()
        if name in row.configs["NeuronConfig"] and row.name != release.tnx_row
    ]
    if near:
        hint = f"did you mean `{near}`?"
    elif others:
        hint = f"transformers-neuronx {join_words(others)} has it"
    else:
        hint = f"remove the line; it has {join_words(_settable(release), last='and')}"
    return Problem(
        code="compile.unknown-option",
        message=(
            f"NeuronConfig of transformers-neuronx {release.transformers_neuronx} has"
            f" no `{name}`"
        ),
        path=path,
        hint=hint,
    )


def _untold(name: str, release: NeuronRelease, path: str) -> Problem:
    names = join_words(_settable(release), last="and")
    return Problem(
        code="neuronx.option-unserved",
        message=(
            f"no key of `serving.properties` tells `{release.name}` of `{name}`: its"
            " loader would look for other graphs than those that were compiled"
        ),
        path=path,
        hint=f"remove the line; it can be told {names}",
        unsupported=True,
    )


def _bad(field: Field, value: JSONValue, path: str) -> Problem:
    example = _EXAMPLES.get(field.name) or _example(field)
    return Problem(
        code="compile.bad-option",
        message=f"`{field.name}` is {value!r}, it must be {_allowed(field)}",
        path=path,
        hint=f"write `{field.name}: {example}`",
    )


def _in_range(field: Field, value: JSONValue) -> bool:
    """Whether a number counts something, and lengths rise."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value > 0
    if field.name == "cc_flags" and isinstance(value, list):
        return all(str(word).strip() == word and bool(word) for word in value)
    if field.name == "context_buckets" and isinstance(value, list):
        lengths = [item for item in value if isinstance(item, int)]
        rising = all(low < high for low, high in pairwise(lengths))
        return bool(lengths) and lengths[0] > 0 and rising
    return True


def _allowed(field: Field) -> str:
    if field.name == "context_buckets":
        return "a list of rising lengths above 0"
    words = {
        "bool": "`true` or `false`",
        "int": "a whole number above 0",
        "ints": "a list of whole numbers",
        "str": "a word",
        "strs": "a list of words",
    }
    return words.get(field.kind) or join_words(field.choices)


def _example(field: Field) -> str:
    if field.kind == "choice":
        return field.choices[0]
    return {"bool": "true", "int": "2048"}.get(field.kind, "[1, 2, 0, 3]")


def _model_problems(
    field: Field, model_type: str, release: NeuronRelease
) -> Iterator[Problem]:
    """An option for which only some classes prepare their weights."""
    if not model_type or not field.models or model_type in field.models:
        return
    yield Problem(
        code="neuronx.swallowed-option",
        message=(
            f"transformers-neuronx {release.transformers_neuronx} has `{field.name}`"
            f" for {join_words(field.models, last='and')} only, not for `{model_type}`"
        ),
        path=f"compile.options.{field.name}",
        hint="remove the line",
    )


def _combinations(
    options: Mapping[str, Any], release: NeuronRelease
) -> Iterator[Problem]:
    """Options that NeuronConfig would drop or refuse beside the others."""
    for sentence in swallowed(release.tnx_row, options):
        name = sentence.split("`")[1]
        yield Problem(
            code="neuronx.swallowed-option",
            message=sentence,
            path=f"compile.options.{name}",
            hint=f"set what it needs, or remove `{name}`",
        )
