"""
What one LMI release calls when it loads a folder of Transformers NeuronX.

The loader builds every graph again and looks its hash up among the compiled ones, so
this call must be equal, argument by argument, to the one that compiled them. It is
written from the handler's and the loader's own sources, apart from what lowers a recipe
to the call that compiles.

Source: djl-serving 0.26.0-dlc to 0.34.0-dlc, `transformers_neuronx.py` `set_configs`,
`neuron_utils/model_loader.py` `TNXModelLoader`, `neuron_utils/utils.py`
`build_context_length_estimates`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmi_build.backends.java_properties import with_environment
from lmi_build.backends.neuronx.calls import Made
from lmi_build.backends.neuronx.front_ends import GRAPHS_DIR
from lmi_build.backends.neuronx.handler_properties import handler_settings
from lmi_build.backends.neuronx.property_reader import (
    GENERATION_VARIABLE,
    RefusedError,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from lmi_build.backends.neuronx.front_ends import NeuronFrontEnd
    from lmi_build.backends.neuronx.handler_properties import HandlerSettings

NEURON_BLOCK = "neuron"
AUTO_CLASS = "transformers_neuronx.NeuronAutoModelForCausalLM"
_CLASSES = {
    "opt": "opt.model.OPTForSampling",
    "gpt2": "gpt2.model.GPT2ForSampling",
    "gptj": "gptj.model.GPTJForSampling",
    "gpt_neox": "gptneox.model.GPTNeoXForSampling",
    "llama": "llama.model.LlamaForSampling",
    "mistral": "mistral.model.MistralForSampling",
    "mixtral": "mixtral.model.MixtralForSampling",
    "bloom": "bloom.model.BloomForSampling",
}
_WEIGHTS = ".safetensors"
_SMALLEST_CONTEXT = 128
_SECOND_CONTEXT = 1024
_BSH = "BSH"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderCall:
    """
    How a release loads a folder.

    Args:
        model_class: Dotted path of the class whose `from_pretrained` is called.
        folder: Where it loads from, below the artifact's root; `.` is the root.
        arguments: Its keyword arguments; values may be `Made`.
        graphs: Folder whose graphs are then loaded; empty where they are compiled.
        flags: Words added to `NEURON_CC_FLAGS`, which only a compilation reads.
    """

    model_class: str
    folder: str
    arguments: Mapping[str, Any]
    graphs: str
    flags: tuple[str, ...] = field(default=())

    @property
    def steps(self) -> tuple[tuple[str, Mapping[str, Any]], ...]:
        """Methods that follow, in order, with their arguments."""
        loaded = (("load", {"path": self.graphs}),) if self.graphs else ()
        return (*loaded, ("to_neuron", {}))


def loader_call(
    front: NeuronFrontEnd,
    properties: Mapping[str, str],
    config: Mapping[str, Any],
    *,
    environment: Mapping[str, str] | None = None,
    paths: Collection[str] | None = None,
) -> LoaderCall:
    """
    The call of one release for one folder.

    Args:
        front: The release.
        properties: Entries of `serving.properties`, with `option.`.
        config: `config.json` at the folder's root.
        environment: Variables of the container beside those of its image.
        paths: Files of the folder; None for one that is laid out for the release.

    Raises:
        RefusedError: It does not come to a call, or to another library's.

    Example:
        `loader_call(front, {"option.rolling_batch": "tnx", ...}, {"model_type":
        "llama", "neuron": {...}}).arguments["tp_degree"]`.
    """
    surroundings = environment or {}
    properties = with_environment(properties, surroundings)
    settings = handler_settings(front, properties, config, surroundings)
    _refuse_other_loader(front, settings, config)
    if settings.generation_variable:
        raise RefusedError(
            f"{GENERATION_VARIABLE} is set, with which the loader ends in an error",
            f"remove {GENERATION_VARIABLE} from the environment",
        )
    model_type = str(config.get("model_type", ""))
    if model_type not in front.model_types:
        raise RefusedError(
            f"the loader has no class for model type `{model_type}`",
            "deploy a model type of Transformers NeuronX",
        )
    model_class, folder, graphs = _place(front, settings, config, paths)
    return LoaderCall(
        model_class=model_class,
        folder=folder,
        arguments=_arguments(front, settings, model_type),
        graphs=graphs,
        flags=settings.flags,
    )


def own_class(model_type: str) -> str:
    """Dotted path of a model type's class in Transformers NeuronX."""
    return f"transformers_neuronx.{_CLASSES[model_type]}"


