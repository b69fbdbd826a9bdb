"""Laws of what a backend builds, held against an artifact that was built here."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from lmi_build.errors import LmiBuildError, ToolMissing, Unsupported, VerifyFailed
from lmi_build.package.engine import load_engine
from lmi_build.testing.engines import Built, is_varying
from lmi_build.testing.law import Broken, Law, require
from lmi_build.values.manifest import MANIFEST_NAME
from lmi_build.verify.checks import check_tokenizer
from lmi_build.verify.integrity import read_manifest
from lmi_build.verify.reference import FloatReference

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from lmi_build.package.engine import Loaded

REQUIREMENTS = "requirements.txt"
_PROVENANCE = "provenance.json"
_PIN = re.compile(r"[A-Za-z0-9._-]+==\S+")
_COMPATIBILITY = ("architecture", "device", "os", "python", "requirements")
_BOUND_NAMES = ("max_input_len", "max_output_len", "max_seq_len", "max_batch_size")
_FOREIGN = {"x86_64": "aarch64", "aarch64": "x86_64"}
_VERSION = "0.0.1"
# Ids that every tokenizer of a sample model has.
_IDS = (5, 17, 42, 7, 9, 23, 99, 12, 3, 77)
_NUM_STEPS = 6


def _loads_here(built: Built) -> str:
    entry = built.proof.entry
    return f"it is tried by `{entry}`, not by loading its engine" if entry else ""


def _tokenized(built: Built) -> None:
    manifest = built.manifest
    folder = built.root / str(manifest.serving["tokenizer_dir"])
    listed = {row.path for row in manifest.files}
    path = folder / "tokenizer.json"
    require(path.is_file(), f"there is no `{path.relative_to(built.root)}`")
    require(
        path.relative_to(built.root).as_posix() in listed,
        "the manifest does not name the tokenizer",
    )
    json.loads(path.read_bytes())


def _bound(built: Built) -> None:
    promised, asked = built.manifest.bounds, built.case.asked.bounds
    for name in _BOUND_NAMES:
        wanted = getattr(asked, name)
        require(
            promised[name] == wanted,
            f"the manifest promises {name} {promised[name]}, the recipe {wanted}",
        )


def _compatible(built: Built) -> None:
    block = built.manifest.compatibility
    for name in _COMPATIBILITY:
        require(name in block, f"the manifest does not say which {name} it is bound to")
        require(
            name == "requirements" or block[name], f"the manifest's {name} is empty"
        )
    pins: Any = block["requirements"]
    loose = [pin for pin in pins if not _PIN.fullmatch(pin)]
    require(not loose, f"{loose} are no versions that the engine is bound to")


def _twice(built: Built) -> str:
    return "" if built.again else "it was built once"


def _unchanged(built: Built) -> None:
    one, two = (
        {row.path: row.digest for row in read_manifest(root).files}
        for root in (built.root, built.again)
        if root is not None
    )
    require(set(one) == set(two), f"two builds have other files: {set(one) ^ set(two)}")
    other = {path for path in one if one[path] != two[path]}
    told = {path for path in other if is_varying(built.backend, path)}
    if told:
        # It names the files, and so those that may differ.
        told.add(_PROVENANCE)
    require(
        other <= told,
        f"two builds differ in {sorted(other - told)}, which `varying` does not name",
    )


def _same_words(built: Built) -> None:
    try:
        check_tokenizer(built.load(), built.weights, built.root)
    except VerifyFailed as error:
        raise Broken(error.message) from error


def _filler(loaded: Loaded) -> int:
    return loaded.engine.encode("word")[-1]


def _refused(
    loaded: Loaded, ask: Callable[[], object], asked: int, limit: int, name: str
) -> None:
    """Require a refusal that says both numbers."""
    try:
        ask()
    except loaded.bound_exceeded as error:
        told = {int(number) for number in re.findall(r"\d+", str(error))}
        require(
            {asked, limit} <= told,
            f"{name}: {asked} over {limit} is refused without the numbers: {error}",
        )
    else:
        raise Broken(f"{name} is {limit}, and {asked} are taken")


def _keeps_bounds(built: Built) -> None:
    loaded = built.load()
    engine, bounds = loaded.engine, built.case.asked.bounds
    word = _filler(loaded)

    def ask(num_ids: int, num_new: int) -> list[Any]:
        return list(engine.stream([word] * num_ids, {"max_new_tokens": num_new}))

    longest, most = bounds.max_input_len, bounds.max_output_len
    try:
        steps = ask(longest, most)
        require(steps, "a prompt at the limit gives no token")
        early = len(steps) < most and steps[-1].finish_reason == "length"
        require(not early, f"{most} new tokens were promised, {len(steps)} came")
        rows = engine.generate(["a"] * bounds.max_batch_size, {"max_new_tokens": 1})
        require(
            len(rows) == bounds.max_batch_size,
            f"a full batch gives {len(rows)} answers",
        )
    except loaded.bound_exceeded as error:
        raise Broken(f"what is exactly at the limit is refused: {error}") from error
    _refused(loaded, lambda: ask(longest + 1, 1), longest + 1, longest, "max_input_len")
    _refused(loaded, lambda: ask(1, most + 1), most + 1, most, "max_output_len")
    batch = bounds.max_batch_size
    _refused(
        loaded,
        lambda: engine.generate(["a"] * (batch + 1), {"max_new_tokens": 1}),
        batch + 1,
        batch,
        "max_batch_size",
    )


def _prompts(built: Built) -> list[list[int]]:
    """Short, ordinary, and as long as the bounds allow."""
    longest = built.case.asked.bounds.max_input_len
    vocab = built.case.facts.geometry.vocab_size
    ids = [token % vocab for token in _IDS]
    return [ids[:1], ids, (ids * longest)[:longest]]


def _faithful(built: Built) -> None:
    import numpy as np

    engine = built.load().engine
    limit = built.proof.relative_error
    with FloatReference(built.weights, threads=0, trust_remote_code=False) as model:
        for ids in _prompts(built):
            wanted, found = model.logits(ids), engine.logits(ids)
            require(
                found.shape == wanted.shape,
                f"logits of {len(ids)} tokens are {found.shape}, not {wanted.shape}",
            )
            require(np.isfinite(found).all(), "logits are not finite")
            error = float(np.abs(wanted - found).max() / np.abs(wanted).max())
            require(
                error <= limit,
                f"logits of {len(ids)} tokens are {error:.2e} from the checkpoint's"
                f" in float32, relatively; {limit:.2e} is said",
            )


def _consistent(built: Built) -> None:
    engine = built.load().engine
    limit = 2 * built.proof.relative_error
    for prompt in _prompts(built)[:2]:
        steps = list(engine.stream(prompt, {"max_new_tokens": _NUM_STEPS}))
        again = list(engine.stream(prompt, {"max_new_tokens": _NUM_STEPS}))
        tokens = [step.token_id for step in steps]
        require(
            tokens == [step.token_id for step in again],
            f"greedy answers differ: {tokens} and {[s.token_id for s in again]}",
        )
        ids = list(prompt)
        for token in tokens:
            row = engine.logits(ids)[-1]
            _require_best(row, token, limit=limit, ids=ids)
            ids.append(token)


def _require_best(
    row: npt.NDArray[np.float32], token: int, *, limit: float, ids: Sequence[int]
) -> None:
    """A token from the cache is the most likely one of a whole pass, to rounding."""
    short = float(row.max() - row[token]) / max(float(abs(row).max()), 1e-9)
    require(
        short <= limit,
        f"after {len(ids)} tokens the engine generates {token}, whose logit is"
        f" {short:.2e} below the best of a whole pass",
    )


def _rewrite(root: Path, **changes: object) -> None:
    """Change the compatibility block of a manifest."""
    path = root / MANIFEST_NAME
    document = json.loads(path.read_bytes())
    document["compatibility"] = {**document["compatibility"], **changes}
    path.write_text(json.dumps(document), encoding="utf-8")


def _native(built: Built) -> None:
    here = str(built.manifest.compatibility["architecture"])
    there = _FOREIGN[here]
    root = built.copy("foreign")
    _rewrite(root, architecture=there)
    try:
        load_engine(root, read_manifest(root))
    except Unsupported as error:
        said = error.message
        require(
            here in said and there in said and error.hints,
            f"the refusal names no processor: {said}",
        )
    else:
        raise Broken(f"an engine for {there} loads on {here}")


def _versioned(built: Built) -> None:
    pins = (built.root / REQUIREMENTS).read_text("utf-8").splitlines()
    require(pins, "the artifact pins no package that its engine runs on")
    names = [pin.partition("==")[0] for pin in pins]
    binding = [name for name in names if name in built.manifest.compatibility]
    for name in binding:
        root = _aged(built, {name})
        _rewrite(root, **{name: _VERSION})
        try:
            load_engine(root, read_manifest(root))
        except LmiBuildError as error:
            said = error.message
            require(
                name in said and _VERSION in said and error.hints,
                f"the refusal does not name {name} {_VERSION}: {said}",
            )
        else:
            raise Broken(f"an engine that is bound to {name} {_VERSION} loads")
    loose = set(names) - set(binding)
    root = _aged(built, loose)
    try:
        said = " ".join(load_engine(root, read_manifest(root)).drift)
    except LmiBuildError as error:
        said = error.message
    silent = sorted(name for name in loose if f"{name} " not in said)
    require(
        not silent and (not loose or _VERSION in said),
        f"an engine for {_VERSION} of {silent} loads, and nothing is said of it",
    )
    root = built.copy("absent")
    (root / REQUIREMENTS).write_text("no-such-package-here==1.0\n", encoding="utf-8")
    try:
        load_engine(root, read_manifest(root))
    except ToolMissing as error:
        require("no-such-package-here" in error.message, error.message)
    else:
        raise Broken("a package that is pinned and not installed is not missed")


def _aged(built: Built, names: set[str]) -> Path:
    """A copy whose requirements pin some packages to a version that nobody has."""
    root = built.copy("version")
    path = root / REQUIREMENTS
    pins = [pin.partition("==") for pin in path.read_text("utf-8").splitlines()]
    text = "".join(
        f"{name}=={_VERSION if name in names else wanted}\n" for name, _, wanted in pins
    )
    path.write_text(text, encoding="utf-8")
    return root


def _whole(built: Built) -> None:
    manifest = built.manifest
    folder = str(manifest.serving["engine_dir"])
    inside = [row for row in manifest.files if row.path.startswith(f"{folder}/")]
    for row in [r for r in inside if r.size > 1]:
        root = built.copy("cut")
        path = root / row.path
        path.write_bytes(path.read_bytes()[: row.size // 2])
        try:
            load_engine(root, manifest)
        except LmiBuildError as error:
            require(error.hints, f"`{error.code}` says no way out")
        except Exception as error:
            raise Broken(f"with half of {row.path} it ends with {error!r}") from error
        else:
            raise Broken(f"it loads with half of {row.path}")


ARTIFACT_LAWS: tuple[Law[Built], ...] = (
    Law(
        name="tokenizer-is-there",
        says="The tokenizer's files lie where the manifest says.",
        hold=_tokenized,
    ),
    Law(
        name="manifest-keeps-bounds",
        says="The manifest promises what the recipe asks for.",
        hold=_bound,
    ),
    Law(
        name="compatibility-is-complete",
        says="The manifest says which machine and versions the engine is bound to.",
        hold=_compatible,
    ),
    Law(
        name="builds-are-the-same",
        says="Two builds give the same bytes, but for what `varying` names.",
        hold=_unchanged,
        spared=_twice,
    ),
)
SESSION_LAWS: tuple[Law[Built], ...] = (
    Law(
        name="tokenizer-is-the-models",
        says="The engine's tokenizer is the model's own, both ways.",
        hold=_same_words,
        spared=_loads_here,
    ),
    Law(
        name="bounds-are-enforced",
        says="Each bound is taken at exactly the limit, and refused one over it.",
        hold=_keeps_bounds,
        spared=_loads_here,
    ),
    Law(
        name="session-is-the-reference",
        says="Logits are the checkpoint's in float32, within what the backend says.",
        hold=_faithful,
        spared=_loads_here,
    ),
    Law(
        name="generation-is-the-session",
        says="Tokens made one by one are those of a whole pass, the same every time.",
        hold=_consistent,
        spared=_loads_here,
    ),
    Law(
        name="other-processors-are-refused",
        says="An engine for another processor is refused at load, with both names.",
        hold=_native,
        spared=_loads_here,
    ),
    Law(
        name="other-versions-are-told",
        says="A version that binds is refused at load, others that differ are named.",
        hold=_versioned,
        spared=_loads_here,
    ),
    Law(
        name="cut-engines-are-refused",
        says="An engine with half a file is refused at load with a way out.",
        hold=_whole,
        spared=_loads_here,
    ),
)
ENGINE_LAWS = ARTIFACT_LAWS + SESSION_LAWS
