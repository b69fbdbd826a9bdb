"""
Laws of the layouts of TensorRT-LLM's checkpoint.

A block of a model is cut for its ranks, laid out, and read back by a reader that knows
the format only: whatever was put in comes out, bit for bit, on any number of ranks.

Shape suffixes: I input channels, O output channels, G groups of I.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from lmi_build.backends.trtllm.kernel_order import kernel_order, reads_order
from lmi_build.backends.trtllm.linear import (
    FusedLinear,
    Inexact,
    cut_inputs,
    cut_outputs,
    join_outputs,
)
from lmi_build.backends.trtllm.linear_checks import awq_problem, linear_problem
from lmi_build.backends.trtllm.quant_config import AWQ, quant_config
from lmi_build.backends.trtllm.weights import (
    ALGORITHMS,
    SMOOTHQUANT,
    WEIGHT_ONLY,
    block_tensors,
    kv_cache_tensors,
    linear_shapes,
    linear_tensors,
    norm_tensors,
)
from lmi_build.checkpoint.formats.codec import Codes, weight_of
from trtllm_reader import Model, read_model

BITS = {AWQ: 4, "W4A16": 4}
PER_TENSOR = ("W8A8_SQ_PER_TENSOR_PLUGIN", "W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN")
Q, K, V, OUT = (f"model.layers.0.self_attn.{part}_proj" for part in "qkvo")
GATE, UP, DOWN = (f"model.layers.0.mlp.{part}_proj" for part in ("gate", "up", "down"))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One block of a model, and how it is written."""

    algorithm: str
    dtype: str
    tp: int
    heads: int
    keys: int
    width: int
    inner: int
    group_size: int
    zero_points: bool
    bias: bool
    seed: int

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.heads * self.width

    def shape(self, module: str) -> tuple[int, int]:
        """Outputs and inputs of a linear of the model."""
        keys = self.keys * self.width
        return {
            Q: (self.hidden, self.hidden),
            K: (keys, self.hidden),
            V: (keys, self.hidden),
            OUT: (self.hidden, self.hidden),
            GATE: (self.inner, self.hidden),
            UP: (self.inner, self.hidden),
            DOWN: (self.hidden, self.inner),
        }[module]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    algorithm = draw(st.sampled_from([name for name in ALGORITHMS if name]))
    tp = draw(st.sampled_from([1, 2, 4]))
    heads = draw(st.sampled_from([4, 8]))
    width = 64 if heads == 4 else 32
    group_size = draw(st.sampled_from([64, 128])) if algorithm == AWQ else -1
    return Case(
        algorithm=algorithm,
        dtype=draw(st.sampled_from(["float16", "bfloat16"])),
        tp=tp,
        heads=heads,
        keys=draw(st.sampled_from([key for key in (1, 2, 4) if heads % key == 0])),
        width=draw(st.sampled_from([width, 64])),
        inner=draw(st.sampled_from([256, 384, 512])),
        group_size=group_size,
        zero_points=algorithm == AWQ and draw(st.booleans()),
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 2**31)),
    )


def _codes(case: Case, module: str, generator: torch.Generator) -> Codes:
    bits = BITS.get(case.algorithm, 8)
    num_outputs, num_inputs = case.shape(module)
    num_groups = 1 if case.group_size == -1 else num_inputs // case.group_size

    def draw(top: int, *shape: int) -> Tensor:
        return torch.randint(0, top, shape, generator=generator, dtype=torch.uint8)

    shared = case.algorithm in PER_TENSOR
    scale_GO = torch.rand(num_groups, 1 if shared else num_outputs, generator=generator)
    scale_GO = (scale_GO * 0.1 + 0.001).to(getattr(torch, case.dtype)).float()
    zero_GO = torch.full((num_groups, num_outputs), 1 << (bits - 1), dtype=torch.uint8)
    if case.zero_points:
        zero_GO = draw(16, num_groups, num_outputs)
    return Codes(
        code_IO=draw(1 << bits, num_inputs, num_outputs),
        scale_GO=scale_GO.expand(num_groups, num_outputs).contiguous(),
        zero_GO=zero_GO,
    )


