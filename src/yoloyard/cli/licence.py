"""The command `licence`."""

import os
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from yoloyard.cli.flags import SWITCH, Json, count_of, print_json


def licence(
    file: Annotated[str, Parameter(help="a weights file, its address, or an exported file")] = "",
    *,
    environment: Annotated[bool, SWITCH, Parameter(help="the installed packages and what they bundle")] = False,
    sbom: Annotated[Path | None, Parameter(help="with --environment: write them to this file as CycloneDX")] = None,
    json: Json = False,
) -> None:
    """Say what weights came from, or which packages are installed, and under which licences."""
    from yoloyard.common.errors import UsageError, printable

    if bool(file) == environment or (sbom is not None and not environment):
        raise UsageError("say either FILE, or --environment with or without --sbom OUT.json")
    document = _environment(sbom) if environment else _record(file)
    if json:
        print_json(document)
    elif environment:
        for package in () if sbom else document["packages"]:
            print(printable(f"{package['name']} {package['version']}: {package['licence'] or 'says no licence'}"))
            print("".join(f"    {printable(line)}\n" for line in package["copyleft"]), end="")
        print(count_of(len(document["packages"]), "package") + (f"; written to {sbom}" if sbom else ""))
    else:
        for step in document["history"]:
            facts = {**step, "sha256": str(step.get("sha256") or "")[:12]}
            shown = [f"{name} {value}" for name, value in facts.items() if name != "what" and value]
            print(printable(f"{step['what']}: {', '.join(shown)}"))
        print(printable(document["meaning"]))


def _record(file: str) -> dict[str, Any]:
    from yoloyard.licences.record import read_record
    from yoloyard.storage.fetch import local_weights

    return read_record(local_weights(os.path.expanduser(file)))


def _environment(out: Path | None) -> dict[str, Any]:
    import json
    from dataclasses import asdict

    from yoloyard.common.files import write_whole_text
    from yoloyard.licences.packages import installed
    from yoloyard.licences.sbom import sbom

    packages = installed()
    if out is not None:
        write_whole_text(out, json.dumps(sbom(packages), indent=1))
    return {"packages": [asdict(package) for package in packages]}
