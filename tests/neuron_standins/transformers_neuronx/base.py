"""Loading, compiling and saving, with the checks of the real base class."""

import hashlib
import json
import os
import struct
from concurrent.futures import ProcessPoolExecutor

from . import compiler
from .config import GQA, NEW, NeuronConfig

FAULT = os.environ.get("FAULT", "")


def token_sizes(given):
    """Doubling from 128 to exactly the number; a list is sorted and left alone."""
    if isinstance(given, list):
        return sorted(given)
    sizes, size = [], 128
    while size < given:
        sizes.append(size)
        size *= 2
    return [*sizes, given]


def context_sizes(given, tokens):
    if isinstance(given, list):
        return sorted(given)
    if isinstance(given, int):
        return [given] if given > 0 else []
    return [size // 2 for size in tokens]


def batch_sizes(given):
    if isinstance(given, int):
        return [given]
    if isinstance(given, list):
        return sorted(given)
    raise TypeError("batch_size must be list of ints or int type")


class Config:
    """The model's configuration as attributes."""

    def __init__(self, values):
        self.__dict__.update(values)

    def __getattr__(self, name):
        # The real configuration of GPT-2 answers to both names.
        known = {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}
        if name in known and known[name] in self.__dict__:
            return self.__dict__[known[name]]
        raise AttributeError(name)


class PretrainedModel:
    @classmethod
    def from_pretrained(cls, pretrained_model_path, *model_args, **kwargs):
        sanity_check(**kwargs)
        path = os.path.join(pretrained_model_path, "config.json")
        with open(path, encoding="utf-8") as file:
            config = Config(json.load(file))
        model = cls(config, *model_args, **kwargs)
        model.source = pretrained_model_path
        if not getattr(config, "is_presharded_checkpoint", False):
            names = os.listdir(pretrained_model_path)
            if not {"model.safetensors", "model.safetensors.index.json"} & set(names):
                raise FileNotFoundError(
                    "Can not find model.safetensors or pytorch_model.bin in"
                    f" {pretrained_model_path}"
                )
        return model


def sanity_check(**kwargs):
    contexts = kwargs.get("context_length_estimate")
    positions = kwargs.get("n_positions", 2048)
    most = max(positions) if isinstance(positions, list) else positions
    longest = max(contexts) if isinstance(contexts, list) else contexts
    if isinstance(most, int) and isinstance(longest, int):
        assert most >= longest, (
            f"Max context_length_estimate {longest} cannot be more than max"
            f" n_positions {most}."
        )
    config = kwargs.get("neuron_config")
    other_layout = config is not None and config.cache_layout == "BSH"
    if config and config.continuous_batching:
        number = config.continuous_batching.max_num_seqs
        expected = kwargs.get("batch_size")
        assert number == expected, (
            f"invalid batch_size_for_shared_caches ({number}), {expected} is expected"
        )
        if other_layout and not config.continuous_batching.optimized_paged_attention:
            assert isinstance(positions, list) and len(positions) == 1
            assert isinstance(contexts, list) and len(contexts) == 1, (
                "BSH cache layout does not support multi-bucketing"
            )
    else:
        assert not other_layout, "BSH cache layout needs continuous batching"


class NeuronModelBase(PretrainedModel):
    """What all classes have but GPT-J and GPT-NeoX."""

    def setup_graphs(self, config, given):
        """Buckets, sharding and graphs from the arguments of a constructor."""
        self.config = config
        self.neuron_config = given["neuron_config"] or NeuronConfig()
        self.tp_degree = given["tp_degree"]
        # The real table of types has no entry for None.
        self.amp = {"f32": 4, "f16": 2, "bf16": 2}[given["amp"]] and given["amp"]
        self.token_buckets = token_sizes(given["n_positions"])
        self.context_buckets = context_sizes(
            given["context_length_estimate"], self.token_buckets
        )
        self.batch_sizes = batch_sizes(given["batch_size"])
        batching = self.neuron_config.continuous_batching
        self.context_batch_sizes = [1] if batching else self.batch_sizes
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", heads)
        self._choose_sharding(heads, kv_heads)
        layers = config.num_hidden_layers
        self.unroll = given.get("unroll") or layers
        in_one = given.get("context_unroll") or layers
        # Layers that are not in one graph leave the head, and the embedding, to others.
        self.context_parts = ["context"]
        if in_one < layers:
            self.context_parts.append("context-head")
            if self.neuron_config.on_device_embedding:
                self.context_parts.append("context-embedding")
        self.given = {k: v for k, v in given.items() if k != "neuron_config"}
        self.neffs = {}

    def _choose_sharding(self, heads, kv_heads):
        """The real fall-backs, which are warnings there."""
        mode = self.neuron_config.group_query_attention
        if mode is None and heads == kv_heads:
            return
        if mode is None:
            mode = GQA.SHARD_OVER_HEADS
        if mode is GQA.SHARD_OVER_BATCH:
            if all(size % self.tp_degree == 0 for size in self.batch_sizes):
                return
            mode = GQA.SHARD_OVER_HEADS
        if mode is GQA.SHARD_OVER_HEADS and kv_heads % self.tp_degree:
            mode = GQA.REPLICATED_HEADS
        self.neuron_config.group_query_attention = mode

    def graphs(self):
        """Every graph's text, in which every argument stands."""
        config = {k: v for k, v in vars(self.config).items() if k not in _NOT_GRAPH}
        common = {
            "class": type(self).__name__,
            "config": config,
            "given": self.given,
            "neuron": _plain(self.neuron_config),
            "library": os.environ.get("STANDIN_TNX", "0.13.380"),
        }
        kinds = [
            (kind, length, batch)
            for kinds, lengths, batches in (
                (self.context_parts, self.context_buckets, self.context_batch_sizes),
                (["token"], self.token_buckets, self.batch_sizes),
            )
            for kind in kinds
            for length in lengths
            for batch in batches
        ]
        return [
            json.dumps([*kind, common], sort_keys=True).encode("utf-8")
            for kind in kinds
        ]

    def to_neuron(self):
        if int(os.environ.get("STANDIN_CORES", "0")) < self.tp_degree:
            raise RuntimeError(
                "The PJRT/NRT layer found no free NeuronCores (nrt_init)"
            )
        self._compile_or_load()

    def _compile_or_load(self):
        folder = getattr(self, "_compiled_artifacts_directory", None)
        graphs = self.graphs()
        if folder is None:
            workers = getattr(self.neuron_config, "compilation_worker_count", None)
            with ProcessPoolExecutor(workers or len(graphs)) as executor:
                made = list(executor.map(compiler.compile_kernel, graphs))
            self.neffs = {hash_hlo(g): neff for g, neff in zip(graphs, made)}
            return
        for graph in graphs:
            try:
                with open(os.path.join(folder, hash_hlo(graph)), "rb") as file:
                    self.neffs[hash_hlo(graph)] = file.read()
            except FileNotFoundError:
                raise FileNotFoundError(
                    "Could not find a matching NEFF for your HLO in this directory."
                ) from None

    if NEW:

        def cpu_compile(self):
            self._compile_or_load()

    def load(self, directory):
        self._compiled_artifacts_directory = directory

    def save(self, directory, sharded_weights=False):
        if os.path.isfile(directory):
            raise FileExistsError("Artifacts should be saved to a directory.")
        os.makedirs(directory, exist_ok=True)
        neffs = sorted(self.neffs.items())
        for name, neff in neffs[1:] if FAULT == "missing-neff" else neffs:
            with open(os.path.join(directory, name), "wb") as file:
                file.write(b"" if FAULT == "empty-neff" else neff)
        if not sharded_weights:
            return
        assert self.neuron_config.on_device_embedding, (
            "on_device_embedding must be True to save and load presharded weights"
        )
        self._save_weights(directory)
        config = {**vars(self.config), "is_presharded_checkpoint": True}
        if FAULT == "path":
            config["_name_or_path"] = os.path.join(self.source, "x")
        with open(os.path.join(directory, "config.json"), "w") as file:
            file.write(json.dumps(config))

    def _save_weights(self, directory):
        """The model's own bytes, by layer and by rank."""
        parts = {}
        for name, tensor in read_tensors(self.source):
            words = name.split(".")
            layer = next((word for word in words if word.isdigit()), "")
            parts.setdefault(layer, []).append((name, *tensor))
        for layer, tensors in parts.items():
            file = f"decoder_layer_{layer}" if layer else "DecoderLMHead"
            path = os.path.join(directory, f"{file}.safetensors")
            write_shards(path, tensors, self.tp_degree)
        if FAULT == "root-weights":
            write_shards(
                os.path.join(os.path.dirname(directory), "model.safetensors"),
                parts[""],
                1,
            )


# What the real library adds to the configuration that it saves.
_NOT_GRAPH = ("is_presharded_checkpoint", "neuron", "_name_or_path")


def hash_hlo(graph):
    return hashlib.sha256(graph).hexdigest()[:20] + ".neff"


def _plain(value):
    if hasattr(value, "value"):
        return value.value
    if hasattr(value, "__dict__"):
        named = {k: _plain(v) for k, v in vars(value).items()}
        # How many compile at once is in no graph.
        named.pop("compilation_worker_count", None)
        return named
    return value


def read_tensors(folder):
    """Name, type, shape and bytes of every tensor, by the safetensors format."""
    for file in sorted(os.listdir(folder)):
        if not file.endswith(".safetensors"):
            continue
        with open(os.path.join(folder, file), "rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(size))
            data = stream.read()
        for name, row in sorted(header.items()):
            if name != "__metadata__":
                begin, end = row["data_offsets"]
                yield name, (row["dtype"], row["shape"], data[begin:end])


def write_shards(path, tensors, ranks):
    """Tensors split over their first dimension where it divides, else repeated."""
    header, chunks, offset = {}, [], 0
    for name, dtype, shape, data in tensors:
        split = bool(shape) and shape[0] % ranks == 0
        for rank in range(ranks):
            size = len(data) // ranks
            part = data[rank * size : (rank + 1) * size] if split else data
            dims = [shape[0] // ranks, *shape[1:]] if split else shape
            header[f"{name}*{rank}"] = {
                "dtype": dtype,
                "shape": dims,
                "data_offsets": [offset, offset + len(part)],
            }
            chunks.append(part)
            offset += len(part)
    text = json.dumps(header).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(chunks))