def _key_heads(case: Case, rank: int) -> tuple[int, int]:
    """Outputs of keys that a rank holds; more ranks than heads share them."""
    if case.keys >= case.tp:
        share = case.keys // case.tp * case.width
        return rank * share, (rank + 1) * share
    head = rank * case.keys // case.tp
    return head * case.width, (head + 1) * case.width


def _rank_linears(
    case: Case,
    rank: int,
    parts: dict[str, Any],
    biases: dict[str, Tensor],
    steps: dict[str, Tensor],
) -> dict[str, FusedLinear]:
    """The linears of one rank."""

    def along(size: int) -> tuple[int, int]:
        return rank * size // case.tp, (rank + 1) * size // case.tp

    def fused(name: str, modules: dict[str, tuple[int, int]], role: str) -> FusedLinear:
        cut = cut_inputs if role == "row" else cut_outputs
        bias = None
        if case.bias:
            rows = {
                m: slice(None) if role == "row" else slice(*r)
                for m, r in modules.items()
            }
            bias = torch.cat([biases[module][rows[module]] for module in modules])
        return FusedLinear(
            parts=tuple(cut(parts[module], *r) for module, r in modules.items()),
            dtype=case.dtype,
            role=role,  # type: ignore[arg-type]
            bias=bias,
            input_scale=steps[name],
            zero_points=case.zero_points,
        )

    keys = _key_heads(case, rank)
    hidden, inner = along(case.hidden), along(case.inner)
    return {
        "attention.qkv": fused("qkv", {Q: hidden, K: keys, V: keys}, "qkv"),
        "attention.dense": fused("dense", {OUT: hidden}, "row"),
        "mlp.fc": fused("fc", {GATE: inner}, "column"),
        "mlp.gate": fused("fc", {UP: inner}, "column"),
        "mlp.proj": fused("proj", {DOWN: inner}, "row"),
    }


def _config(case: Case) -> dict[str, Any]:
    return {
        "architecture": "LlamaForCausalLM",
        "dtype": case.dtype,
        "num_hidden_layers": 1,
        "num_attention_heads": case.heads,
        "num_key_value_heads": case.keys,
        "hidden_size": case.hidden,
        "head_size": case.width,
        "vocab_size": 8,
        "mapping": {"world_size": case.tp, "tp_size": case.tp, "pp_size": 1},
        "quantization": quant_config(
            case.algorithm,
            trtllm="0.16.0",
            group_size=case.group_size,
            zero_points=case.zero_points,
            kv_cache_dtype="int8",
        ),
    }


def _write(case: Case, ranks: list[dict[str, FusedLinear]], folder: Path) -> Model:
    """A checkpoint of one block around these linears, read back."""
    (folder / "config.json").write_text(json.dumps(_config(case)))
    dtype = getattr(torch, case.dtype)
    for rank, linears in enumerate(ranks):
        block = {
            f"{name}.{suffix}": tensor
            for name, linear in linears.items()
            for suffix, tensor in linear_tensors(linear, case.algorithm).items()
        }
        for norm, reader in (("input_layernorm", "qkv"), ("post_layernorm", "fc")):
            owner = "attention" if reader == "qkv" else "mlp"
            linear = linears[f"{owner}.{reader}"]
            block[f"{norm}.weight"] = torch.ones(case.hidden, dtype=dtype)
            for suffix, tensor in norm_tensors(linear, case.algorithm).items():
                block[f"{norm}.{suffix}"] = tensor
        for name in ("attention.dense", "mlp.proj"):
            for suffix, tensor in block_tensors(linears[name], case.algorithm).items():
                block[f"{name.partition('.')[0]}.{suffix}"] = tensor
        scales = kv_cache_tensors(torch.tensor([0.5]), torch.tensor([0.25, 0.75]))
        block |= {f"attention.{suffix}": tensor for suffix, tensor in scales.items()}
        tensors = {f"transformer.layers.0.{name}": t for name, t in block.items()}
        for name in ("transformer.vocab_embedding.weight", "lm_head.weight"):
            count = 8 // case.tp if name.startswith("lm") else 8
            tensors[name] = torch.zeros(count, case.hidden, dtype=dtype)
        tensors["transformer.ln_f.weight"] = torch.ones(case.hidden, dtype=dtype)
        save_file(tensors, folder / f"rank{rank}.safetensors")
    return read_model(folder)


