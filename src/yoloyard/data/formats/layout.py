"""Which files below a folder are images, where their labels are, and which spellings of a path mean the same file."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from yoloyard.common.errors import UserError
from yoloyard.common.files import RUN_MARK
from yoloyard.data.formats.labels import composed
from yoloyard.data.formats.table import image_formats, label_suffixes
from yoloyard.data.pixels.decode import IMAGE_SUFFIXES

# Where systems, network disks and programs keep thumbnails, copies and what was deleted; in lower case.
SIDE_FOLDERS = frozenset((
    "$recycle.bin", "recycler", "system volume information", "lost+found", "__macosx", "network trash folder",
    "temporary items", "@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "@transcode", "@__thumb",
    "#recycle", "#snapshot", "~snapshot", "@synoresource", "@sharesnap", "@appstore", "@database", "@s2s",
    "thumbnails", "_thumbnails", "thumbs", "_thumbs", "__thumbs__", "[originals]", "lost.dir", "recycled", "msocache",
    "dfsrprivate", "onedrivetemp", "$trash", "$avg", "$of", "ipynb_checkpoints", "_vti_cnf", "_gsdata_", "__pycache__",
    "node_modules", "site-packages", "dist-packages", "lightning_logs", "wandb", "mlruns",
))  # fmt: skip
_SIDE_FOLDER = re.compile(r"found\.\d{3}|@gmt-[\d.-]+|lost\+found.+")  # of which there are many
SIDE_MARKS = frozenset((RUN_MARK, "pyvenv.cfg"))  # a folder with such a file: results of a run, a Python environment

# Results of ultralytics and YOLOv5 have one of each.
_FOREIGN_RUN = (frozenset(("args.yaml", "opt.yaml", "hyp.yaml")), frozenset(("results.csv", "results.txt")))

# What else holds images, and is counted.
OTHER_SUFFIXES = frozenset((
    ".3gp", ".arw", ".asf", ".avi", ".avif", ".avifs", ".btf", ".cr2", ".cr3", ".dcm", ".dicom", ".dng", ".exif",
    ".exr", ".fits", ".flv", ".geotiff", ".gif", ".gtiff", ".h264", ".hdp", ".hdr", ".heic", ".heics", ".heif", ".hif",
    ".icns", ".ico", ".img", ".insv", ".j2c", ".j2k", ".jng", ".jp2", ".jpc", ".jpf", ".jpm", ".jps", ".jpx", ".jxl",
    ".jxr", ".m2ts", ".m4v", ".mj2", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".nef",
    ".ogv", ".orf", ".pam", ".pbm", ".pcx", ".pfm", ".pgm", ".pic", ".pnm", ".pns", ".ppm", ".psb", ".psd", ".ptif",
    ".pxm", ".raf", ".ras", ".raw", ".rle", ".rw2", ".sr", ".svg", ".svs", ".tf8", ".tga", ".thm", ".ts", ".vob",
    ".wdp", ".webm", ".wmv", ".xif",
))  # fmt: skip
_NO_IMAGES = (".txt", ".xml", ".json", ".yaml", ".yml", ".csv", ".npy", ".npz", ".md", ".html", ".cache")
# a.jpg_large, a.png.part, a.jpeg~, and files without a suffix but for README, LICENSE and the like
_CHANGED_NAME = re.compile(r"(?i:\.(jpe?g|png|bmp|tiff?|webp))|^(?!Makefile$|Dockerfile$)(?=.*[^A-Z])[^.]+$")

SHOWN_FOLDERS = 5
Places = list[tuple[str, list[Path]]]  # suffixes of label files, each with folders; best first


@dataclass
class Search:
    """What a search of a folder and all below it found."""

    folders: list[str] = field(default_factory=list)  # those that were looked into
    files: list[str] = field(default_factory=list)  # of the suffixes that were asked for
    other_files: Counter[str] = field(default_factory=Counter)  # what seems to be an image but can't be read: suffixes
    other_folders: list[str] = field(default_factory=list)  # hidden, of other programs, or results of a run

    def take(self, path: str, suffixes: frozenset[str], is_regular: bool) -> None:
        """Note a file: as one of these `suffixes`, as another image, or not at all."""
        name = os.path.basename(path)
        suffix = os.path.splitext(name)[1].lower()
        if name.startswith("."):
            pass  # other systems' side files, such as `._image.jpg`
        elif not is_regular:
            self.other_files["no regular file"] += 1
        elif suffix in suffixes:
            self.files.append(path)
        elif suffix not in _NO_IMAGES and (suffix in OTHER_SUFFIXES or _CHANGED_NAME.search(name)):
            self.other_files[suffix] += 1

    def passed_over(self) -> str:
        """A line about what was passed over; empty if nothing was."""
        parts = []
        if count := self.other_files.total():
            kinds = ", ".join(f"{suffix or 'no suffix'} {number}" for suffix, number in self.other_files.most_common())
            parts.append(f"{count} {'file' if count == 1 else 'files'} of kinds that are not read ({kinds})")
        if count := len(self.other_folders):
            names = sorted({os.path.basename(folder) for folder in self.other_folders})
            shown = ", ".join(names[:SHOWN_FOLDERS]) + (", ..." if len(names) > SHOWN_FOLDERS else "")
            kind = "hidden, of other programs or results of a run"
            parts.append(f"{count} {'folder' if count == 1 else 'folders'} ({kind}: {shown})")
        return f"passed over: {'; '.join(parts)}" if parts else ""


def search_folder(folder: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> Search:
    """The files of these `suffixes` in `folder` and all folders below it, in no order.

    Hidden files and folders below it are passed over, and so are folders that other programs made or that hold the
    results of a run; `folder` itself may be any of these. Raises UserError if a folder can't be read.
    """
    search = Search()
    seen = set()  # a link that leads upwards would be followed for ever
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_unreadable_folder):
        status = os.stat(parent)
        is_known = (status.st_dev, status.st_ino) in seen
        seen.add((status.st_dev, status.st_ino))
        if is_known or (search.folders and is_marked(files)):
            search.other_folders += [] if is_known else [parent]
            folders.clear()
            continue
        search.folders.append(parent)
        with os.scandir(parent) as entries:  # pipes, sockets and devices: who reads them may wait for ever
            odd = [each for each in entries if not each.is_file(follow_symlinks=False)]
        special = {each.name for each in odd if not os.path.isfile(each) and os.path.exists(each)}
        search.other_folders += [os.path.join(parent, name) for name in folders if is_side_folder(name)]
        folders[:] = [name for name in folders if not is_side_folder(name)]
        for name in files:
            search.take(os.path.join(parent, name), suffixes, name not in special)
    return search


def is_side_folder(name: str) -> bool:
    """Whether a folder of this name is hidden, or of a program that keeps images of its own in it."""
    lower = name.lower()
    return name.startswith(".") or lower in SIDE_FOLDERS or _SIDE_FOLDER.fullmatch(lower) is not None


def is_marked(files: Iterable[str]) -> bool:
    """Whether a folder with these files holds the results of a run, or a Python environment."""
    names = frozenset(files)
    return not (SIDE_MARKS.isdisjoint(names) and any(each.isdisjoint(names) for each in _FOREIGN_RUN))


def spellings(entry: str) -> list[str]:
    """What the file may be called that a list, a JSON or a data.yaml calls `entry`; best first.

    Windows has backslashes, and drives, after which the longest end of the path that is there counts. Exports of
    Roboflow and CVAT have a `../` or `data/` too much. macOS writes accents as letters of their own (NFD).
    """
    forms = [entry]
    if "\\" in entry:
        forms.append(entry.replace("\\", "/"))
    if re.match(r"[A-Za-z]:[\\/]", entry):
        parts = re.split(r"[\\/]+", entry)[1:]
        forms += ["/".join(parts[start:]) for start in range(len(parts))]
    for prefix in ("../", "data/", "./data/"):
        forms += [each.removeprefix(prefix) for each in forms if each.startswith(prefix)]
    return list(dict.fromkeys(form for each in filter(None, forms) for form in in_forms(each)))


def in_forms(text: str) -> list[str]:
    """The text as it is, then with its accents as NFC and as NFD, each once."""
    if text.isascii():
        return [text]
    return list(dict.fromkeys((text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD")))))


def find_path(entry: str, folders: tuple[Path, ...]) -> Path:
    """The first of `folders` in which `entry` exists, in one of its spellings; in the first folder if it is in none."""
    entries = spellings(entry)
    candidates = (Path(os.path.normpath(folder / each)) for folder in folders for each in entries)
    first = next(candidates)
    return first if os.path.exists(first) else next(filter(os.path.exists, candidates), first)


def label_places(folder: Path, images: Path | None = None, labels: Path | None = None) -> Places:
    """Where label files of images in `folder` may be, by formats.

    The last folder `images` (or another name of the format) in the path is replaced by `labels` (or another), or the
    file is beside the image. With `labels`, which has the same folders as `images`, it is below that alone.
    """
    if images is not None and labels is not None:
        mirrored = [labels / form for form in in_forms(str(folder.relative_to(images)))]
        return [(each.suffix, mirrored) for each in image_formats()]
    places: Places = []
    for each in image_formats():
        own: list[Path] = []
        if above := next((above for above in (folder, *folder.parents) if above.name in each.image_folders), None):
            forms = in_forms(str(folder.relative_to(above)))
            own = [above.parent / name / form for name in each.label_folders for form in forms]
        places.append((each.suffix, [*own, folder]))
    return places


def find_label(stem: str, places: Places, known: dict[Path, dict[str, str]]) -> Path:
    """The label file of the image called `stem`; its first place if there is none.

    `known` keeps what is in each folder, so that it is listed once. Raises UserError if a folder can't be read.
    """
    for suffix, folders in places:
        name = stem + suffix
        for folder in folders:
            if folder not in known:
                known[folder] = _label_files(folder)
            if found := known[folder].get(name) or known[folder].get(composed(name)):
                return Path(folder, found)
    suffix, folders = places[0]
    return Path(folders[0], stem + suffix)


def _label_files(folder: Path) -> dict[str, str]:
    """The label files in `folder` by their names, and by these with the suffix in small letters and letters as NFC."""
    suffixes = tuple(label_suffixes())
    try:
        names = [name for name in os.listdir(folder) if name.lower().endswith(suffixes)]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        return _unreadable_folder(error)
    found = dict(zip(names, names, strict=True))
    for name in names:
        if not (name.isascii() and name.endswith(suffixes)):
            stem, suffix = os.path.splitext(name)
            found.setdefault(composed(stem) + suffix.lower(), name)
    return found


def _unreadable_folder(error: OSError) -> NoReturn:
    raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from error
