"""What the file system can do to a recipe: always a clear error, never a trace."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lmi_build.errors import RecipeInvalid
from lmi_build.recipe.load import load_recipe
from lmi_build.recipe.source import MAX_FILE_BYTES
from recipe_texts import TINY, describe


def code_of(path: Path) -> str:
    """The only problem of a file that cannot be a recipe."""
    with pytest.raises(RecipeInvalid) as caught:
        load_recipe(path)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].hint
    return describe(caught.value).partition(" ")[0]


def test_a_missing_file(tmp_path: Path) -> None:
    """A path that does not exist."""
    assert code_of(tmp_path / "none.yaml") == "recipe.not-found"


def test_a_file_as_a_folder(tmp_path: Path) -> None:
    """A path that goes through a file."""
    (tmp_path / "a.yaml").write_text(TINY)

    assert code_of(tmp_path / "a.yaml" / "b.yaml") == "recipe.not-found"


def test_a_directory(tmp_path: Path) -> None:
    """A path to a folder."""
    assert code_of(tmp_path) == "recipe.is-directory"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_forbidden_file(tmp_path: Path) -> None:
    """A file without read permission."""
    path = tmp_path / "r.yaml"
    path.write_text(TINY)
    path.chmod(0)

    assert code_of(path) == "recipe.unreadable"


def test_a_refusing_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operating system's own words are passed on."""
    path = tmp_path / "r.yaml"
    path.write_text(TINY)

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RecipeInvalid, match="Permission denied") as caught:
        load_recipe(path)

    assert caught.value.code == "recipe.unreadable"


def test_a_link_to_itself(tmp_path: Path) -> None:
    """A loop of symbolic links."""
    path = tmp_path / "r.yaml"
    path.symlink_to(path)

    assert code_of(path) == "recipe.unreadable"


def test_a_name_too_long(tmp_path: Path) -> None:
    """A name that no file system takes."""
    assert code_of(tmp_path / ("a" * 300)) == "recipe.unreadable"


def test_a_path_with_a_nul() -> None:
    """A path that cannot exist."""
    assert code_of(Path("a\0b.yaml")) == "recipe.not-found"


def test_a_path_of_strange_bytes(tmp_path: Path) -> None:
    """A name that is no UTF-8 can be shown all the same."""
    path = tmp_path / os.fsdecode(b"a\xff\x1b.yaml")
    path.write_text("[")

    with pytest.raises(RecipeInvalid) as caught:
        load_recipe(path)

    span = caught.value.problems[0].span
    assert span is not None
    assert span.file.endswith("a\\xff\\x1b.yaml")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe nobody writes to would block for ever."""
    path = tmp_path / "pipe"
    os.mkfifo(path)

    assert code_of(path) == "recipe.not-a-file"


def test_a_socket_and_a_device(tmp_path: Path) -> None:
    """Endless or odd files are not read."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))

        assert code_of(tmp_path / "s") == "recipe.not-a-file"
    assert code_of(Path("/dev/zero")) == "recipe.not-a-file"


def test_a_file_too_large(tmp_path: Path) -> None:
    """No more than a mebibyte is read; the last byte that fits is."""
    path = tmp_path / "r.yaml"
    fill = MAX_FILE_BYTES - len(TINY) - 2
    path.write_text(TINY + "#" + "x" * fill + "\n")

    assert load_recipe(path)[0].name == "tiny"

    path.write_text(TINY + "#" + "x" * (fill + 1) + "\n")

    assert code_of(path) == "recipe.too-large"


@pytest.mark.parametrize(
    "text",
    [
        "[" * 500_000,
        "{a: " * 200_000,
        "- " * 400_000,
        "? " * 400_000,
        "a: &a [" + "*a," * 300_000,
        "x" * 1_000_000,
        '"' + "\\x41" * 200_000 + '"',
        "".join(f"k{index}: 1\n" for index in range(60_000)),
        "k: 1\n" * 150_000,
        "!" * 900_000,
        "a:\n" + " b: 1\n" * 100_000,
    ],
    ids=lambda text: text[:8].strip(),
)
def test_large_malformed_files_are_refused(tmp_path: Path, text: str) -> None:
    """Depth, width, repetition: each is refused, none exhausts the machine."""
    path = tmp_path / "r.yaml"
    path.write_text(text)

    with pytest.raises(RecipeInvalid):
        load_recipe(path)


def test_loading_imports_nothing_heavy() -> None:
    """A fresh interpreter reads a recipe with pydantic and ruamel.yaml alone."""
    code = (
        "import sys, pathlib\n"
        "from lmi_build.recipe.load import load_recipe\n"
        "load_recipe(pathlib.Path(sys.argv[1]))\n"
        "heavy = {'torch', 'numpy', 'boto3', 'transformers', 'onnxruntime', 'onnx',\n"
        "         'huggingface_hub', 'click', 'rich', 'jsonschema', 'asyncio'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    recipe = Path(__file__).parents[2] / "recipes/smollm2-135m"
    argv = [sys.executable, "-c", code, str(recipe / "gptq.onnxruntime.cpu.yaml")]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
