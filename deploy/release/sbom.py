"""What the one file carries, as a CycloneDX document (1.6, JSON): each package with its version, licence and address.

The wheel and the package for FreeBSD carry nothing but ours; their dependencies are listed as what they need.
"""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

_NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # of URLs (RFC 4122, appendix C)


def document(folder: Path, *, version: str, date: str) -> str:
    """JSON. `folder`: where the packages are unpacked that the one file carries; `date`: as 2026-11-29."""
    ours = Component(
        name="edgeagent",
        version=version,
        type=ComponentType.APPLICATION,
        bom_ref=f"edgeagent@{version}",
        licenses=[LicenseFactory().make_from_string("BSD-2-Clause")],
        description="Keeps one HAProxy on a firewall in sync with a desired-state file",
    )
    carried = [_component(package) for package in sorted(distributions(path=[str(folder)]), key=_name)]
    bom = Bom(components=carried)
    bom.metadata.component = ours
    bom.metadata.timestamp = datetime.fromisoformat(date).replace(tzinfo=UTC)
    bom.register_dependency(ours, carried)
    # The same contents are the same document.
    contents = " ".join(sorted(str(part.purl) for part in carried))
    bom.serial_number = uuid.uuid5(_NAMESPACE, f"edgeagent@{version} {contents}")
    return str(make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2)) + "\n"


def _name(package: Distribution) -> str:
    return re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower()


def _component(package: Distribution) -> Component:
    name, version = _name(package), package.version
    fields = package.metadata.json
    written = str(fields.get("license_expression") or fields.get("license") or "")
    if not written or "\n" in written:  # the whole text, or nothing: the classifier names it
        classifiers = [str(line) for line in fields.get("classifier") or ()]
        named = [line.rpartition(" :: ")[2] for line in classifiers if line.startswith("License :: OSI Approved")]
        written = named[0] if named else ""
    return Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        bom_ref=f"{name}@{version}",
        purl=PackageURL(type="pypi", name=name, version=version),
        licenses=[LicenseFactory().make_from_string(written)] if written else [],
    )