@settings(max_examples=30)
@given(cases())
def test_what_is_written_is_read_back_on_any_number_of_ranks(case: Case) -> None:
    assume(case.group_size == -1 or case.hidden // case.tp % case.group_size == 0)
    assume(case.group_size == -1 or case.inner // case.tp % case.group_size == 0)
    generator = torch.Generator().manual_seed(case.seed)
    modules = (Q, K, V, OUT, GATE, UP, DOWN)
    parts = {module: _codes(case, module, generator) for module in modules}
    biases = {
        m: torch.randn(case.shape(m)[0], generator=generator).to(
            getattr(torch, case.dtype)
        )
        for m in modules
    }
    steps = {
        name: torch.rand(1, generator=generator) * 0.1 + 0.01
        for name in ("qkv", "dense", "fc", "proj")
    }
    ranks = [_rank_linears(case, r, parts, biases, steps) for r in range(case.tp)]
    assume(all(_fits(case, linears) for linears in ranks))

    with tempfile.TemporaryDirectory() as folder:
        model = _write(case, ranks, Path(folder))

    middle = 1 << (BITS.get(case.algorithm, 8) - 1)
    for module in modules:
        coded, codes = model.coded[module], parts[module]
        assert torch.equal(coded.code_OI, codes.code_IO.T.to(torch.int16) - middle)
        assert torch.equal(coded.scale_OG, codes.scale_GO.T)
        assert torch.equal(coded.zero_OG, codes.zero_GO.T.to(torch.int16) - middle)
        assert torch.equal(coded.weight(), weight_of(codes))
        if case.bias:
            assert torch.equal(model.tensors[f"{module}.bias"], biases[module])
    assert float(model.cache_scales[0]) == 0.75
    if case.algorithm in SMOOTHQUANT and "PER_TOKEN" not in case.algorithm:
        for module, name in ((Q, "qkv"), (OUT, "dense"), (UP, "fc"), (DOWN, "proj")):
            assert torch.equal(model.input_steps[module], steps[name])


def _fits(case: Case, linears: dict[str, FusedLinear]) -> bool:
    """Whether the kernels take every linear of a rank."""
    if case.algorithm not in {AWQ, *WEIGHT_ONLY}:
        return True
    for linear in linears.values():
        joined = join_outputs(linear.parts)
        assert isinstance(joined, Codes)
        num_inputs, num_outputs = joined.code_IO.shape
        if case.algorithm == AWQ:
            if awq_problem(num_inputs, num_outputs, case.group_size):
                return False
        elif num_inputs % 64 or num_outputs % 64:
            return False
    return True


@settings(max_examples=40)
@given(
    cases(), st.sampled_from(["qkv", "column", "row"]), st.sampled_from([True, False])
)
def test_shapes_are_known_before_any_weight(
    case: Case,
    role: Any,
    quantized: bool,  # noqa: FBT001 - hypothesis
) -> None:
    generator = torch.Generator().manual_seed(case.seed)
    part: Any = _codes(case, OUT, generator)
    algorithm, coded = case.algorithm, True
    if not quantized:
        part, coded = weight_of(part), False
        algorithm = case.algorithm if case.algorithm in WEIGHT_ONLY else ""
    linear = FusedLinear(
        parts=(part, part),
        dtype=case.dtype,
        role=role,
        bias=torch.zeros(2 * case.hidden) if case.bias else None,
        input_scale=torch.tensor([0.5]),
        zero_points=case.zero_points,
    )

    tensors = linear_tensors(linear, algorithm)

    found = {
        suffix: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for suffix, tensor in tensors.items()
    }
    assert found == linear_shapes(
        case.hidden,
        2 * case.hidden,
        algorithm,
        group_size=case.group_size,
        dtype=case.dtype,
        has_bias=case.bias,
        role=role,
        zero_points=case.zero_points and quantized,
        coded=coded,
    )
    assert all(tensor.is_contiguous() for tensor in tensors.values())


@settings(max_examples=40)
@given(st.sampled_from([4, 8]), st.integers(1, 3), st.integers(1, 3), st.data())
def test_the_kernels_order_moves_codes_and_loses_none(
    bits: int, runs: int, packs: int, data: st.DataObject
) -> None:
    """Each place in memory holds one code: a one at (i, o) is one set place."""
    num_inputs, num_outputs = 64 * runs, 64 * packs
    row = data.draw(st.integers(0, num_inputs - 1))
    column = data.draw(st.integers(0, num_outputs - 1))
    code_IO = torch.zeros(num_inputs, num_outputs, dtype=torch.uint8)
    code_IO[row, column] = (1 << bits) - 1

    held = kernel_order(code_IO, bits).reshape(-1).view(torch.uint8)

    top = 255 if bits == 8 else {0xF, 0xF0}
    places = held.nonzero().flatten().tolist()
    assert len(places) == 1
    assert int(held[places[0]]) in (top if isinstance(top, set) else {top})


def test_the_kernels_order_is_the_one_of_a_small_matrix_by_hand() -> None:
    """Input 8 of output 0 comes third; even codes of a word come first."""
    code_IO = torch.arange(64, dtype=torch.uint8).reshape(-1, 1).repeat(1, 64)

    held = kernel_order(code_IO, 8).reshape(-1).view(torch.uint8)

    assert held[:16].tolist() == [0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15]
    # Output 1's first run follows output 0's.
    assert held[64:68].tolist() == [0, 8, 1, 9]


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9)])
def test_ampere_reads_codes_in_order(capability: tuple[int, int]) -> None:
    assert reads_order(capability)