def _refuse_other_loader(
    front: NeuronFrontEnd, settings: HandlerSettings, config: Mapping[str, Any]
) -> None:
    """Which library loads: this one, optimum-neuron or vLLM."""
    if settings.rolling_batch == "vllm" or settings.loader in {"vllm", "nxdi"}:
        raise RefusedError(
            "requests go to vLLM, which loads the model in its own way",
            f"write `option.rolling_batch={front.rolling_batch}` and"
            " `option.model_loader=tnx`",
            outcome="skips",
        )
    loader = settings.loader or _unnamed_loader(front, settings, config)
    if loader != "tnx":
        named = f"`option.model_loader` is {settings.loader}"
        fix = "write `option.model_loader=tnx`"
        if not front.model_loaders:
            fix = f"write `option.rolling_batch={front.rolling_batch}`"
        raise RefusedError(
            f"{named if settings.loader else 'no loader is named'}: optimum-neuron"
            " loads the model, which does not look for these graphs",
            fix,
            outcome="skips",
        )


def _unnamed_loader(
    front: NeuronFrontEnd, settings: HandlerSettings, config: Mapping[str, Any]
) -> str:
    if not front.optimum_models:
        return "tnx"
    model_type = config.get("model_type")
    names = config.get("architectures") or ()
    decoder = any("CausalLM" in str(name) for name in names)
    rolling = settings.rolling_batch != "disable"
    if not front.model_loaders:
        # The oldest handler keeps optimum-neuron for what it can do itself.
        unknown = decoder and model_type not in front.optimum_models
        ours = unknown or settings.split or settings.int8 or rolling
        return "tnx" if ours else "optimum"
    if settings.loader_hints:
        return "tnx"
    grouped = model_type in front.continuous_models and not rolling
    unknown = decoder and (model_type not in front.optimum_models or grouped)
    return "tnx" if unknown else "optimum"


def _place(
    front: NeuronFrontEnd,
    settings: HandlerSettings,
    config: Mapping[str, Any],
    paths: Collection[str] | None,
) -> tuple[str, str, str]:
    """The class, the folder of the weights and that of the graphs."""
    model_type = str(config["model_type"])
    own = own_class(model_type)
    if paths is None:
        paths = (f"{GRAPHS_DIR}/x.neff", f"{front.weights_dir}/x{_WEIGHTS}")
    root_weights = _has_weights(paths, "")
    compiled = NEURON_BLOCK in config
    if compiled and (front.root_weights == "unread" or not root_weights):
        return _compiled_place(front, own, paths)
    if front.root_weights == "unread":
        return own, ".", ""
    beside = compiled and front.root_weights == "beside graphs"
    if beside and not settings.split and model_type != "gpt2":
        return AUTO_CLASS, ".", GRAPHS_DIR
    # From 0.28 on the automatic class also loads what is no safetensors.
    unsafe = front.root_weights == "beside graphs" and not root_weights
    if settings.split or model_type == "gpt2" or unsafe:
        return own, ".", ""
    return AUTO_CLASS, ".", ""


