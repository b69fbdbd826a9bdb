"""Hypothesis strategies for whole recipes, as plain values."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from lmi_build.recipe.model import BACKENDS

NAMES = st.from_regex(r"[a-z0-9](?:[a-z0-9_-]|\.(?!\.)){0,40}", fullmatch=True)
TEXTS = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp")), max_size=40
)
SOURCES = st.one_of(
    st.from_regex(r"[A-Za-z0-9]{1,9}/[A-Za-z0-9]{1,9}", fullmatch=True),
    st.from_regex(r"\./[a-z ]{1,9}[a-z]", fullmatch=True),
    st.from_regex(r"[a-z]{1,9}\.gguf", fullmatch=True),
    st.from_regex(r"s3://[a-z]{3,9}/[a-z]{1,9}", fullmatch=True),
)
SHARES = st.floats(min_value=0.001, max_value=0.999)
GROUPS = st.sampled_from([-1, 16, 32, 64, 128, 256])
IGNORE = st.lists(st.sampled_from(["lm_head", "*", "model.layers.0.*"]), max_size=3)


def section(required: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy:
    """A mapping with some of its optional keys."""
    return st.fixed_dictionaries(required, optional=optional)


CALIBRATION = section(
    {},
    {
        "dataset": st.sampled_from(
            ["builtin:python-docs", "./rows.jsonl", "hub:owner/set", "s3://bkt/a.txt"]
        ),
        "num_samples": st.integers(1, 512),
        "max_seq_len": st.integers(1, 4096),
        "seed": st.integers(0, 2**32 - 1),
        "chat_template": st.booleans(),
    },
)
COMMON = {"provider": st.just("builtin"), "ignore": IGNORE}
QUANTIZE = st.one_of(
    section({"method": st.just("none")}, {}),
    section({"method": st.just("int8")}, COMMON),
    section(
        {"method": st.just("gptq")},
        {
            **COMMON,
            "bits": st.sampled_from([2, 3, 4, 8]),
            "group_size": GROUPS,
            "sym": st.booleans(),
            "desc_act": st.booleans(),
            "lm_head": st.booleans(),
            "damp_percent": SHARES,
            "calibration": CALIBRATION,
        },
    ),
    section(
        {"method": st.just("awq")},
        {**COMMON, "group_size": GROUPS, "calibration": CALIBRATION},
    ),
    section(
        {"method": st.just("smoothquant")},
        {
            **COMMON,
            "smoothing_strength": st.floats(0, 1),
            "calibration": CALIBRATION,
        },
    ),
)
OPTIONS = st.dictionaries(
    TEXTS.filter(bool),
    st.recursive(
        st.one_of(st.booleans(), st.integers(-(10**9), 10**9), TEXTS, SHARES),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=4,
    ),
    max_size=3,
)
VARIABLES = st.dictionaries(
    st.from_regex(r"VAR_[A-Z0-9_]{1,9}", fullmatch=True).filter(
        lambda name: "PASS" not in name and "PWD" not in name
    ),
    TEXTS,
    max_size=3,
)
VERIFY = section(
    {},
    {
        "prompts": st.lists(TEXTS.filter(str.strip), min_size=1, max_size=3),
        "num_samples": st.integers(1, 64),
        "gates": section(
            {},
            {
                "max_perplexity_ratio": st.floats(1, 2),
                "max_mean_kl": SHARES,
                "min_top1_agreement": SHARES,
                "max_abs_logit_error": st.integers(1, 9),
            },
        ),
    },
)
PUBLISH = section(
    {"to": st.just("s3://models/tiny")},
    {
        "kms_key_id": st.just("alias/models"),
        "tags": st.dictionaries(
            st.from_regex(r"[a-z .:]{0,8}[a-z]", fullmatch=True).filter(
                lambda key: not key.startswith("aws:")
            ),
            st.from_regex(r"[a-z0-9 /=]{0,8}", fullmatch=True),
            max_size=4,
        ),
        "expected_bucket_owner": st.just("012345678901"),
        "endpoint_url": st.just("http://127.0.0.1:9000"),
        "region": st.just("eu-central-1"),
    },
)
RECIPES: st.SearchStrategy[dict[str, Any]] = section(
    {
        "schema": st.just("lmi-build/v1"),
        "name": NAMES,
        "model": section(
            {"source": SOURCES},
            {"dtype": st.sampled_from(["auto", "float16", "bfloat16", "float32"])},
        ),
        "bounds": section(
            {
                "max_input_len": st.integers(1, 1 << 20),
                "max_output_len": st.integers(1, 1 << 20),
            },
            {
                "max_batch_size": st.integers(1, 512),
                "max_num_tokens": st.integers(1 << 20, 1 << 24),
                "max_beam_width": st.integers(1, 8),
            },
        ),
        "compile": section(
            {"backend": st.sampled_from(BACKENDS)},
            {
                "target": st.sampled_from(["cpu", "ml.g5.12xlarge"]),
                "release": st.just("djl-tensorrtllm-0.33.0"),
                "tensor_parallel_size": st.integers(1, 8),
                "options": OPTIONS,
            },
        ),
    },
    {
        "quantize": QUANTIZE,
        "serve": section(
            {},
            {
                "rolling_batch": st.sampled_from(["auto", "disable", "vllm"]),
                "predict_timeout": st.integers(1, 3600),
                "environment": VARIABLES,
            },
        ),
        "verify": VERIFY,
        "package": section({}, {"format": st.sampled_from(["prefix", "tar.gz"])}),
        "publish": PUBLISH,
    },
)