@pytest.mark.parametrize("capability", [(7, 0), (9, 0), (10, 0), (12, 0)])
def test_other_gpus_do_not(capability: tuple[int, int]) -> None:
    assert not reads_order(capability)


def _square(bits: int = 4, groups: int = 2, size: int = 128) -> Codes:
    middle = 1 << (bits - 1)
    return Codes(
        code_IO=torch.full((size, size), middle, dtype=torch.uint8),
        scale_GO=torch.full((groups, size), 0.5),
        zero_GO=torch.full((groups, size), middle, dtype=torch.uint8),
    )


def _linear(codes: Codes, **settings_: Any) -> FusedLinear:
    return FusedLinear(parts=(codes,), dtype="float16", **settings_)


def test_a_cut_through_a_group_is_refused() -> None:
    with pytest.raises(Inexact, match="0 to 32 cut through groups of 64"):
        cut_inputs(_square(), 0, 32)


def test_groups_out_of_order_are_refused() -> None:
    codes = _square()
    mixed = Codes(
        code_IO=codes.code_IO,
        scale_GO=codes.scale_GO,
        zero_GO=codes.zero_GO,
        group_I=torch.arange(128) % 2,
    )
    with pytest.raises(Inexact, match="do not lie together"):
        cut_inputs(mixed, 0, 64)
    with pytest.raises(Inexact, match="do not lie together"):
        linear_tensors(_linear(mixed), AWQ)


def test_zero_points_need_to_be_announced() -> None:
    codes = _square()
    codes.zero_GO[0, 0] = 3

    with pytest.raises(Inexact, match="has no zero points, and these weights have"):
        linear_tensors(_linear(codes), AWQ)
    assert "zero" in linear_tensors(_linear(codes, zero_points=True), AWQ)


def test_a_scale_of_another_dtype_is_refused() -> None:
    codes = _square()
    codes.scale_GO[1, 5] = 1 + 2.0**-10

    with pytest.raises(Inexact, match="1 of 256 scales are not bfloat16 numbers"):
        linear_tensors(FusedLinear(parts=(codes,), dtype="bfloat16"), AWQ)
    assert linear_tensors(_linear(codes), AWQ)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((128, 128, 32), "groups of 64 and 128 inputs, not of 32"),
        ((160, 128, 64), "groups of 64 do not divide 160 inputs"),
        ((128, 127, 64), "in pairs, and there are 127"),
        ((256, 4, 64), "4 outputs are not more than 4 groups"),
    ],
)
def test_shapes_without_a_kernel_are_refused(
    shape: tuple[int, int, int], message: str
) -> None:
    assert message in awq_problem(*shape)


