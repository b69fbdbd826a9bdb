"""The script that starts a container, and the process that it starts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from lmi_build.digest import digest_bytes
from lmi_build.jobs.simulation.server import s3_server
from lmi_build.jobs.wheel import make_wheel
from lmi_build.jobs.wheelhouse import Wheelhouse
from lmi_build.sagemaker.entry import ENTRY_CODES, entry_script
from lmi_build.values.job import ENTRY_FILE, WHEELS_FILE
from tiny_wheel import MODULE, tiny_wheel

ROOT = Path(__file__).parents[2]
NO_DIGEST = digest_bytes(b"")
# What a job's own process may not need: the front end's packages.
FRONT_END = (
    "pydantic",
    "ruamel",
    "rich",
    "click",
    "huggingface_hub",
    "packaging",
    "torch",
    "numpy",
)


@pytest.fixture
def channel(tmp_path: Path) -> Path:
    """A channel `job` with the script and the wheel, and no job in it."""
    folder = tmp_path / "ml/processing/input/job"
    folder.mkdir(parents=True)
    wheel = make_wheel()
    (folder / wheel.name).write_bytes(wheel.data)
    (folder / ENTRY_FILE).write_bytes(entry_script())
    return folder


def start(
    channel: Path, tmp_path: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Start it as SageMaker does, with nothing in its environment."""
    environment = {
        "PATH": os.environ["PATH"],
        "LMI_BUILD_ML_ROOT": str(tmp_path / "ml"),
        "LMI_BUILD_PYTHON": sys.executable,
        "TMPDIR": str(tmp_path),
        **variables,
    }
    return subprocess.run(
        ["bash", str(channel / ENTRY_FILE)],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_package_has_the_script_of_scripts() -> None:
    """An installed package has the same file."""
    assert entry_script() == (ROOT / "scripts" / ENTRY_FILE).read_bytes()


def test_every_code_of_the_script_is_documented() -> None:
    """`explain` knows what it can say."""
    said = set(re.findall(r"\bfail \d (job\.[a-z-]+)", entry_script().decode()))

    assert said == set(ENTRY_CODES)


def test_the_script_is_clean() -> None:
    """Read by shellcheck, where it is installed."""
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(
        [shellcheck, str(ROOT / "scripts" / ENTRY_FILE)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout == ""


def test_it_starts_python_on_the_unpacked_wheel(channel: Path, tmp_path: Path) -> None:
    """Without a job in the channel, it is Python that says so, in the message."""
    done = start(channel, tmp_path)

    message = (tmp_path / "ml/output/message").read_text()
    assert done.returncode == 2
    assert message.startswith("error[job.no-channel]: no job.json in ")
    assert "Traceback" not in done.stderr


def test_wheels_of_the_users_own_are_installed(channel: Path, tmp_path: Path) -> None:
    """From the channel beside, with metadata, before ours."""
    name, data = tiny_wheel()
    house = Wheelhouse(files={name: data}, versions={}, digest=NO_DIGEST)
    (channel.parent / "wheels").mkdir()
    (channel.parent / "wheels" / name).write_bytes(data)
    (channel / WHEELS_FILE).write_bytes(house.requirements())

    done = start(channel, tmp_path)

    assert done.returncode == 2, done.stderr
    (site,) = tmp_path.glob("lmi-build.*")
    assert (site / f"{MODULE}.py").is_file()
    assert (site / "lmi_build" / "__init__.py").is_file()
    assert [*site.glob(f"{MODULE}-*.dist-info/METADATA")]


def other_bytes(channel: Path) -> dict[str, str]:
    """A wheel whose bytes are not those that were hashed."""
    return foreign(channel, data=b"other bytes")


def other_python(channel: Path) -> dict[str, str]:
    """A wheel for a Python that no image has."""
    return foreign(channel, tag="cp27-cp27mu-manylinux1_x86_64")


def foreign(
    channel: Path, *, data: bytes = b"", tag: str = "py3-none-any"
) -> dict[str, str]:
    """A channel of one wheel that pip refuses."""
    name, made = tiny_wheel(tag=tag)
    house = Wheelhouse(files={name: made}, versions={}, digest=NO_DIGEST)
    (channel.parent / "wheels").mkdir()
    (channel.parent / "wheels" / name).write_bytes(data or made)
    (channel / WHEELS_FILE).write_bytes(house.requirements())
    return {}


def no_wheel(channel: Path) -> dict[str, str]:
    """A channel that is not whole."""
    next(channel.glob("*.whl")).unlink()
    return {}


def two_wheels(channel: Path) -> dict[str, str]:
    """A channel of two versions."""
    (channel / "lmi_build-9-py3-none-any.whl").write_bytes(b"")
    return {}


def cut_wheel(channel: Path) -> dict[str, str]:
    """A wheel that lost its end on the way."""
    wheel = next(channel.glob("*.whl"))
    wheel.write_bytes(wheel.read_bytes()[:100_000])
    return {}


def old_python(channel: Path) -> dict[str, str]:
    """An image whose every Python is too old."""
    bin_dir = channel / "bin"
    bin_dir.mkdir()
    for name in ("bash", "dirname", "mkdir", "mv", "printf", "sync", "tr", "rm"):
        found = shutil.which(name)
        if found:
            (bin_dir / name).symlink_to(found)
    text = entry_script().decode()
    for path in ("/usr/local/bin/python3", "/usr/bin/python3"):
        text = text.replace(path, "/nowhere/python3")
    (channel / ENTRY_FILE).write_text(text)
    (bin_dir / "python3").write_text("#!/bin/sh\nexit 1\n")
    (bin_dir / "python3").chmod(0o755)
    return {"PATH": str(bin_dir), "LMI_BUILD_PYTHON": ""}


def full_disk(channel: Path) -> dict[str, str]:
    """No folder can be made where temporary ones go."""
    return {"TMPDIR": str(channel / "nowhere")}


@pytest.mark.parametrize(
    ("breaking", "status", "code"),
    [
        (no_wheel, 1, "job.no-wheel"),
        (two_wheels, 1, "job.no-wheel"),
        (cut_wheel, 1, "job.bad-wheel"),
        (old_python, 3, "job.no-python"),
        (other_bytes, 3, "job.bad-wheels"),
        (other_python, 3, "job.bad-wheels"),
        (full_disk, 4, "job.disk-full"),
    ],
)
@pytest.mark.parametrize("kind", ["processing", "training"])
def test_what_fails_before_python_leaves_a_message(
    channel: Path, tmp_path: Path, breaking: object, status: int, code: str, kind: str
) -> None:
    """Whole, in the file of the job's kind, with the code first."""
    assert callable(breaking)
    if kind == "training":
        (tmp_path / "ml/input/config").mkdir(parents=True)
    bash = str(shutil.which("bash"))
    variables = breaking(channel)

    done = subprocess.run(
        [bash, str(channel / ENTRY_FILE)],
        env={
            "PATH": os.environ["PATH"],
            "LMI_BUILD_ML_ROOT": str(tmp_path / "ml"),
            "LMI_BUILD_PYTHON": sys.executable,
            "TMPDIR": str(tmp_path),
            **variables,
        },
        capture_output=True,
        text=True,
        check=False,
    )

    name = "message" if kind == "processing" else "failure"
    message = (tmp_path / "ml/output" / name).read_bytes()
    assert done.returncode == status, done.stderr
    assert message.startswith(f"error[{code}]: ".encode())
    assert b"\nhint: " in message
    assert len(message) <= 1024
    assert message.decode().strip() == done.stderr.strip()


def test_a_name_that_is_not_utf8_leaves_a_message_that_is(tmp_path: Path) -> None:
    """A message that is not UTF-8 would fail the job for another reason."""
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    folder = root / "processing/input/job"
    folder.mkdir(parents=True)
    (folder / ENTRY_FILE).write_bytes(entry_script())

    subprocess.run(
        ["bash", str(folder / ENTRY_FILE)],
        env={"PATH": os.environ["PATH"], "LMI_BUILD_ML_ROOT": os.fsdecode(root)},
        capture_output=True,
        check=False,
    )

    message = (root / "output/message").read_bytes()
    assert message.decode("utf-8").startswith("error[job.no-wheel]: ")


def test_the_process_needs_the_standard_library_alone(channel: Path) -> None:
    """A fresh interpreter with nothing installed imports all that a job runs."""
    site = channel / "site"
    wheel = next(channel.glob("*.whl"))
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, site], check=True)
    bare = channel / "bare"
    venv.create(bare, with_pip=False)
    program = """
import json, sys
import lmi_build.sagemaker.run, lmi_build.sagemaker.publishing
import lmi_build.remote.s3_place
names = {name.partition(".")[0] for name in sys.modules}
print(json.dumps(sorted(names - set(sys.stdlib_module_names))))
"""

    done = subprocess.run(
        [bare / "bin/python", "-c", program],
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    foreign = set(json.loads(done.stdout)) - {"__main__", "_distutils_hack"}
    assert foreign == {"lmi_build"}
    assert not foreign & set(FRONT_END)


SECRETS = """
import sys
from pathlib import Path
from lmi_build.errors import LmiBuildError
from lmi_build.sagemaker.secrets import with_secrets
from lmi_build.values.settings import settings_from_environ
import os
settings = settings_from_environ(dict(os.environ), cache_dir=Path("/nowhere"))
try:
    found = with_secrets(settings, {"HF_TOKEN": sys.argv[1]}, region="us-east-1")
except LmiBuildError as error:
    print(error.code, error.message, *error.hints, sep=" | ")
else:
    hidden = found.hf_token in found.secret_values()
    print(found.hf_token, hidden, repr(found).count("hf_s"), sep=",")
"""


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("secretsmanager:plain", "hf_secret-1,True,0"),
        ("secretsmanager:keyed#token", "hf_secret-2,True,0"),
        ("ssm:/team/token", "hf_secret-3,True,0"),
        ("secretsmanager:keyed#other", "job.secret-unreadable | HF_TOKEN: the secret"),
        ("secretsmanager:plain#token", "job.secret-unreadable | HF_TOKEN: the secret"),
        ("secretsmanager:nobody", "job.secret-unreadable | HF_TOKEN: `nobody` cannot"),
        ("ssm:/nobody", "job.secret-unreadable | HF_TOKEN: `/nobody` cannot be read"),
        ("hf_secret-value", "job.bad-secret | HF_TOKEN is not a reference"),
    ],
)
def test_secrets_are_read_by_reference(reference: str, said: str, aws: str) -> None:
    """The value goes to who asks for it and is hidden; errors do not tell it."""
    done = subprocess.run(
        [sys.executable, "-c", SECRETS, reference],
        env={
            "AWS_ENDPOINT_URL": aws,
            "AWS_ACCESS_KEY_ID": "local-key",
            "AWS_SECRET_ACCESS_KEY": "local-secret",
        },
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.startswith(said)
    assert said.startswith("hf_") or "hf_secret" not in done.stdout


@pytest.fixture(scope="module")
def aws() -> object:
    """A server with secrets."""
    import boto3

    with s3_server() as url:
        where = {
            "endpoint_url": url,
            "region_name": "us-east-1",
            "aws_access_key_id": "local-key",
            "aws_secret_access_key": "local-secret",
        }
        manager = boto3.client("secretsmanager", **where)
        manager.create_secret(Name="plain", SecretString="hf_secret-1")
        keyed = json.dumps({"token": "hf_secret-2"})
        manager.create_secret(Name="keyed", SecretString=keyed)
        boto3.client("ssm", **where).put_parameter(
            Name="/team/token", Value="hf_secret-3", Type="SecureString"
        )
        yield url