def _compiled_place(
    front: NeuronFrontEnd, own: str, paths: Collection[str]
) -> tuple[str, str, str]:
    """The same of a folder that counts as compiled."""
    graphs = any(path.startswith(f"{GRAPHS_DIR}/") for path in paths)
    weights = front.weights_dir
    if front.model_class == "own":
        return own, weights, GRAPHS_DIR
    if not any(path.startswith(f"{weights}/") for path in paths):
        raise RefusedError(
            f"config.json has a `{NEURON_BLOCK}` block, but there is no `{weights}/`",
            "build the artifact again for this release",
        )
    found = AUTO_CLASS if _has_weights(paths, f"{weights}/") else own
    if not graphs and front.compiles_without_graphs:
        return found, weights, ""
    return found, weights, GRAPHS_DIR


def _has_weights(paths: Collection[str], at: str) -> bool:
    return any(
        path.startswith(at)
        and path.endswith(_WEIGHTS)
        and "/" not in path.removeprefix(at)
        for path in paths
    )


def _continuous(
    front: NeuronFrontEnd, settings: HandlerSettings, model_type: str
) -> bool:
    """Whether requests join and leave a running batch."""
    if settings.rolling_batch == "disable":
        return False
    size = settings.max_rolling_batch_size
    if settings.strategy:
        return settings.strategy == "continuous_batching" and (
            size >= front.continuous_from
        )
    known = not front.strategies or model_type in front.continuous_models
    return known and size >= front.continuous_unset_from


def _arguments(
    front: NeuronFrontEnd, settings: HandlerSettings, model_type: str
) -> dict[str, Any]:
    continuous = _continuous(front, settings, model_type)
    rolling = settings.rolling_batch != "disable"
    config: dict[str, Any] = {}
    if continuous:
        config["continuous_batching"] = Made(
            factory="transformers_neuronx.config.ContinuousBatchingConfig",
            arguments={"batch_size_for_shared_caches": settings.max_rolling_batch_size},
        )
    if settings.int8:
        config["quant"] = Made(
            factory="transformers_neuronx.config.QuantizationConfig",
            arguments={"quant_dtype": "s8", "dequant_dtype": settings.amp},
        )
    config |= settings.options
    lengths = settings.context_lengths
    found: dict[str, Any] = {
        "batch_size": settings.max_rolling_batch_size
        if rolling
        else settings.batch_size,
        "amp": settings.amp,
        "tp_degree": settings.tensor_parallel_degree,
        "n_positions": settings.n_positions,
        **settings.further,
        "neuron_config": Made(
            factory="transformers_neuronx.config.NeuronConfig", arguments=config
        ),
    }
    if continuous:
        found["n_positions"] = [settings.n_positions]
        lengths = _context_lengths(front, settings)
    if lengths is not None:
        found["context_length_estimate"] = list(lengths)
    return found


def _context_lengths(
    front: NeuronFrontEnd, settings: HandlerSettings
) -> tuple[int, ...]:
    """Lengths of prompts that have a graph, with continuous batching."""
    lengths, whole = settings.context_lengths, settings.n_positions
    bsh = settings.options.get("cache_layout") == _BSH
    if lengths is None:
        if front.context_default == "whole" or bsh:
            return (whole,)
        return usual_context_lengths(whole)
    if front.context_rule == "first whole with BSH":
        fits = not bsh or lengths[0] == whole
    else:
        always = front.context_rule == "whole"
        fits = lengths == (whole,) or not (always or bsh)
    if not fits:
        raise RefusedError(
            f"`option.context_length_estimate` is {','.join(map(str, lengths))}, and"
            f" continuous batching takes `option.n_positions`, {whole}, alone here",
            f"write `option.context_length_estimate={whole}`",
        )
    return lengths


def usual_context_lengths(n_positions: int) -> tuple[int, ...]:
    """
    Lengths that newer loaders take where none are named: 128, 1024 and doublings.

    Args:
        n_positions: Tokens of a request, prompt and answer.
    """
    if n_positions <= _SMALLEST_CONTEXT:
        return (n_positions,)
    found = [_SMALLEST_CONTEXT]
    length = _SECOND_CONTEXT
    while length < n_positions:
        found.append(length)
        length *= 2
    return (*found, n_positions)