def test_a_matrix_of_many_scales_has_no_single_one() -> None:
    codes = _square(bits=8, groups=1)
    codes.scale_GO[0, 1] = 0.25
    linear = _linear(codes, input_scale=torch.tensor([1.0]))

    with pytest.raises(Inexact, match="these 128 outputs have 2"):
        linear_tensors(linear, "W8A8_SQ_PER_TENSOR_PLUGIN")


def test_static_activations_need_an_input_scale() -> None:
    with pytest.raises(ValueError, match="static activations and no input scale"):
        linear_tensors(_linear(_square(bits=8, groups=1)), "W8A8_SQ_PER_CHANNEL")


def test_parts_that_read_one_input_share_the_largest_step() -> None:
    linear = _linear(_square(bits=8, groups=1), input_scale=torch.tensor([0.5, 0.25]))
    algorithm = "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN"

    assert linear_tensors(linear, algorithm)["act_scale"].tolist() == [[0.5]]
    assert norm_tensors(linear, algorithm)["scale_to_int"].tolist() == [2.0]
    assert block_tensors(linear, algorithm) == {
        "quantization_scaling_factor": torch.tensor([2.0])
    }


@pytest.mark.parametrize("step", [1e-6, 1e9])
def test_a_step_without_an_inverse_is_refused(step: float) -> None:
    linear = _linear(_square(bits=8, groups=1), input_scale=torch.tensor([step]))
    with pytest.raises(Inexact, match="has no inverse among float16 numbers"):
        norm_tensors(linear, "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN")


@settings(max_examples=30)
@given(cases(), st.sampled_from(["column", "row"]))
def test_checks_know_what_the_layout_refuses(case: Case, role: Any) -> None:
    """What passes before weights are read does not fail on them."""
    size = case.inner
    problem = linear_problem(
        size,
        size,
        case.algorithm,
        role=role,
        group_size=case.group_size,
        tensor_parallel_size=case.tp,
        trtllm="0.12.0",
    )
    assume(not problem)
    generator = torch.Generator().manual_seed(case.seed)
    codes = _codes(case, GATE, generator)
    whole = Codes(
        code_IO=codes.code_IO[:1].expand(size, size),
        scale_GO=codes.scale_GO[:1].expand(max(size // case.group_size, 1), size),
        zero_GO=codes.zero_GO[:1].expand(max(size // case.group_size, 1), size),
    )
    cut = cut_inputs if role == "row" else cut_outputs
    for rank in range(case.tp):
        share = size // case.tp
        part = cut(whole, rank * share, (rank + 1) * share)
        linear = FusedLinear(
            parts=(part,),
            dtype=case.dtype,
            role=role,
            input_scale=torch.tensor([0.5]),
            zero_points=case.zero_points,
        )
        assert linear_tensors(linear, case.algorithm)


def test_newer_releases_want_what_their_padding_would_make() -> None:
    """Qwen2-0.5B: 896 inputs are 7 groups of 128, which two ranks cannot share."""
    settings_: dict[str, Any] = {"group_size": 128, "role": "column"}
    for ranks, trtllm, message in (
        (1, "0.16.0", ""),
        (2, "0.12.0", ""),
        (2, "0.16.0", "pads 896 inputs to a multiple of 128 x 2 ranks"),
    ):
        problem = linear_problem(
            896, 1280, AWQ, tensor_parallel_size=ranks, trtllm=trtllm, **settings_
        )
        assert message in problem
        assert bool(message) == bool(problem)


def test_a_row_is_cut_at_groups() -> None:
    problem = linear_problem(
        256,
        512,
        AWQ,
        role="row",
        group_size=128,
        tensor_parallel_size=4,
        trtllm="0.12.0",
    )
    assert problem == ("4 ranks get 64 inputs each, which groups of 128 do not divide")
