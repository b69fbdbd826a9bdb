"""Constructors of transformers-neuronx by version, read from data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lmi_build.backends.neuronx import PACKAGE
from lmi_build.catalog.tables import read_row, read_tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FILE = "signatures.toml"
KINDS = ("bool", "int", "float", "str", "choice", "ints", "strs", "object")
CONFIGS = (
    "NeuronConfig",
    "QuantizationConfig",
    "KVCacheQuantizationConfig",
    "ContinuousBatchingConfig",
    "GenerationConfig",
)
# What becomes of keyword arguments that a constructor does not name.
UNKNOWN = ("ignored", "refused")
LEFTOVERS = ("ignored", "config")


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """
    One keyword argument.

    Args:
        name: Its name.
        kind: One of `KINDS`; `ints` and `strs` are lists, an `object` is made of
            another configuration.
        default: What holds without it, if that is a plain value.
        choices: Values of a `choice`.
        many: A list of such values is taken as well.
        of: Which configuration an `object` is.
        required: It has no default.
        checked: The constructor itself refuses other choices.
        deprecated: Read, with a warning or in favour of another.
        models: Model types whose weights are prepared for it; empty for all.
    """

    name: str
    kind: str
    default: Any = None
    choices: tuple[str, ...] = ()
    many: bool = False
    of: str = ""
    required: bool = False
    checked: bool = False
    deprecated: bool = False
    models: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Signatures:
    """
    One version.

    Args:
        name: Row, as `NeuronRelease.tnx_row` names it, such as `0.12`.
        version: Version in the LMI images.
        source: Which code was read.
        unknown: One of `UNKNOWN`: what NeuronConfig does with a name it does not have.
        continuous_field: The field of ContinuousBatchingConfig that holds the number
            of sequences; empty where there is no such class.
        cpu_compile: A model can be compiled without a device.
        sharded_weights: `save` can write the weights split by rank.
        configs: Arguments of each of `CONFIGS` that the version has.
        classes: Arguments of each model class by model type.
        leftovers: One of `LEFTOVERS` by model type: whether a class drops names that it
            does not have, or sets them on the model's configuration, which refuses
            those that it does not have either.
    """

    name: str
    version: str
    source: str
    unknown: str
    continuous_field: str
    cpu_compile: bool
    sharded_weights: bool
    configs: Mapping[str, Mapping[str, Field]]
    classes: Mapping[str, Mapping[str, Field]]
    leftovers: Mapping[str, str]


@cache
def signatures() -> Mapping[str, Signatures]:
    """
    Every row by name, oldest first.

    Raises:
        ValueError: The data file is wrong; a fault of the package.
    """
    rows: dict[str, Signatures] = {}
    for name, table in read_tables(FILE, package=PACKAGE).items():
        rows[name] = _row(name, table, rows)
    return MappingProxyType(rows)


def neuron_config_fields(row: str) -> Mapping[str, Field]:
    """
    The keyword arguments of NeuronConfig.

    Args:
        row: As `NeuronRelease.tnx_row` says, such as `0.12`.

    Raises:
        KeyError: There is no such row.
    """
    return signatures()[row].configs["NeuronConfig"]


def class_arguments(row: str, model_type: str) -> Mapping[str, Field]:
    """
    The keyword arguments of a model's class.

    Args:
        row: As `NeuronRelease.tnx_row` says.
        model_type: As `config.json` has it; `gpt2-context` is the class that the
            automatic one takes for `gpt2`.

    Raises:
        KeyError: There is no such row, or it has no class for the model type.
    """
    return signatures()[row].classes[model_type]


def fits(field: Field, value: object) -> bool:
    """
    Whether an argument takes a value; None stands for the default.

    Args:
        field: The argument.
        value: A plain value; an `object` takes none.
    """
    if field.many and isinstance(value, list | tuple):
        return bool(value) and all(fits(replace(field, many=False), v) for v in value)
    if value is None:
        return field.default is None and not field.required
    if field.kind == "bool":
        return isinstance(value, bool)
    if field.kind == "choice":
        return value in field.choices
    if field.kind == "str":
        return isinstance(value, str)
    if field.kind in {"ints", "strs"}:
        kind = int if field.kind == "ints" else str
        return isinstance(value, list | tuple) and all(type(v) is kind for v in value)
    number = {"int": (int,), "float": (int, float)}.get(field.kind, ())
    return isinstance(value, number) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Need:
    """What one field of NeuronConfig needs of the others, from a version on."""

    field: str
    since: str
    needs: Mapping[str, Any]
    dropped_since: str = ""  # first row that drops it instead of refusing it


_FUSED = {"attention_layout": "BSH", "group_query_attention": "replicated-heads"}
_NEEDS = (
    _Need(
        field="fused_rmsnorm_qkv",
        since="0.12",
        dropped_since="0.13",
        needs={"fuse_qkv": True, **_FUSED, "sequence_parallel_norm": False},
    ),
    _Need(field="fused_rmsnorm_mlp", since="0.13", dropped_since="0.13", needs=_FUSED),
    _Need(
        field="qkv_tiling",
        since="0.11",
        needs={"fuse_qkv": True},
    ),
    _Need(
        field="shard_over_sequence",
        since="0.12",
        needs={"cache_layout": "SBH", "sparse_attn": None},
    ),
    _Need(
        field="sequence_parallel_norm_threshold",
        since="0.12",
        dropped_since="0.12",
        needs={"sequence_parallel_norm": True},
    ),
    _Need(
        field="mlp_in_weight_tiling_permute_order",
        since="0.12",
        dropped_since="0.12",
        needs={"weight_tiling": True},
    ),
    _Need(
        field="mlp_out_weight_tiling_permute_order",
        since="0.12",
        dropped_since="0.12",
        needs={"weight_tiling": True},
    ),
    _Need(
        field="duplicate_q_weight_sos",
        since="0.13",
        dropped_since="0.13",
        needs={"shard_over_sequence": True},
    ),
)


def swallowed(row: str, config: Mapping[str, Any]) -> Iterator[str]:
    """
    What NeuronConfig would drop or refuse of a combination, as sentences.

    `swallowed("0.13", {"fused_rmsnorm_qkv": True})` says that it needs `fuse_qkv` to be
    true, `attention_layout` to be BSH and `group_query_attention` replicated-heads.

    Args:
        row: As `NeuronRelease.tnx_row` says.
        config: Its keyword arguments; those of kind `object` by whether they are given.

    Raises:
        KeyError: There is no such row.
    """
    known = neuron_config_fields(row)
    for need in _NEEDS:
        if _key(row) < _key(need.since) or not _given(known, config, need.field):
            continue
        missing = [
            f"`{name}` to be {_words(value)}"
            for name, value in need.needs.items()
            if name in known and config.get(name, known[name].default) != value
        ]
        if missing:
            dropped = need.dropped_since and _key(row) >= _key(need.dropped_since)
            verb = "has no effect" if dropped else "is refused"
            *first, last = missing
            words = f"{', '.join(first)} and {last}" if first else last
            yield f"`{need.field}` {verb}: it needs {words}"
    if config.get("continuous_batching") and config.get("padding_side") == "left":
        yield "`padding_side` has no effect: continuous batching pads on the right"
    for name in (
        "mlp_in_weight_tiling_permute_order",
        "mlp_out_weight_tiling_permute_order",
    ):
        order = config.get(name)
        if order is not None and not _in_order(order):
            yield f"`{name}` is refused: it needs 0, 1, 2 and 3, with 2 before 3"


def _given(known: Mapping[str, Field], config: Mapping[str, Any], name: str) -> bool:
    """Whether a configuration asks for something that is not the default."""
    return (
        name in known
        and name in config
        and config[name] is not None
        and config[name] != known[name].default
    )


def _in_order(order: Any) -> bool:
    return sorted(order) == [0, 1, 2, 3] and order.index(2) < order.index(3)


def _words(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "left out" if value is None else str(value)


def _key(row: str) -> tuple[int, ...]:
    return tuple(int(number) for number in row.split("."))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Head:
    """What a table says of its version, beside arguments."""

    version: str
    source: str
    unknown: str
    continuous_field: str
    cpu_compile: bool
    sharded_weights: bool


def _row(
    name: str, table: Mapping[str, Any], earlier: Mapping[str, Signatures]
) -> Signatures:
    """One row: what its base has, less what is removed, with what is added."""
    where = f"{FILE}: [{name}]"
    own = dict(table)
    base, removes = own.pop("base", ""), own.pop("removes", {})
    if base and base not in earlier:
        raise ValueError(f"{where}, `base` is {base!r}, which is no table before it")
    old = earlier[base] if base else None
    leftovers = {**(old.leftovers if old else {}), **own.pop("leftovers", {})}
    sections = {**old.configs, **old.classes} if old else {}
    sections = _less(sections, removes, where)
    for section in [key for key, value in own.items() if isinstance(value, dict)]:
        together = dict(sections.get(section, {}))
        for argument, given in own.pop(section).items():
            field = _field(argument, given, f"{where}, `{section}`")
            if together.get(argument) == field:
                raise ValueError(f"{where}, `{argument}` says what {base!r} says")
            together[argument] = field
        sections[section] = MappingProxyType(dict(sorted(together.items())))
    classes = {key: sections[key] for key in sections if key not in CONFIGS}
    head = read_row(_Head, own, where=where)
    for key, values, allowed in (
        ("leftovers", list(leftovers), list(classes)),
        ("leftovers", list(leftovers.values()), LEFTOVERS),
        ("unknown", [head.unknown], UNKNOWN),
    ):
        if wrong := sorted(set(values) - set(allowed)):
            raise ValueError(f"{where}, `{key}` has {wrong}")
    if missing := sorted(set(classes) - set(leftovers)):
        raise ValueError(f"{where}, `leftovers` lacks {missing}")
    return Signatures(
        name=name,
        version=head.version,
        source=head.source,
        unknown=head.unknown,
        continuous_field=head.continuous_field,
        cpu_compile=head.cpu_compile,
        sharded_weights=head.sharded_weights,
        configs=MappingProxyType({k: sections[k] for k in sections if k in CONFIGS}),
        classes=MappingProxyType(classes),
        leftovers=MappingProxyType(leftovers),
    )


def _less(
    sections: Mapping[str, Mapping[str, Field]],
    removes: Mapping[str, list[str]],
    where: str,
) -> dict[str, Mapping[str, Field]]:
    """The sections of a base without what is gone."""
    found = dict(sections)
    for section, gone in removes.items():
        if wrong := sorted(set(gone) - set(found.get(section, {}))):
            raise ValueError(f"{where}, `removes` has {wrong}, which its base lacks")
        kept = {n: f for n, f in found[section].items() if n not in set(gone)}
        found[section] = MappingProxyType(kept)
    return found


def _field(name: str, table: Mapping[str, Any], where: str) -> Field:
    own = dict(table)
    default = own.pop("default", None)  # a plain value of any kind
    field = read_row(Field, {"name": name, **own}, where=f"{where}, `{name}`")
    if field.kind not in KINDS:
        raise ValueError(f"{where}: `{name}` has kind {field.kind!r}")
    if bool(field.choices) != (field.kind == "choice"):
        raise ValueError(f"{where}: `{name}` is a {field.kind} with {field.choices}")
    if (field.kind == "object") != (field.of in (*CONFIGS, "SparseAttnConfig")):
        raise ValueError(f"{where}: `{name}` is a {field.kind} of {field.of!r}")
    if default is not None and not fits(field, default):
        raise ValueError(f"{where}: `{name}` has default {default!r}")
    return replace(field, default=default)
