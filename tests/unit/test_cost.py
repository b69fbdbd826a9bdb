"""Roofline and cost against numbers worked out by hand and published ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmi_build import registry
from lmi_build.catalog.market import overlay, read_market, shipped_market
from lmi_build.cli.main import run
from lmi_build.costs import CostQuestion, CostReport, cost_recipe
from lmi_build.errors import UsageInvalid
from lmi_build.plan.costs import Served, decoder_of, experts_of, subjects_of
from lmi_build.sizing.build_hours import build_hours
from lmi_build.sizing.cost import Engine, Traffic, cost, speed
from lmi_build.sizing.roofline import (
    COMPUTE_SHARE,
    LINK_SHARE,
    MEMORY_SHARE,
    PASS_SECONDS,
    SUM_SECONDS,
    Decoder,
    Machine,
    decode_seconds,
    prefill_seconds,
)
from lmi_build.values.ranges import Range
from throughputs import measured
from tiny_costs import facts_8b, recipe_8b
from tiny_models import hf_files

DECODER = Decoder(
    num_layers=10,
    hidden_size=1000,
    attention_width=800,
    num_active_params=10**9,
    weight_bytes=2 * 10**9,
    kv_bytes_per_token=4000,
)
MACHINE = Machine(
    num_ranks=2,
    flops_per_second=1e14,
    memory_bytes_per_second=5e11,
    link_bytes_per_second=1e10,
)


def test_prefill_is_what_a_hand_works_out() -> None:
    """T 100: 2e11 for the weights, 2*10*800*1e4 for attention, over two ranks."""
    compute = (2e9 * 100 + 2 * 10 * 800 * 100**2) / 2e14
    memory = (2e9 + 100 * 4000) / 1e12
    # Two sums in each layer; each moves 100 * 1000 numbers of two bytes, once.
    link = 20 * (100 * 1000 * 2) / 1e10
    found = prefill_seconds(DECODER, MACHINE, num_tokens=100)

    assert found.low == pytest.approx(
        max(
            compute / COMPUTE_SHARE.high,
            memory / MEMORY_SHARE.high,
            link / LINK_SHARE.high,
        )
        + 20 * SUM_SECONDS.low
        + PASS_SECONDS.low
    )
    assert found.high == pytest.approx(
        compute / COMPUTE_SHARE.low
        + memory / MEMORY_SHARE.low
        + link / LINK_SHARE.low
        + 20 * SUM_SECONDS.high
        + PASS_SECONDS.high
    )


def test_a_step_reads_weights_once_and_every_cache() -> None:
    """B 4, C 500: the memory of a step, where nothing else counts."""
    machine = Machine(num_ranks=1, flops_per_second=1e18, memory_bytes_per_second=1e12)
    memory = (2e9 + 4 * 500 * 4000) / 1e12
    found = decode_seconds(DECODER, machine, num_cached=500, batch_size=4)

    assert found.low == pytest.approx(memory / MEMORY_SHARE.high, rel=1e-3)


def test_experts_are_read_as_tokens_reach_them() -> None:
    """8 experts, 2 for each token: one token reads a quarter, many read all."""
    moe = Decoder(
        num_layers=1,
        hidden_size=1,
        attention_width=1,
        num_active_params=1,
        weight_bytes=100,
        kv_bytes_per_token=1,
        expert_bytes=800,
        num_experts=8,
        num_experts_per_token=2,
    )

    assert moe.read_bytes(1) == pytest.approx(100 + 200)
    assert moe.read_bytes(2) == pytest.approx(100 + 800 * (1 - 0.75**2))
    assert moe.read_bytes(1000) == pytest.approx(900)


def test_layers_that_slide_see_their_window() -> None:
    slid = replace(DECODER, window=1000, sliding_share=0.75)

    assert DECODER.seen_tokens(5000) == 5000
    assert slid.seen_tokens(500) == 500
    assert slid.seen_tokens(5000) == 0.25 * 5000 + 0.75 * 1000


def test_a_request_shares_its_steps() -> None:
    engine = Engine(decoder=DECODER, machine=MACHINE, batch_size=16)
    traffic = Traffic(mean_input_len=200, mean_output_len=100)
    prefill = prefill_seconds(DECODER, MACHINE, num_tokens=200)
    step = decode_seconds(DECODER, MACHINE, num_cached=250, batch_size=16)
    found = speed(engine, traffic)
    price = cost(engine, traffic, Range(low=3.6, high=3.6))

    assert found.request_seconds.low == pytest.approx(prefill.low + step.low * 100 / 16)
    # 3.6 USD an hour are 0.001 USD a second, and a request has 300 tokens.
    assert price.usd_per_million.high == pytest.approx(
        found.request_seconds.high * 0.001 * 1e6 / 300
    )
    assert price.num_instances is None
    assert price.reserved_usd_per_million is None


def test_copies_and_stages_serve_more() -> None:
    traffic = Traffic(mean_input_len=200, mean_output_len=100)
    one = speed(Engine(decoder=DECODER, machine=MACHINE, batch_size=16), traffic)
    two = speed(
        Engine(decoder=DECODER, machine=MACHINE, batch_size=16, num_copies=2), traffic
    )
    staged = speed(
        Engine(decoder=DECODER, machine=MACHINE, batch_size=16, num_stages=2), traffic
    )

    assert two.requests_per_second.low == pytest.approx(2 * one.requests_per_second.low)
    assert two.prefill_seconds == one.prefill_seconds
    assert staged.input_seconds.low == pytest.approx(one.input_seconds.low / 2)
    assert staged.input_seconds.high == pytest.approx(one.input_seconds.high)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Range(low=2, high=1),
        lambda: Range(low=-1, high=1),
        lambda: Traffic(mean_input_len=0, mean_output_len=1),
        lambda: Traffic(
            mean_input_len=1, mean_output_len=1, requests_per_second=float("inf")
        ),
        lambda: _cost(price=0),
        lambda: _cost(utilisation=1.5),
    ],
)
def test_numbers_without_sense_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"range|number|price|utilisation"):
        make()


def _cost(price: float = 1, utilisation: float | None = None) -> Any:
    engine = Engine(decoder=DECODER, machine=MACHINE, batch_size=1)
    traffic = Traffic(mean_input_len=1, mean_output_len=1)
    hour = Range(low=price, high=price)
    return cost(engine, traffic, hour, utilisation=utilisation)


# Slower than predicted: early kernels of vLLM for 4 bits and for eight GPUs without
# NVLink, and first tokens of small models on 24 cores, where a pass costs more.
MISSES = {
    ("vllm-a10g-fp16", "codellama-34b", 8, 8),
    ("vllm-a10g-4bit", "llama-2-70b", 4, 8),
    ("vllm-a10g-4bit", "llama-2-70b", 8, 8),
    ("vllm-a10g-4bit", "codellama-34b", 4, 8),
    ("neuronx-inf2", "mistral-7b", 24, 4096),
    ("neuronx-inf2-first-token", "llama-7b", 24, 128),
    ("neuronx-inf2-first-token", "mistral-7b", 24, 128),
    ("neuronx-inf2-first-token", "mistral-7b", 24, 4096),
}


def test_published_speeds_lie_in_their_ranges() -> None:
    """All but eight; those are slower than predicted, and stand in the docs."""
    rows = measured()
    missed = [row for row in rows if not row.is_met]

    assert len(rows) == 122
    assert len(missed) == len(MISSES)
    assert {
        (row.source, row.model, row.num_ranks, row.input_len) for row in missed
    } == MISSES
    for row in rows:
        found = row.predicted()
        if not row.is_met:
            slower = row.number > found.high
            assert slower if row.kind == "first_token_ms" else row.number < found.low
        # A range that is too wide would say nothing.
        assert found.high / found.low < 8


def test_a_model_is_counted_from_its_headers() -> None:
    """Llama 3.1 8B: products without the embedding, 128 KiB of cache a token."""
    report, served = _report_8b()
    decoder = decoder_of(served)

    assert decoder.num_active_params == 7_504_658_432
    assert decoder.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2
    # Weights are read once but for the embedding; norms are of no weight.
    assert decoder.weight_bytes == pytest.approx(2 * 7_504_658_432, rel=1e-3)
    assert served.num_ranks == 1
    assert report.num_copies == 4


def _report_8b(**asked: Any) -> tuple[CostReport, Served]:
    recipe, facts = recipe_8b(), facts_8b()
    report = cost_recipe(recipe, facts, CostQuestion(market=shipped_market(), **asked))
    served = Served(
        subject=subjects_of(facts, recipe.quantize, (), registry.quantizer)[""],
        facts=facts,
        runtime="tensorrt-llm",
        instance=report.instance,
        device=report.device,
        bounds=recipe.bounds,
        tensor_parallel_size=1,
        recipe=recipe,
        experts=experts_of(facts),
    )
    return report, served


def test_experts_and_a_shared_embedding_are_counted_once() -> None:
    """8 experts of which 2 are used; the head is the embedding, on every rank."""
    facts = facts_8b()
    split = {
        name.replace("mlp.", f"mlp.experts.{index}."): shape
        for name, shape in ((fact.name, fact.shape) for fact in facts.tensors)
        if ".mlp." in name
        for index in range(8)
    }
    kept = {
        fact.name: fact.shape
        for fact in facts.tensors
        if ".mlp." not in fact.name and fact.name != "lm_head.weight"
    }
    moe = replace(
        facts,
        config={**facts.config, "num_local_experts": 8, "num_experts_per_tok": 2},
        geometry=replace(facts.geometry, tie_word_embeddings=True),
        tensors=tuple(
            replace(facts.tensors[0], name=name, shape=shape)
            for name, shape in sorted({**kept, **split}.items())
        ),
    )
    dense = replace(moe, config={**moe.config, "num_experts_per_tok": 0})
    question = CostQuestion(market=shipped_market(), num_alternatives=0)
    told = cost_recipe(recipe_8b(), dense, question)
    assert any("experts" in note for note in told.notes)
    _, served = _report_8b()
    served = replace(
        served,
        facts=moe,
        subject=subjects_of(moe, served.recipe.quantize, (), registry.quantizer)[""],
        experts=experts_of(moe),
        tensor_parallel_size=8,
    )
    mlp = 32 * 3 * 4096 * 14336
    rest = 32 * (2 * 4096 * 4096 + 2 * 1024 * 4096) + 128256 * 4096
    decoder = decoder_of(served)

    assert decoder.num_active_params == pytest.approx(rest + 2 * mlp, rel=1e-3)
    assert decoder.expert_bytes == pytest.approx(2 * 8 * mlp, rel=1e-2)
    assert decoder.weight_bytes == pytest.approx(2 * rest, rel=1e-2)


def test_a_rate_makes_instances() -> None:
    report, _ = _report_8b(
        mean_input_len=1000, mean_output_len=300, requests_per_second=40
    )
    found = report.cost

    assert found.num_instances is not None
    assert 1 <= found.num_instances.low <= found.num_instances.high
    assert found.reserved_usd_per_hour.low == pytest.approx(
        found.num_instances.low * report.price.usd_per_hour.low
    )
    assert found.reserved_usd_per_million is not None
    tokens = 40 * 1300 * 3600
    assert found.reserved_usd_per_million.low == pytest.approx(
        found.reserved_usd_per_hour.low * 1e6 / tokens
    )


def test_traffic_over_the_bounds_is_told() -> None:
    """It is priced as asked; that the engine would refuse it is a note."""

    def notes(**lengths: int) -> str:
        return " ".join(_report_8b(**lengths)[0].notes)

    most_in = recipe_8b().bounds.max_input_len
    most_out = recipe_8b().bounds.max_output_len
    fits = notes(mean_input_len=most_in, mean_output_len=most_out)

    assert "refused" not in fits
    found = notes(mean_input_len=most_in + 1, mean_output_len=most_out)
    assert f"mean input of {most_in + 1} tokens" in found
    assert "mean output" not in found
    found = notes(mean_input_len=most_in, mean_output_len=most_out + 1)
    assert f"`bounds.max_output_len` = {most_out}" in found


def test_alternatives_are_cheaper_and_say_what_changes() -> None:
    report, _ = _report_8b(
        mean_input_len=500, mean_output_len=200, requests_per_second=0.5
    )

    assert report.alternatives
    for item in report.alternatives:
        assert item.setup.changes
        paid = item.cost.reserved_usd_per_hour
        assert paid.high < report.cost.reserved_usd_per_hour.high
    instances = [item.setup.instance for item in report.alternatives]
    assert len(set(instances)) == len(instances)
    words = " ".join(
        word for item in report.alternatives for word in item.setup.changes
    )
    assert "awq" in words or "int8" in words
    assert "inf2" in words


def test_a_users_catalogue_decides() -> None:
    text = (
        '[prices.ours]\nregion = "us-east-1"\njobs = ["endpoint"]\n'
        'source = "contract"\nchecked = "2026-10-01"\n'
        'usd_per_hour = { "g5.12xlarge" = 1.0 }\n'
    )
    market = overlay(shipped_market(), text, "ours.toml")
    report = cost_recipe(recipe_8b(), facts_8b(), CostQuestion(market=market))
    before = cost_recipe(recipe_8b(), facts_8b(), CostQuestion(market=shipped_market()))

    assert report.price.source == "contract"
    assert report.cost.usd_per_million.low == pytest.approx(
        before.cost.usd_per_million.low / before.price.usd_per_hour.low
    )


def test_a_users_instance_may_be_the_cheaper_one() -> None:
    text = (
        '[instances.g9]\naccelerator = "gpu"\ndevice = "X"\ndevice_memory_mib = 98304\n'
        'cores_per_device = 1\ncompute_capability = "13.0"\nsource = "us"\n'
        'uses = ["endpoint"]\nsizes = { xlarge = [1, 8, 64] }\nrates = "L40S"\n'
        '[prices.g9]\nregion = "us-east-1"\njobs = ["endpoint"]\nsource = "us"\n'
        'checked = "2026-10-01"\nusd_per_hour = { "g9.xlarge" = 0.01 }\n'
    )
    market = overlay(shipped_market(), text, "ours.toml")
    report = cost_recipe(recipe_8b(), facts_8b(), CostQuestion(market=market))
    other = cost_recipe(
        recipe_8b(), facts_8b(), CostQuestion(market=market, instance="g9.xlarge")
    )

    assert report.alternatives[0].setup.instance == "ml.g9.xlarge"
    assert other.fits
    assert other.price.usd_per_hour == Range(low=0.01, high=0.01)


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"instance": "ml.g5.3xlarge"}, "cost.no-instance"),
        ({"instance": "cpu"}, "cost.no-instance"),
        ({"instance": "ml.c7i.xlarge"}, "cost.no-rates"),
        ({"instance": "ml.p5e.48xlarge"}, "cost.no-price"),
        ({"region": "eu-west-3"}, "cost.no-price"),
        ({"build_instance": "ml.q1.xlarge"}, "cost.no-instance"),
        ({"mean_input_len": -3}, "cost.bad-number"),
    ],
)
def test_what_cannot_be_answered_is_told(asked: dict[str, Any], code: str) -> None:
    with pytest.raises(UsageInvalid) as caught:
        cost_recipe(
            recipe_8b(), facts_8b(), CostQuestion(market=shipped_market(), **asked)
        )

    assert caught.value.code == code
    assert caught.value.hints


def test_ranks_must_exist() -> None:
    with pytest.raises(UsageInvalid) as caught:
        cost_recipe(
            recipe_8b(tensor_parallel_size=8),
            facts_8b(),
            CostQuestion(market=shipped_market()),
        )
    assert caught.value.code == "cost.too-many-ranks"


def test_an_encoder_has_no_output_to_cost() -> None:
    with pytest.raises(UsageInvalid) as caught:
        cost_recipe(
            recipe_8b(max_output_len=0),
            facts_8b(),
            CostQuestion(market=shipped_market()),
        )
    assert caught.value.code == "cost.no-length"


def test_a_build_has_a_range_or_none() -> None:
    known = build_hours(
        num_params=7 * 10**9, num_bytes=14 * 10**9, method="gptq", backend="neuronx"
    )

    assert known is not None
    assert 0 < known.low < known.high
    assert (
        build_hours(num_params=1, num_bytes=1, method="magic", backend="neuronx")
        is None
    )


def test_the_command_reads_a_log_and_a_catalogue(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From files alone: a model folder, a recipe, a log with times, prices."""
    model = tmp_path / "model"
    model.mkdir()
    for name, content in hf_files().items():
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(content)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "schema: lmi-build/v1\nname: tiny\n"
        f"model: {{source: {model}}}\n"
        "quantize: {method: none}\n"
        "bounds: {max_input_len: 64, max_output_len: 32, max_batch_size: 4}\n"
        "compile: {backend: tensorrt-llm, release: djl-tensorrtllm-0.33.0,"
        " target: ml.g5.xlarge}\n"
    )
    log = tmp_path / "log.jsonl"
    log.write_text(
        "".join(
            json.dumps({"input_tokens": 20, "output_tokens": 10, "timestamp": 100 + at})
            + "\n"
            for at in range(50)
        )
    )
    ours = tmp_path / "ours.toml"
    ours.write_text(
        '[prices.ours]\nregion = "eu-west-3"\njobs = ["endpoint"]\n'
        'source = "contract"\nchecked = "2026-10-01"\n'
        'usd_per_hour = { "g5.xlarge" = 2.5 }\n'
    )
    argv = ["cost", str(recipe), "--region", "eu-west-3", "--catalog", str(ours)]
    status = run([*argv, "--traffic", str(log), "--output", "json"])
    (document,) = json.loads(capsys.readouterr().out)

    assert status == 0
    assert document["price"]["usd_per_hour"] == {"low": 2.5, "high": 2.5}
    assert document["price"]["derived"] is False
    assert document["traffic"] == {
        "mean_input_len": 20.0,
        "mean_output_len": 10.0,
        "requests_per_second": 1.0,
    }
    assert document["cost"]["num_instances"] == {"low": 1, "high": 1}
    assert run(argv) == 0
    text = capsys.readouterr().out
    assert "2.5 USD an hour" in text
    assert "as long as the bounds allow" in text
    ours.write_text(ours.read_text().replace("2.5", "0.0001"))
    assert run([*argv, "--alternatives", "3"]) == 0
    assert capsys.readouterr().out.endswith(
        "\n\nno cheaper way that fits for certain was found\n"
    )
    assert run([*argv, "--alternatives", "0"]) == 0
    assert "cheaper" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--utilisation", "1.5"], "cost.bad-number"),
        (["--mean-input-len", "0"], "cost.bad-number"),
        (["--requests-per-second", "nan"], "cost.bad-number"),
        (["--utilisation", "0.5", "--requests-per-second", "1"], "cost.bad-number"),
        (["--catalog", "missing.toml"], "catalog.unreadable"),
    ],
)
def test_options_that_make_no_sense(
    options: list[str], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "recipes/smollm2-135m/gptq.onnxruntime.cpu.yaml"
    root = Path(__file__).parents[2]
    assert run(["cost", str(root / path), *options]) == 2
    assert f"error[{code}]" in capsys.readouterr().err


def test_the_environment_names_a_catalogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[prices.ours]\nregion = 3\n")
    monkeypatch.setenv("LMI_BUILD_CATALOG", str(wrong))
    root = Path(__file__).parents[2]
    path = root / "recipes/smollm2-135m/gptq.onnxruntime.cpu.yaml"

    assert run(["cost", str(path)]) == 2
    told = capsys.readouterr().err
    assert "error[catalog.invalid]" in told
    assert "[prices.ours]" in told
    assert read_market(None) is shipped_market()


def test_size_takes_a_users_instances_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in hf_files().items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(content)
    ours = tmp_path / "ours.toml"
    ours.write_text(
        '[instances.g9]\naccelerator = "gpu"\ndevice = "X"\ndevice_memory_mib = 98304\n'
        'cores_per_device = 1\ncompute_capability = "13.0"\nsource = "us"\n'
        'uses = ["endpoint"]\nsizes = { xlarge = [1, 8, 64] }\n'
    )
    argv = ["size", "--model", str(tmp_path / "model"), "--target", "ml.g9.xlarge"]
    for bound in ("input-len", "output-len", "batch-size"):
        argv += [f"--max-{bound}", "8"]

    assert run([*argv, "--output", "json"]) == 2
    assert "size.unknown-target" in capsys.readouterr().err
    assert run([*argv, "--output", "json", "--catalog", str(ours)]) == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert document["instance"] == "ml.g9.xlarge"
    assert document["capacity_high_bytes"] == 98304 * 2**20


def test_advise_takes_a_users_instances_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = tmp_path / "ours.toml"
    ours.write_text(
        '[instances.g9]\naccelerator = "gpu"\ndevice = "X"\ndevice_memory_mib = 98304\n'
        'cores_per_device = 1\ncompute_capability = "13.0"\nsource = "us"\n'
        'uses = ["endpoint"]\nsizes = { xlarge = [1, 8, 64] }\n'
    )
    argv = ["advise", "--model", "llama", "--instance", "g9.xlarge", "--output", "json"]

    assert run(argv) == 2
    assert "advice.unknown-word" in capsys.readouterr().err
    assert run([*argv, "--catalog", str(ours)]) == 0
    assert json.loads(capsys.readouterr().out)
