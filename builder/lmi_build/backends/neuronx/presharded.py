"""
What a folder of weights split by core cannot bring back when it is loaded.

Transformers NeuronX writes the tensors of every core, and nothing of how often it
repeated a key head. A loader that finds them takes the number of key heads from
config.json, rounds it up to the cores, and makes caches of that size. Where heads were
repeated more often than that, its graphs do not fit together and the model does not
load, after a compilation that looked well.

Sources: transformers-neuronx 0.12 and 0.13 decoder.py `load_presharded_weights` and
`init_caches`. The source of 0.13 was run for the numbers in the tests.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lmi_build.backends.neuronx.heads import lay_out, round_up
from lmi_build.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmi_build.backends.neuronx.heads import HeadTerms

_MOST_CORES = 64


def loads_presharded(terms: HeadTerms) -> bool:
    """
    Whether caches of a loaded folder have the heads that its graphs were made for.

    Args:
        terms: Heads and cores.
    """
    heads = lay_out(terms)
    if heads.batch_shards > 1:
        return True
    cores = terms.tensor_parallel_size
    return heads.cache_heads == round_up(terms.num_kv_heads, cores) // cores


def presharded_problems(
    terms: HeadTerms, *, shard_over_sequence: bool = False
) -> Iterator[Problem]:
    """
    Why weights that are split by core could not be loaded again.

    Args:
        terms: Heads and cores.
        shard_over_sequence: The option of that name.

    Example:
        >>> from lmi_build.backends.neuronx.heads import HeadTerms
        >>> terms = HeadTerms(
        ...     num_heads=32, num_kv_heads=8, head_dim=128,
        ...     tensor_parallel_size=12, row="0.13",
        ... )
        >>> [problem.code for problem in presharded_problems(terms)]
        ['neuronx.presharded-heads']
    """
    if shard_over_sequence:
        yield Problem(
            code="neuronx.presharded-sequence",
            message="`shard_over_sequence` depends on how often key heads are repeated,"
            " which a folder of weights split by core does not say: it would compile"
            " and not load",
            path="compile.options.shard_over_sequence",
            hint="remove the option, or take a release before 0.30",
        )
    if loads_presharded(terms):
        return
    heads, cores = lay_out(terms), terms.tensor_parallel_size
    yield Problem(
        code="neuronx.presharded-heads",
        message=f"over {cores} cores {terms.num_kv_heads} key heads become"
        f" {heads.cache_heads} in each, and a loader of weights split by core makes"
        f" room for {round_up(terms.num_kv_heads, cores) // cores}: it would compile"
        " and not load",
        path="compile.tensor_parallel_size",
        hint=_hint(terms),
    )


def _hint(terms: HeadTerms) -> str:
    if terms.requested is not None and loads_presharded(replace(terms, requested=None)):
        return "remove `group_query_attention` from `compile.options`"
    good = [
        cores
        for cores in (1, *range(2, _MOST_CORES + 1, 2))
        if loads_presharded(replace(terms, tensor_parallel_size=cores))
    ]
    near = sorted(good, key=lambda cores: abs(cores - terms.tensor_parallel_size))[:2]
    sizes = " or ".join(str(cores) for cores in sorted(near))
    return f"write `tensor_parallel_size: {sizes}`, or take a release before 0.30"
