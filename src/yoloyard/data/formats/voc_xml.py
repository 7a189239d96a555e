"""Pascal VOC XML: one file an image, an <object> with a <bndbox> an object, in pixels.

Pixels are taken as they stand, as edges: xmin 0 is the left edge of the image, xmax = width the right one.
"""

import codecs
import contextlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from xml.parsers import expat
from xml.sax.saxutils import escape

from yoloyard.common.errors import UserError
from yoloyard.data.formats.labels import LabelError, LabelledImage, Labels, clip, composed, decoded, is_set

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
# What programs call GB2312 mostly has characters of its extension; so with the others (WHATWG's Encoding Standard).
_EXTENSIONS = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949"}
_BY_EXPAT = ("utf-8", "us-ascii", "iso-8859-1")
_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_DECLARATION = re.compile(r"\A\s*<\?xml\b.*?\?>", re.DOTALL)
_ENCODING = re.compile(rb"""\s*<\?xml[^>]*\sencoding\s*=\s*["']([A-Za-z][\w.:-]*)""")
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, production 2

Fields = dict[str, str]  # texts by the names of the elements that lead to them, such as bndbox/xmin


def parse_voc(path: Path, content: bytes, names: Sequence[str], size: tuple[int, int]) -> Labels:
    """Boxes of an XML file, clipped to the image of `size` (height, width); difficult objects are to be ignored.

    An object without <bndbox> but with <polygon> (x1, y1, x2, y2 ...) becomes its bounds. An object that is wrong makes
    the image unusable, and so does a <size> that isn't the image's.
    """
    result = Labels()
    try:
        fields, objects = read_objects(content)
        said = [_number(fields, tag) if fields.get(tag) else 0 for tag in ("size/height", "size/width")]
        if all(said) and said != list(size):
            what = f"it says {said[1]:g}x{said[0]:g} pixels, the image has {size[1]}x{size[0]}"
            raise LabelError("image size differs", what)
    except expat.ExpatError as error:
        result.refuse("label malformed", f"{path}:{error.lineno}", f"not valid XML ({expat.ErrorString(error.code)})")
    except LabelError as error:
        result.refuse(error.kind, str(path), str(error))
    else:
        classes: dict[str, int] = {}
        for label, name in enumerate(names):
            classes.setdefault(composed(name.strip()), label)
        result.take_rows(path, objects, lambda own: _parse_object(own, classes, size), "object")
    return result


def read_objects(content: bytes) -> tuple[Fields, list[tuple[int, Fields]]]:
    """The texts outside of objects, and each object with its line. Raises ExpatError if it isn't XML, or LabelError.

    A document type definition is refused: its entities could make gigabytes of a few bytes, or read other files.
    """
    parser = expat.ParserCreate()
    fields: Fields = {}
    objects: list[tuple[int, Fields]] = []
    path: list[str] = []
    text: list[str] = []

    def start(tag: str, _: object) -> None:
        if not path and tag != "annotation":
            raise LabelError("label malformed", f"its root is <{tag}>, not <annotation>")
        path.append(tag)
        text.clear()
        if path[1:] == ["object"]:
            objects.append((parser.CurrentLineNumber, {}))

    def end(_: str) -> None:
        inside = path[1:2] == ["object"]
        into = objects[-1][1] if inside else fields
        into.setdefault("/".join(path[2 if inside else 1 :]), "".join(text).strip())
        path.pop()
        text.clear()

    def refuse(*_: object) -> None:
        raise LabelError("label malformed", "it has a document type definition (DOCTYPE), which is not read")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = text.append
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(_readable(content), True)
    except (LookupError, ValueError) as error:  # of the encoding that the file says it is in
        raise LabelError("label malformed", str(error)) from error
    return fields, objects


def _readable(content: bytes) -> bytes | str:
    """The content, decoded where expat doesn't know the encoding or the declaration is wrong or not at the start."""
    said = _ENCODING.match(content)
    label = re.sub("^(x-)+", "", said[1].decode().lower()) if said else "utf-8"
    if content.startswith(_MARKS):  # they count for more than what the file says
        text = decoded(content)
    elif label in _BY_EXPAT and content[:1] in b"<\0":
        return content
    else:
        # What could be read as ASCII isn't UTF-16.
        label = "utf-8" if re.search(r"utf.?(16|32)|ucs|unicode", label) else label
        text = content.decode(_EXTENSIONS.get(codecs.lookup(label).name, label))
    return _DECLARATION.sub(lambda found: "\n" * found[0].count("\n"), text)


def parse_voc_files(
    files: Sequence[tuple[Path, bytes]], names: Sequence[str], sizes: Sequence[tuple[int, int]], _: int
) -> list[Labels]:
    """The labels of N files, each given with its content, for images of `sizes` (height, width); see `parse_voc`."""
    return [parse_voc(*file, names, size) for file, size in zip(files, sizes, strict=True)]


def mentioned_classes(content: bytes) -> list[str]:
    """The classes of a file's objects, in its order; none if it can't be read."""
    try:
        return [own["name"] for _, own in read_objects(content)[1] if own.get("name")]
    except (expat.ExpatError, LabelError):
        return []


def format_voc(image: LabelledImage, names: Sequence[str]) -> str:
    """The XML file of an image. Raises UserError if a name has a sign that XML can't hold."""
    for name in (image.name, *names):
        if _NOT_XML.search(name):
            raise UserError(f"XML can't hold the name {name!r}")
    height, width = image.size
    lines = [
        "<annotation>",
        f"  <filename>{escape(image.name)}</filename>",
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
    ]
    for box, label, ignored in zip(image.boxes.tolist(), image.labels.tolist(), image.ignore.tolist(), strict=True):
        corners = "".join(f"<{tag}>{value:.9g}</{tag}>" for tag, value in zip(_CORNERS, box, strict=True))
        lines.append(
            f"  <object><name>{escape(names[label])}</name><difficult>{int(ignored)}</difficult>"
            f"<bndbox>{corners}</bndbox></object>"
        )
    return "\n".join([*lines, "</annotation>", ""])


def _parse_object(own: Fields, classes: dict[str, int], size: tuple[int, int]) -> tuple[float, ...]:
    name = own.get("name", "")
    if composed(name) not in classes:
        raise LabelError("class unknown", f"class {name!r} is not one of {', '.join(classes)}" if name else "no name")
    if "bndbox" in own:
        box = [_number(own, f"bndbox/{tag}") for tag in _CORNERS]
    elif "polygon" in own:
        ends = [tag[len("polygon/x") :] for tag in own if tag.startswith("polygon/x")]
        if len(ends) < 3:
            raise LabelError("label malformed", f"a polygon of {len(ends)} points")
        x, y = ([_number(own, f"polygon/{axis}{end}") for end in ends] for axis in "xy")
        box = [min(x), min(y), max(x), max(y)]
    else:
        raise LabelError("label malformed", "the object has neither bndbox nor polygon")
    corners = clip(box, size, lambda: f"the box {' '.join(f'{value:g}' for value in box)}")
    return classes[composed(name)], is_set(own.get("difficult")), *corners


def _number(fields: Fields, tag: str) -> float:
    if tag not in fields:
        raise LabelError("label malformed", f"there is no {tag}")
    with contextlib.suppress(ValueError):
        if math.isfinite(value := float(fields[tag])):
            return value
    raise LabelError("label malformed", f"{tag} is {fields[tag]!r}, not a number")
