"""Our kernels give the numbers of float64, for every shape and instruction set."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._inductor import cpu_vec_isa

from aotinductor_kernels import Kernels
from lmi_build.backends.aotinductor import graphs
from lmi_build.backends.aotinductor.kernels import compile_kernels
from lmi_build.backends.aotinductor.linears import GroupedLinear
from lmi_build.backends.aotinductor.worker import ISAS

if TYPE_CHECKING:
    from torch import Tensor

FLAGS = frozenset(Path("/proc/cpuinfo").read_text("utf-8").split())
HERE = [isa for isa, (_, _, flags) in ISAS.items() if set(flags) <= FLAGS]
COMPILER = shutil.which("g++")
# Sums of float32 against sums of float64, for up to a few hundred terms.
ROUNDING = 2e-6
pytestmark = pytest.mark.skipif(not HERE or not COMPILER, reason="no g++, or no AVX2")


@pytest.fixture(scope="module", params=HERE)
def kernels(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Kernels:
    """Compiled for each instruction set that this processor has."""
    library = tmp_path_factory.mktemp("kernels") / f"{request.param}.so"
    assert COMPILER is not None
    compile_kernels(COMPILER, ISAS[request.param][0], library)
    return Kernels(library)


@pytest.mark.parametrize("isa", HERE)
def test_graphs_use_no_more_than_their_instruction_set(
    monkeypatch: pytest.MonkeyPatch, isa: str
) -> None:
    """What else the building machine has is in no flag, and in no engine then."""
    monkeypatch.setattr(cpu_vec_isa, "supported_vec_isa_list", [])
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setenv("TORCHINDUCTOR_VEC_ISA_OK", "1")
    graphs._allow_only(isa)

    (kind,) = cpu_vec_isa.supported_vec_isa_list
    assert kind
    flags = {flag.removeprefix("-m") for flag in kind.build_arch_flags().split()}
    assert flags <= {*ISAS["avx2"][2], *ISAS[isa][2]}


def near(found: Tensor, wanted: Tensor, size: Tensor) -> bool:
    """Within rounding of sums whose terms have these absolute sums."""
    return bool((found.double() - wanted).abs().le(ROUNDING * size + 1e-30).all())


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 14),
    outputs=st.sampled_from([1, 7, 16, 33]),
    groups=st.integers(1, 4),
    size=st.sampled_from([2, 10, 32, 40, 64, 72]),
    is_packed=st.booleans(),
    has_zero=st.booleans(),
    scales=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    seed=st.integers(0, 9999),
)
def test_products_with_codes_are_those_of_the_weights(  # noqa: PLR0913 - one shape
    kernels: Kernels,
    rows: int,
    outputs: int,
    groups: int,
    size: int,
    is_packed: bool,  # noqa: FBT001
    has_zero: bool,  # noqa: FBT001
    scales: torch.dtype,
    seed: int,
) -> None:
    """Codes of 4 and 8 bits, any group, any number of rows; widened bit for bit."""
    generator = torch.Generator().manual_seed(seed)
    shape = (outputs, groups, size // 2 if is_packed else size)
    low, high, dtype = (0, 256, torch.uint8) if is_packed else (-128, 128, torch.int8)
    code = torch.randint(low, high, shape, generator=generator).to(dtype)
    scale = (torch.rand(shape[:2], generator=generator) * 0.01 + 1e-7).to(scales)
    high = 16 if is_packed else high
    zero = torch.randint(low, high, shape[:2], generator=generator).to(dtype)
    linear = GroupedLinear(code, scale, zero if has_zero else None)
    x = torch.randn(rows, groups * size, generator=generator)
    weight = linear.weight()
    given_zero = [zero] if has_zero else None

    for narrow, kind in ((False, torch.float32), (True, torch.bfloat16)):
        found = kernels("widened", code, scale, given_zero, narrow)
        assert torch.equal(found, weight.to(kind))
    found = kernels("grouped_product", x, code, scale, given_zero)
    wide, reach = weight.double(), x.double().abs() @ weight.double().abs().t()
    assert near(found, x.double() @ wide.t(), reach)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 14),
    outputs=st.integers(1, 40),
    inputs=st.integers(1, 130),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    seed=st.integers(0, 9999),
)
def test_products_with_floats_are_those_of_the_weights(
    kernels: Kernels,
    rows: int,
    outputs: int,
    inputs: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    """Weights of every float type, those below the smallest normal half included."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator)
    weight = (weight * torch.logspace(0, -7, inputs)).to(dtype)
    x = torch.randn(rows, inputs, generator=generator)

    found = kernels("float_product", x, weight)
    wide, reach = weight.double(), x.double().abs() @ weight.double().abs().t()
    assert near(found, x.double() @ wide.t(), reach)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 5),
    outputs=st.integers(1, 20),
    inputs=st.integers(1, 200),
    seed=st.integers(0, 9999),
)
def test_products_of_whole_numbers_are_exact(
    kernels: Kernels, rows: int, outputs: int, inputs: int, seed: int
) -> None:
    """Every number of 8 bits, on both sides."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-128, 128, (rows, inputs), generator=generator)
    weight = torch.randint(-128, 128, (outputs, inputs), generator=generator)

    found = kernels("whole_product", x.short(), weight.to(torch.int8))
    assert torch.equal(found.long(), x @ weight.t())


@settings(max_examples=60, deadline=None)
@given(
    slots=st.integers(1, 3),
    tokens=st.integers(1, 3),
    kinds=st.integers(1, 2),
    shared=st.integers(1, 3),
    width=st.sampled_from([4, 16, 40, 64, 80]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    cap=st.sampled_from([0.0, 5.0]),
    window=st.sampled_from([0, 1, 7]),
    has_bias=st.booleans(),
    seed=st.integers(0, 9999),
)
def test_attention_is_that_of_its_definition(  # noqa: PLR0913 - one shape
    kernels: Kernels,
    slots: int,
    tokens: int,
    kinds: int,
    shared: int,
    width: int,
    dtype: torch.dtype,
    cap: float,
    window: int,
    has_bias: bool,  # noqa: FBT001
    seed: int,
) -> None:
    """Each row sees its places alone; rows of padding give zeros."""
    generator = torch.Generator().manual_seed(seed)
    places, limit, heads, rows = 48, 40, kinds * shared, slots * tokens
    shape = (slots, kinds, places, width)
    key, value = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    # What nobody wrote may hold anything.
    key[:, :, limit:], value[:, :, limit:] = math.nan, math.inf
    query = torch.randn(rows, heads, width, generator=generator)
    bias = torch.randn(heads, places, generator=generator)
    place = torch.randint(0, limit + 1, (rows,), generator=generator)
    optional = [bias] if has_bias else None

    found = kernels(
        "attention", query, key, value, place, optional, cap, window, limit
    ).view(rows, heads, width)
    for row in range(rows):
        last = int(place[row])
        if last == limit:
            assert not found[row].any()
            continue
        seen = slice(max(0, last + 1 - window) if window else 0, last + 1)
        for head in range(heads):
            part = (row // tokens, head // shared, seen)
            score = key[part].double().numpy() @ query[row, head].double().numpy()
            score = np.tanh(score / cap) * cap if cap else score
            score = score + bias[head, seen].double().numpy() * has_bias
            weight = np.exp(score - score.max())
            wanted = weight / weight.sum() @ value[part].double().numpy()
            assert np.abs(found[row, head].numpy() - wanted).max() < 2e-5
