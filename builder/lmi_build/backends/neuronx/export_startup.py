"""What a release's container does with an exported decoder when it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmi_build.backends.folder import read_text
from lmi_build.backends.java_properties import java_properties, with_environment
from lmi_build.backends.neuronx.nxdi_serving import nxdi_start
from lmi_build.backends.neuronx.optimum import generation
from lmi_build.backends.neuronx.optimum_serving import (
    optimum_serve_start,
    optimum_start,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmi_build.backends.folder import Folder
    from lmi_build.backends.verdicts import Verdict
    from lmi_build.catalog.neuron_releases import NeuronRelease

PROPERTIES_NAME = "serving.properties"


def export_startup(
    folder: Folder,
    release: NeuronRelease,
    *,
    family: str,
    environment: Mapping[str, str],
) -> Verdict:
    """
    The verdict of one release.

    Args:
        folder: What lies at `/opt/ml/model`.
        release: Row of the catalogue.
        family: Instance family of the machine, such as `inf2`.
        environment: Variables of the container beside those of its image.

    Raises:
        VerifyFailed: A file that the server reads is absurd.
        ValueError: `serving.properties` cannot be read.
    """
    if generation(release) == "nxd":
        return optimum_serve_start(folder, release, environment, family)
    text = b""
    if folder.has(PROPERTIES_NAME):
        text = read_text(folder, PROPERTIES_NAME)
    properties = with_environment(java_properties(text), environment)
    if properties.get("option.model_loader", "").strip() == "nxdi":
        return nxdi_start(folder, release, properties)
    return optimum_start(folder, release, properties)
