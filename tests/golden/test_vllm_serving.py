"""What every image is told, for every handler and every quantization."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmi_build.catalog.vllm_releases import vllm_handlers, vllm_releases
from lmi_build.package.properties import render_properties
from vllm_recipes import METHODS, model, problems, properties, vllm_recipe

HERE = Path(__file__).parent / "vllm-serving"
SPLIT = {"one GPU": 1, "four GPUs": 4}


def release_text(name: str) -> str:
    """Properties, or refusals with their way out, of one image."""
    parts = []
    for handler in vllm_releases()[name].handlers:
        scheduler = vllm_handlers()[handler].scheduler
        for method in METHODS:
            for title, tp in SPLIT.items():
                parts.append(f"== {handler}, {method}, {title}")
                recipe = vllm_recipe(method, release=name, scheduler=scheduler, tp=tp)
                found = problems(recipe, model())
                parts += [f"{p.code}: {p.message}\nhint: {p.hint}" for p in found]
                if not found:
                    text = render_properties(properties(recipe)).decode()
                    parts.append(text.rstrip())
    return "\n".join(parts) + "\n"


@pytest.mark.parametrize("name", vllm_releases())
def test_serving(name: str, *, update_golden: bool) -> None:
    """Every image, every handler, every quantization, one GPU and four."""
    path = HERE / f"{name}.txt"
    text = release_text(name)
    if update_golden:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")

    assert path.read_text("utf-8") == text
