"""`compile.options` of an engine: native options of one release's `trtllm-build`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.catalog.trtllm_flags import build_flags, fits
from lmi_build.errors import Problem
from lmi_build.text import did_you_mean, join_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lmi_build.catalog.trtllm_flags import Flag
    from lmi_build.digest import JSONValue

# Options that another key of the recipe sets, by what to write instead.
OWNED: Mapping[str, str] = {
    "max_batch_size": "bounds.max_batch_size",
    "max_beam_width": "bounds.max_beam_width",
    "max_decoder_seq_len": "bounds.max_input_len` and `bounds.max_output_len",
    "max_encoder_input_len": "bounds.max_input_len",
    "max_input_len": "bounds.max_input_len",
    "max_num_tokens": "bounds.max_num_tokens",
    "max_output_len": "bounds.max_output_len",
    "max_seq_len": "bounds.max_input_len` and `bounds.max_output_len",
    "pp_size": "compile.pipeline_parallel_size",
    "tp_size": "compile.tensor_parallel_size",
    "weight_only_precision": "quantize.method",
}
# Options that would make the build something else than the recipe says, by why.
REFUSED: Mapping[str, str] = {
    "auto_parallel": "ranks are those of `compile.tensor_parallel_size` and"
    " `compile.pipeline_parallel_size`",
    "build_config": "a file of options would bypass the recipe",
    "checkpoint_dir": "the checkpoint is that of the build",
    "cluster_key": "it belongs to `auto_parallel`",
    "dry_run": "no engine would be built; `plan` shows the command",
    "gpus_per_node": "it belongs to `auto_parallel`",
    "input_timing_cache": "the cache lies where `--cache-dir` says",
    "kv_cache_type": "in-flight batching needs a paged key-value cache",
    "lora_ckpt_source": "adapters are no input of the build",
    "lora_dir": "adapters are no input of the build",
    "max_draft_len": "drafts change `max_seq_len`",
    "model_cls_file": "code is no input of the build",
    "model_cls_name": "code is no input of the build",
    "model_config": "the configuration is that of the checkpoint",
    "output_dir": "the engine goes to the store",
    "output_timing_cache": "the cache lies where `--cache-dir` says",
    "paged_kv_cache": "in-flight batching needs a paged key-value cache",
    "remove_input_padding": "in-flight batching needs packed inputs",
    "speculative_decoding_mode": "drafts change `max_seq_len`",
    "strip_plan": "an engine without weights cannot be served",
    "timing_cache": "the cache lies where `--cache-dir` says",
    "visualize_network": "its files would become part of the engine",
    "workers": "as many ranks are built at once as there are GPUs",
}


def option_problems(options: Mapping[str, JSONValue], row: str) -> Iterator[Problem]:
    """
    Everything wrong with the options of a recipe.

    Args:
        options: `compile.options`.
        row: Row of the options of `trtllm-build`, as `Release.flags` names it.

    Raises:
        KeyError: There is no such row.
    """
    flags = build_flags(row)
    names = {alias: flag for flag in flags.values() for alias in flag.aliases}
    for name, value in options.items():
        path = f"compile.options.{name}"
        if name in OWNED:
            yield Problem(
                code="compile.owned-option",
                message=f"`{name}` follows from the recipe",
                path=path,
                hint=f"remove the line and set `{OWNED[name]}`",
            )
        elif name in REFUSED:
            yield Problem(
                code="compile.owned-option",
                message=f"`{name}` cannot be set: {REFUSED[name]}",
                path=path,
                hint="remove the line",
            )
        elif name in names:
            yield _unknown(name, row, path, f"write `{names[name].name}`")
        elif name not in flags:
            yield _unknown(name, row, path, _nearest(name, row, flags))
        else:
            yield from _value_problems(flags[name], value, path)


def option_arguments(options: Mapping[str, JSONValue], row: str) -> tuple[str, ...]:
    """
    The words of the options, sorted by name.

    Args:
        options: `compile.options`; `option_problems` found nothing.
        row: Row of the options of `trtllm-build`.
    """
    words: list[str] = []
    flags = build_flags(row)
    for name in sorted(options):
        words += flag_words(flags[name], options[name])
    return tuple(words)


def flag_words(flag: Flag, value: JSONValue) -> tuple[str, ...]:
    """
    One option as words of a command line; none for a switch that is off.

    Args:
        flag: The option.
        value: What it is set to.
    """
    if flag.kind == "switch":
        return (f"--{flag.name}",) if value else ()
    values = value if flag.many and isinstance(value, list) else [value]
    return (f"--{flag.name}", *(str(item) for item in values))


def _settable(flags: Mapping[str, Flag]) -> list[str]:
    return [name for name in flags if name not in OWNED and name not in REFUSED]


def _nearest(name: str, row: str, flags: Mapping[str, Flag]) -> str:
    """What was meant: an option, else a key of the recipe, else what there is."""
    near = did_you_mean(name, _settable(flags))
    if near:
        return f"did you mean `{near}`?"
    near = did_you_mean(name, OWNED)
    if near:
        return f"remove the line and set `{OWNED[near]}`, which is `{near}`"
    return _instead(name, row)


def _unknown(name: str, row: str, path: str, hint: str) -> Problem:
    return Problem(
        code="compile.unknown-option",
        message=f"`trtllm-build` of TensorRT-LLM {row} has no option `{name}`",
        path=path,
        hint=hint,
    )


def _instead(name: str, row: str) -> str:
    """Releases that do have the option, for who copied it from elsewhere."""
    from lmi_build.catalog.trtllm_flags import flag_rows

    others = [other for other, found in flag_rows().items() if name in found.flags]
    if others:
        return f"releases of TensorRT-LLM {join_words(others)} have it"
    names = join_words(_settable(build_flags(row)))
    return f"remove the line; it has {names}"


def _value_problems(flag: Flag, value: JSONValue, path: str) -> Iterator[Problem]:
    values = value if flag.many and isinstance(value, list) else [value]
    if values and all(fits(flag, item) for item in values):
        return
    allowed = _allowed(flag)
    yield Problem(
        code="compile.bad-option",
        message=f"`{flag.name}` is {value!r}, it must be {allowed}",
        path=path,
        hint=f"write `{flag.name}: {_example(flag)}`",
    )


def _allowed(flag: Flag) -> str:
    words = {
        "int": "a whole number",
        "float": "a number",
        "str": "a word",
        "switch": "`true` or `false`",
        "enable": "`enable` or `disable`",
    }
    kind = words.get(flag.kind) or join_words(flag.choices)
    return f"{kind}, or a list of such" if flag.many else kind


def _example(flag: Flag) -> str:
    examples = {"int": "64", "float": "0.5", "switch": "true", "enable": "enable"}
    if flag.default is not None and flag.kind != "switch":
        return str(flag.default)
    return examples.get(flag.kind) or (flag.choices[0] if flag.choices else "NAME")
