"""The page of docs/reference that has every release and what it reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmi_build.catalog.neuron_releases import NeuronRelease
    from lmi_build.catalog.releases import Release


def releases_page() -> str:
    """What each image and each release of TensorRT-LLM builds and reads."""
    from lmi_build.catalog.releases import releases
    from lmi_build.catalog.trtllm_flags import flag_rows

    rows = list(releases().values())
    lines = [
        "# Releases\n",
        (
            "LMI images with TensorRT-LLM, and releases of TensorRT-LLM without an"
            " image; newest first. *Layout*: the folder that an image takes for"
            " compiled. *GPUs*: compute capabilities of the release's own support"
            " matrix.\n"
        ),
        (
            "| release | TensorRT-LLM | TensorRT | CUDA | Python | layout | artifacts"
            " | GPUs | note |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        note = " ".join(
            text
            for text in (
                "" if row.published else "Not published.",
                row.note,
                row.end_of_life,
            )
            if text
        )
        lines.append(
            f"| `{row.name}` | {row.trtllm} | {row.tensorrt} | {row.cuda} |"
            f" {row.python} | {row.layout} | {', '.join(row.artifacts)} |"
            f" {', '.join(row.compute_capabilities)} | {note} |"
        )
    lines += [
        *_property_lines([row for row in rows if row.properties]),
        "\n## Options of `trtllm-build`\n",
        (
            "*run*: the release's own parser was executed. *documented*: read in its"
            " reference. *interpolated*: the parser of main around the release was"
            " executed.\n"
        ),
        "| row | TensorRT-LLM | options | known by | read in |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {x.name} | {x.version} | {len(x.flags)} | {x.read} | {x.source} |"
        for x in flag_rows().values()
    ]
    return "\n".join([*lines, *neuron_lines()]) + "\n"


def _property_lines(images: Sequence[Release]) -> list[str]:
    """What each image reads of `serving.properties`, by what it means."""
    lines = [
        "\n## Keys of `serving.properties`\n",
        "What each published image reads, by what it means.\n",
        "| meaning | " + " | ".join(row.lmi for row in images) + " |",
        "| --- " * (len(images) + 1) + "|",
    ]
    for meaning in dict.fromkeys(key for row in images for key in row.properties):
        keys = (row.properties.get(meaning, "") for row in images)
        cells = (f"`option.{key}`" if key else "" for key in keys)
        lines.append(f"| {meaning} | {' | '.join(cells)} |")
    return lines


def neuron_lines() -> list[str]:
    """What each container for Inferentia and Trainium loads and can be told."""
    from lmi_build.backends.neuronx.models import known
    from lmi_build.backends.neuronx.signatures import signatures
    from lmi_build.catalog.neuron_releases import neuron_releases

    rows = list(neuron_releases().values())
    lines = [
        "\n## Neuron\n",
        (
            "LMI images for Inferentia and Trainium, and Hugging Face's vLLM images;"
            " newest first. *Loaders*: what loads compiled graphs; the first is taken"
            " where a recipe names none. *Layout*: `presharded` has weights and graphs"
            " in `compiled/`, `split` has the weights in `checkpoint/`, `export` is"
            " optimum-neuron's folder.\n"
        ),
        (
            "| release | SDK | neuronx-cc | torch-neuronx | transformers-neuronx |"
            " optimum-neuron | Python | loaders | layout | families | note |"
        ),
        "| --- " * 11 + "|",
    ]
    for row in rows:
        said = ("" if row.published else "Not published.", row.note, row.end_of_life)
        lines.append(
            f"| `{row.name}` | {row.sdk} | {row.neuronx_cc} | {row.torch_neuronx} |"
            f" {row.transformers_neuronx} | {row.optimum_neuron} | {row.python} |"
            f" {', '.join(row.loaders)} | {row.layout} | {', '.join(row.families)} |"
            f" {' '.join(filter(None, said))} |"
        )
    lines += [
        "\n### Model types by loader\n",
        "| release | loader | model types |\n| --- | --- | --- |",
        *(
            f"| `{row.name}` | {loader} | {known(loader, row)} |"
            for row in rows
            if row.published
            for loader in row.loaders
        ),
        *_tnx_option_lines([row for row in rows if "tnx" in row.loaders]),
        "\n### Versions of transformers-neuronx\n",
        "| row | version | fields of NeuronConfig | without a device | read in |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {x.name} | {x.version} | {len(x.configs['NeuronConfig'])} |"
            f" {'yes' if x.cpu_compile else 'no'} | {x.source} |"
            for x in signatures().values()
        ),
    ]
    return lines


def _tnx_option_lines(rows: Sequence[NeuronRelease]) -> list[str]:
    """What each release with transformers-neuronx can be told of its options."""
    from lmi_build.backends.neuronx.options import lmi_option_names

    told = {row.name: lmi_option_names(row) for row in rows}
    lines = [
        "\n### Options of Transformers NeuronX\n",
        (
            "What `compile.options` may set, by the key of `serving.properties` that"
            " tells the loader of it; without one its graphs would not be found.\n"
        ),
        "| option | " + " | ".join(name.rpartition("-")[2] for name in told) + " |",
        "| --- " * (len(told) + 1) + "|",
    ]
    for option in sorted({name for names in told.values() for name in names}):
        keys = (names.get(option, "") for names in told.values())
        cells = (f"`option.{key}`" if key else "" for key in keys)
        lines.append(f"| {option} | {' | '.join(cells)} |")
    return lines
