"""
What a recipe says against itself, beyond the range of any one value.

Each rule takes the sections that pydantic has accepted, so that a fault in one
section hides none in another, and yields problems by dotted path. The model's own
limits are checked in `plan.checks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from lmi_build.errors import Problem
from lmi_build.recipe.forms import check_enum_hint, source_kind
from lmi_build.recipe.methods import PROVIDERS, Fp8Method, Int8Method
from lmi_build.recipe.model import (
    BACKENDS,
    BoundsSection,
    CompileSection,
    ModelSection,
    PublishSection,
    VerifySection,
)
from lmi_build.recipe.spellings import VALUES
from lmi_build.recipe.words import show
from lmi_build.text import join_words
from lmi_build.values.job import SECRET_VARIABLES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmi_build.recipe.job_section import JobSection
    from lmi_build.recipe.section import Section


@dataclass(frozen=True, kw_only=True, slots=True)
class Sections:
    """The sound sections of a recipe; None where one is missing or faulty."""

    model: ModelSection | None = None
    quantize: Section | None = None
    bounds: BoundsSection | None = None
    compile: CompileSection | None = None
    verify: VerifySection | None = None
    publish: PublishSection | None = None
    job: JobSection | None = None


Rule = Callable[[Sections], Iterator[Problem]]

# S3 settings that mean nothing for a folder.
_S3_ONLY = ("kms_key_id", "tags", "expected_bucket_owner", "endpoint_url", "region")


def check_rules(sections: Sections) -> list[Problem]:
    """Run every rule."""
    return [problem for rule in RULES for problem in rule(sections)]


def _source(sections: Sections) -> Iterator[Problem]:
    spec = sections.model
    if spec is None:
        return
    kind = source_kind(spec.source)
    if spec.revision is not None and kind != "hub":
        yield Problem(
            code="recipe.unused-option",
            message=f"a revision means nothing for `{show(spec.source)}`",
            path="model.revision",
            hint="remove it, or name a hub repository as `owner/name`",
        )
    if spec.trust_remote_code and kind == "gguf":
        yield Problem(
            code="recipe.unused-option",
            message="a `.gguf` file has no code to trust",
            path="model.trust_remote_code",
            hint="remove it",
        )


def _calibration(sections: Sections) -> Iterator[Problem]:
    """INT8 and FP8 calibrate only what is static."""
    spec = sections.quantize
    if not isinstance(spec, Int8Method | Fp8Method) or spec.calibration is None:
        return
    if spec.activations != "static" and spec.kv_cache_dtype == "auto":
        yield Problem(
            code="recipe.unused-option",
            message=f"`calibration` means nothing for method `{spec.method}` without "
            "static activations or a quantized KV cache",
            path="quantize.calibration",
            hint="remove it, or set `activations: static`",
        )


def _names(sections: Sections) -> Iterator[Problem]:
    if sections.compile:
        name = sections.compile.backend
        yield from _known("compile.backend", name, BACKENDS, "lmi_build.backends")
    name = getattr(sections.quantize, "provider", PROVIDERS[0])
    yield from _known("quantize.provider", name, PROVIDERS, "lmi_build.quantizers")


@cache
def _plugins(group: str) -> tuple[str, ...]:
    from importlib.metadata import entry_points

    return tuple(entry.name for entry in entry_points(group=group))


def _known(path: str, name: str, names: Sequence[str], group: str) -> Iterator[Problem]:
    """Plugins are looked up only for names that are not ours: it takes 20 ms."""
    if name in names:
        return
    options = list(dict.fromkeys((*names, *_plugins(group))))
    if name not in options:
        last = path.rpartition(".")[2]
        yield Problem(
            code="recipe.unknown-value",
            message=f"there is no {last} `{show(name)}`",
            path=path,
            hint=check_enum_hint(name, options, dict(VALUES.get(last, {}))),
        )


def _loader(sections: Sections) -> Iterator[Problem]:
    """One backend of ours has more than one library to load with."""
    spec = sections.compile
    if spec is None or spec.loader == "auto" or spec.backend == "neuronx":
        return
    if spec.backend in BACKENDS:
        yield Problem(
            code="recipe.unused-option",
            message=f"`loader` means nothing for backend `{spec.backend}`",
            path="compile.loader",
            hint="remove it, or write `backend: neuronx`",
        )


def _output(sections: Sections) -> Iterator[Problem]:
    """Only one backend of ours has models that generate nothing."""
    bounds, spec = sections.bounds, sections.compile
    if bounds is None or bounds.max_output_len or spec is None:
        return
    if spec.backend in BACKENDS and spec.backend != "neuronx":
        yield Problem(
            code="bounds.no-output",
            message="`max_output_len` is 0: nothing could be generated",
            path="bounds.max_output_len",
            hint="raise it; 0 is for encoders, which `backend: neuronx` compiles",
        )


def _num_tokens(sections: Sections) -> Iterator[Problem]:
    bounds = sections.bounds
    if bounds is None or bounds.max_num_tokens is None:
        return
    # A pass shorter than a prompt is the backend's to judge: some compute it in pieces.
    least = bounds.max_batch_size * bounds.max_beam_width
    if bounds.max_num_tokens < least:
        yield Problem(
            code="bounds.num-tokens",
            message=f"{bounds.max_num_tokens} tokens of one pass are too few:"
            f" {bounds.max_batch_size} requests of {bounds.max_beam_width} beams need"
            f" {least} in each step",
            path="bounds.max_num_tokens",
            hint=f"raise it to {least}, or remove it and let the backend derive it",
        )


def _verify_lengths(sections: Sections) -> Iterator[Problem]:
    bounds, verify = sections.bounds, sections.verify
    if bounds is None or verify is None:
        return
    if verify.max_new_tokens and verify.max_new_tokens > bounds.max_output_len:
        yield Problem(
            code="bounds.verify-output",
            message=f"answers of {verify.max_new_tokens} tokens are longer than "
            f"`bounds.max_output_len`, which is {bounds.max_output_len}",
            path="verify.max_new_tokens",
            hint=f"lower it to {bounds.max_output_len}, or remove it",
        )
    total = bounds.max_input_len + bounds.max_output_len
    if verify.max_seq_len and verify.max_seq_len > total:
        yield Problem(
            code="bounds.verify-length",
            message=f"sequences of {verify.max_seq_len} tokens are longer than the "
            f"engine's {bounds.max_input_len} + {bounds.max_output_len} = {total}",
            path="verify.max_seq_len",
            hint=f"lower it to {total}, or remove it",
        )


def _publish(sections: Sections) -> Iterator[Problem]:
    publish = sections.publish
    if publish is None or publish.to.startswith("s3://"):
        return
    for name in _S3_ONLY:
        if getattr(publish, name):
            yield Problem(
                code="recipe.unused-option",
                message=f"`{name}` means nothing for a folder",
                path=f"publish.{name}",
                hint="remove it, or publish to `s3://bucket/prefix`",
            )


def _job(sections: Sections) -> Iterator[Problem]:
    """The API takes these only together, or only for one kind of job."""
    job = sections.job
    if job is None:
        return
    if bool(job.subnets) is not bool(job.security_group_ids):
        missing = "security_group_ids" if job.subnets else "subnets"
        given = "subnets" if job.subnets else "security_group_ids"
        yield Problem(
            code="recipe.job-network",
            message=f"`{given}` without `{missing}`; the API takes both or neither",
            path=f"job.{given}",
            hint=f"add `{missing}`",
        )
    if job.network_isolation and job.num_hosts > 1:
        yield Problem(
            code="recipe.job-network",
            message=f"{job.num_hosts} hosts without a network cannot share stages",
            path="job.num_hosts",
            hint="write `num_hosts: 1`, or leave out `network_isolation`",
        )
    if job.network_isolation and job.secrets:
        yield Problem(
            code="recipe.unused-option",
            message="a job without a network can read no secret",
            path="job.secrets",
            hint="remove them: sources that need one are read before the jobs",
        )
    for name in sorted({*job.secrets} - {*SECRET_VARIABLES}):
        yield Problem(
            code="recipe.job-no-secret",
            message=f"no stage reads a secret from `{show(name)}`",
            path=f"job.secrets.{name}",
            hint=f"use {join_words(SECRET_VARIABLES)}, or remove it",
        )
    if job.spot and job.kind == "processing":
        yield Problem(
            code="recipe.unused-option",
            message="SageMaker runs no processing job on spare capacity",
            path="job.spot",
            hint="remove it, or write `kind: training`",
        )
    wait, runtime = job.max_wait_seconds, job.max_runtime_seconds
    if wait and not job.spot:
        yield Problem(
            code="recipe.unused-option",
            message="`max_wait_seconds` means nothing without `spot`",
            path="job.max_wait_seconds",
            hint="remove it, or write `spot: true`",
        )
    elif wait and runtime and wait < runtime:
        yield Problem(
            code="recipe.out-of-range",
            message=f"`max_wait_seconds` is {wait}, less than the {runtime} of"
            " `max_runtime_seconds`, which it contains",
            path="job.max_wait_seconds",
            hint=f"raise it to {runtime} or more",
        )


RULES: tuple[Rule, ...] = (
    _source,
    _calibration,
    _names,
    _loader,
    _output,
    _num_tokens,
    _verify_lengths,
    _publish,
    _job,
)
