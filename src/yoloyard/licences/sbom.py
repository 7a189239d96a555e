"""A list of the installed packages in the form of CycloneDX 1.6 (https://cyclonedx.org/docs/1.6/json/)."""

import json
import os
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from yoloyard.licences.packages import Package, library_licence


def sbom(packages: Sequence[Package]) -> dict[str, Any]:
    """The document; with SOURCE_DATE_EPOCH set, which is its time then, equal packages give equal ones."""
    components = [_component(package) for package in packages]
    made = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH") or time.time()), UTC)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(components)).urn,
        "version": 1,
        "metadata": {"timestamp": made.isoformat()},
        "components": components,
    }


def _component(package: Package) -> dict[str, Any]:
    """A package, with the shared libraries in its wheel as its parts."""
    purl = f"pkg:pypi/{package.name.lower().replace('_', '-')}@{quote(package.version)}"
    licences: list[Any] = [{"license": {"name": package.licence}}] if package.licence else []
    if package.is_spdx:
        licences = [{"expression": package.licence}]
    parts = [
        {
            "type": "library",
            "name": file,
            "bom-ref": f"{purl}#{file}",
            "licenses": [{"expression": known}] if known else [],
        }
        for file, known in zip(package.libraries, map(library_licence, package.libraries), strict=True)
    ]
    own = {"type": "library", "name": package.name, "version": package.version, "bom-ref": purl, "purl": purl}
    return {**own, "licenses": licences, "components": parts}
