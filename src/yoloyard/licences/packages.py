"""The packages that are installed here: their licences, and what their wheels bundle."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

MAX_NAME_LENGTH = 100  # of a licence; what is longer is its whole text
LICENCE_FILE = re.compile(r"(?i)(licen[cs]e|notice|copying|third.?party)[^/]*(?<!\.py)(?<!\.pyc)(?<!\.h)$")
LIBRARY = re.compile(r"(?:^|/)(lib(?![^/]*\.(?:cpython|abi3))[^/]+\.(?:so[.\w]*|dylib)|[^/]+\.dll)$")
NAMED = re.compile(  # GNU licences: the titles of their texts, and their short names
    r"GNU (?:LESSER |LIBRARY |AFFERO )?GENERAL PUBLIC LICENSE"
    r"|\b[AL]?GPL-?v?[123](?:\.\d)?(?:-only|-or-later|\+)?(?: WITH [\w.-]*\w)?"
)
# Of shared libraries, by the beginnings of their names: https://ffmpeg.org/legal.html, https://gcc.gnu.org/onlinedocs
LIBRARY_LICENCES = {
    r"lib(avcodec|avdevice|avfilter|avformat|avutil|swresample|swscale)\b": "LGPL-2.1-or-later",  # FFmpeg
    r"libquadmath\b": "LGPL-2.1-or-later",
    r"lib(gcc_s|gfortran|gomp|stdc\+\+)(?!\w)": "GPL-3.0-or-later WITH GCC-exception-3.1",
    r"libQt\d": "LGPL-3.0-only",
}


@dataclass(frozen=True)
class Package:
    """An installed package."""

    name: str
    version: str
    licence: str | None  # as its metadata has it; None: it says nothing
    is_spdx: bool  # whether it is an expression of SPDX
    libraries: Sequence[str]  # shared libraries in its wheel, names of files
    copyleft: Sequence[str]  # what of it is, or may be, under a GNU licence, and what says so


def installed() -> list[Package]:
    """The packages that this Python finds, by name; the first of each, as an import does.

    What an interrupted pip leaves, a folder without metadata, is no package.
    """
    found = {each.name.lower(): each for each in reversed([*metadata.distributions()]) if "Version" in each.metadata}
    return [_package(found[name]) for name in sorted(found)]


def library_licence(file: str) -> str | None:
    """The licence of a shared library, if it is one whose name tells."""
    return next((licence for name, licence in LIBRARY_LICENCES.items() if re.match(name, file)), None)


def _package(dist: metadata.Distribution) -> Package:
    paths = [row[0] for row in csv.reader((dist.read_text("RECORD") or "").splitlines()) if row]
    facts = dist.metadata  # each access reads it again
    libraries = sorted(found[1] for path in paths if (found := LIBRARY.search(path)))
    licence, is_spdx = _licence(facts), "License-Expression" in facts
    copyleft = [f"the package itself: {licence}"] if NAMED.search(licence or "") else []
    copyleft += [f"{file}: {known}" for file in libraries if (known := library_licence(file))]
    for path in filter(LICENCE_FILE.search, paths):
        file = Path(str(dist.locate_file(path)))
        text = file.read_text("utf-8", "replace") if file.is_file() else ""  # some images are made smaller without them
        if names := sorted({each.group() for each in NAMED.finditer(text)}):
            copyleft.append(f"{file.name} names {', '.join(names)}")
    return Package(facts["Name"], facts["Version"], licence, is_spdx, libraries, list(dict.fromkeys(copyleft)))


def _licence(facts: metadata.PackageMetadata) -> str | None:
    """The licence's expression, its name, or what the classifiers say."""
    told = next((facts[key] for key in ("License-Expression", "License") if key in facts), "")
    if told not in ("", "UNKNOWN") and "\n" not in told and len(told) <= MAX_NAME_LENGTH:
        return told
    classifiers = facts.get_all("Classifier") or ()
    return ", ".join(each.split(" :: ")[-1] for each in classifiers if each.startswith("License :: ")) or None
