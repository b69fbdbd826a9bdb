"""A wheel of a few lines, as pip takes it."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile

MODULE = "tiny_tool"
VERSION = "1.5"


def tiny_wheel(*, tag: str = "py3-none-any") -> tuple[str, bytes]:
    """
    Its file name and its bytes.

    Args:
        tag: Of Python, ABI and platform.
    """
    info = f"{MODULE}-{VERSION}.dist-info"
    files = {
        f"{MODULE}.py": b"ANSWER = 42\n",
        f"{info}/METADATA": (
            f"Metadata-Version: 2.1\nName: tiny-tool\nVersion: {VERSION}\n".encode()
        ),
        f"{info}/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\n"
            f"Tag: {tag}\n".encode()
        ),
    }
    rows = [f"{name},{_sha256(data)},{len(data)}" for name, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
    return f"{MODULE}-{VERSION}-{tag}.whl", made.getvalue()


def _sha256(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest())
    return "sha256=" + digest.decode().rstrip("=")
