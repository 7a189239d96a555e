"""Videos as the field sends them: read to their end, at their own rate, whatever they are called."""

import functools
import http.server
import os
import re
import shutil
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tiny_network import Tiny
from yoloyard.commands import predict as predict_module
from yoloyard.commands.model import Model
from yoloyard.commands.predict import predict
from yoloyard.commands.sources import find_sources
from yoloyard.common.device import Precision
from yoloyard.common.errors import UserError
from yoloyard.common.log import shown_lines
from yoloyard.common.pixel_spec import EIGHT_BITS
from yoloyard.common.structures import Detections
from yoloyard.common.video import UnreadableError, VideoFile, read_frames
from yoloyard.data.pixels.decode import decode_image
from yoloyard.runtimes.network import Network


class Finder(Model):
    """Finds one box of the first class in every image."""

    def __init__(self) -> None:
        self.names, self.pixels = ("dent",), EIGHT_BITS
        self.network = Network(Tiny(1), torch.device("cpu"), Precision("cpu", torch.float32))

    def find(self, image: np.ndarray) -> Detections:
        return Detections(torch.tensor([[4.0, 4, 20, 20]]), torch.tensor([0.9]), torch.tensor([0]))


def pixels(seed: int, width: int = 96, height: int = 80) -> np.ndarray:
    grid = np.random.default_rng(seed).integers(0, 255, (9, 11, 3)).astype(np.uint8)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)


def write(path: Path, frames: int = 6, rate: float = 25, code: str = "mp4v") -> bytes:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), rate, (96, 80))
    assert writer.isOpened()
    for number in range(frames):
        writer.write(pixels(number))
    writer.release()
    return path.read_bytes()


def with_broken_frames(path: Path, broken: list[int], frames: int = 40) -> None:
    content = bytearray(write(path, frames, code="MJPG"))
    starts = [match.start() for match in re.finditer(b"00dc", content)]
    for number in broken:
        start = starts[number]
        size = int.from_bytes(content[start + 4 : start + 8], "little")
        content[start + 8 : start + 8 + size] = bytes(size)
    path.write_bytes(content)


def read(path: Path) -> tuple[list[int], list[float], list[str], str]:
    """Numbers of the frames, their rates, lines that were said, and the error at the end."""
    said: list[str] = []
    numbers, rates = [], []
    try:
        with shown_lines(said.append):
            for frame in read_frames(str(path), False):
                numbers.append(frame.number)
                rates.append(frame.frames_per_second)
                assert frame.image.shape[2] == 3
    except UnreadableError as error:
        return numbers, rates, said, str(error)
    return numbers, rates, said, ""


def look(folder: Path, *sources: object, **options: bool) -> tuple[predict_module.Done, list[str]]:
    said: list[str] = []
    found = find_sources([str(source) for source in sources])
    options = {"save_txt": False, "save_json": False} | options
    with shown_lines(said.append):
        return predict(Finder(), found, folder, **options), said


@pytest.mark.parametrize("broken", [[10], [20, 21, 22], [5, 30], [39]])
def test_frames_behind_a_broken_one_are_read_and_the_broken_ones_counted(broken: list[int], tmp_path: Path) -> None:
    with_broken_frames(tmp_path / "v.avi", broken)
    numbers, _, _, error = read(tmp_path / "v.avi")
    assert len(numbers) == 40 - len(broken)
    assert numbers[-1] >= 39 - (39 in broken)
    assert error.endswith(f"{len(broken)} of 40 frames are missing; the video is damaged or cut")


@pytest.mark.parametrize(("suffix", "code"), [(".avi", "MJPG"), (".mkv", "mp4v"), (".flv", "FLV1"), (".webm", "VP80")])
def test_a_cut_video_says_how_much_is_missing(suffix: str, code: str, tmp_path: Path) -> None:
    path = tmp_path / f"v{suffix}"
    content = write(path, 40, code=code)
    path.write_bytes(content[: len(content) // 2])
    numbers, _, _, error = read(path)
    assert 15 < len(numbers) < 25
    assert f"{40 - len(numbers)} of 40 frames are missing" in error


def test_few_missing_frames_may_be_an_inexact_header_and_are_said_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "v.flv"
    content = write(path, 40, code="FLV1")
    path.write_bytes(content[: round(0.95 * len(content))])
    numbers, _, said, error = read(path)
    assert (len(numbers), error) == (39, "")
    assert said == [
        f"warning: {path}: 1 of 40 frames are missing; the video is damaged or cut, or its header is inexact"
    ]


@pytest.mark.parametrize("content", [b"", b"no video" * 400, b"RIFF\x00\x00\x00\x00AVI LIST"])
def test_what_is_no_video_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "v001.mp4").write_bytes(content)
    write(tmp_path / "v002.mp4")
    assert read(tmp_path / "v001.mp4")[3].endswith("v001.mp4 has no frame that can be read")
    done, said = look(tmp_path / "out", tmp_path)
    assert (done.images, done.unreadable) == (6, 1)
    assert any(line.startswith("left out: ") and "v001.mp4" in line for line in said)
    with pytest.raises(UnreadableError, match=r"v001\.mp4 has no frame"):
        look(tmp_path / "out", tmp_path / "v001.mp4")


@pytest.mark.parametrize("rate", [0.1, 0.5, 12.5, 29.97, 240, 1000])
def test_a_video_keeps_its_rate(rate: float, tmp_path: Path) -> None:
    write(tmp_path / "v.mp4", 3, rate)
    look(tmp_path / "out", tmp_path / "v.mp4")
    assert cv2.VideoCapture(str(tmp_path / "out" / "v.mp4")).get(cv2.CAP_PROP_FPS) == pytest.approx(rate)
    assert read(tmp_path / "out" / "v.mp4")[0] == [0, 1, 2]


@pytest.mark.parametrize("said_rate", [0.0, float("nan"), -1.0, 1e6])
def test_a_rate_that_can_not_be_is_said(said_rate: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "v.mp4", 3)

    class Capture:
        def __init__(self, path: str) -> None:
            self._video = capture(path)

        def get(self, what: int) -> float:
            return said_rate if what == cv2.CAP_PROP_FPS else self._video.get(what)

        def __getattr__(self, name: str) -> object:
            return getattr(self._video, name)

    capture = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    _, rates, said, error = read(tmp_path / "v.mp4")
    assert (rates, error) == ([25.0] * 3, "")
    assert said == [f"warning: {tmp_path / 'v.mp4'} says {said_rate:g} frames a second: 25 are assumed"]


@pytest.mark.parametrize(
    "name", ["10:20:30.mp4", "%d.mp4", "a b.mp4", "new\nline.mp4", "-x.mp4", "中.mp4", "caf\udce9.mp4", "v.mp4.MP4"]
)
def test_a_video_may_be_called_anything(name: str, tmp_path: Path) -> None:
    write(tmp_path / "plain.mp4")
    folder = tmp_path / "gbk \udccf\udcee"
    folder.mkdir()
    (tmp_path / "plain.mp4").rename(folder / name)
    done, _ = look(folder / "out", folder / name, save_json=True, save_txt=True)
    assert done == predict_module.Done(images=6)
    assert len(read(folder / "out" / Path(name).with_suffix(".mp4"))[0]) == 6
    assert len(list((folder / "out" / "labels" / Path(name).stem).iterdir())) == 6


def test_videos_are_known_by_every_suffix_that_ffmpeg_reads(tmp_path: Path) -> None:
    kinds = {".ts": "mp4v", ".flv": "FLV1", ".mts": "mp4v", ".3gp": "mp4v", ".asf": "WMV2", ".vob": "MPG2"}
    kinds |= {".mxf": "MPG2", ".MOV": "mp4v", ".mpg": "MPG1", ".webm": "VP80", ".m2v": "MPG2"}
    for suffix, code in kinds.items():
        write(tmp_path / f"v{suffix[1:]}{suffix}", code=code)
    done, said = look(tmp_path / "out", tmp_path)
    assert (done.images, done.unreadable) == (6 * len(kinds), 0), said


def test_results_that_can_not_be_written_are_counted_and_the_others_are_done(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    longest = "n" * 251  # 255 with its suffix
    for name in ("a.jpg", f"{longest}.jpg", "z.jpg"):
        cv2.imwrite(str(folder / name), pixels(1))
    cv2.imwrite(str(folder / "wide.tif"), pixels(2, 70_000, 20))
    out = tmp_path / "out"
    (out / "z.jpg").mkdir(parents=True)  # in the way of a result
    done, said = look(out, folder, save_txt=True)
    assert done == predict_module.Done(images=4, unwritten=1)
    assert [line for line in said if line.startswith("not written: ")] == [
        f"not written: cannot write {out / 'z.jpg'}: Is a directory. What was saved before is untouched."
    ]
    assert decode_image(out / "wide.png").shape == (20, 70_000, 3)  # too wide for a JPEG
    assert (out / f"{longest}.jpg").stat().st_size > 0
    assert (out / "labels" / f"{longest}.txt").read_text().startswith("0 ")


def test_a_name_that_its_new_suffix_makes_too_long_is_cut(tmp_path: Path) -> None:
    first, second = (Path(name) for name in ("n" * 252 + ".ts", "n" * 252 + ".qt"))
    for path in (first, second):
        (tmp_path / path).touch()
    names = [source.name for source in find_sources([str(tmp_path)])]
    assert names == ["n" * 251 + ".mp4", "n" * 249 + "-2.mp4"]


def test_a_full_disk_ends_the_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2.imwrite(str(tmp_path / "a.jpg"), pixels(1))
    shutil.copy(tmp_path / "a.jpg", tmp_path / "b.jpg")

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        look(tmp_path / "out", tmp_path)


def test_a_video_that_can_not_be_written_is_named_once_and_its_frames_are_still_looked_at(tmp_path: Path) -> None:
    write(tmp_path / "v.mp4")
    (tmp_path / "out" / "v.mp4").mkdir(parents=True)
    done, said = look(tmp_path / "out", tmp_path / "v.mp4", save_txt=True)
    assert done == predict_module.Done(images=6, unwritten=1)
    assert sum(line.startswith("not written: cannot write the video") for line in said) == 1
    assert len(list((tmp_path / "out" / "labels" / "v").iterdir())) == 6


def test_a_video_that_lacks_frames_in_the_end_is_noticed(tmp_path: Path) -> None:
    video = VideoFile(tmp_path / "v.mp4", 25)
    for number in range(3):
        video.write(pixels(number))
    video.close()
    video.check()
    os.truncate(tmp_path / "v.mp4", 1000)
    with pytest.raises(UserError, match="cannot write all of the video"):
        video.check()


def test_a_video_that_is_turned_by_its_file_is_seen_upright(tmp_path: Path) -> None:
    content = bytearray(write(tmp_path / "v.mp4", 2))
    matrix = content.find(b"tkhd") + 44  # ISO/IEC 14496-12, 8.3.2: after version, times, id, duration, layer, volume
    assert content[matrix : matrix + 4] == (65536).to_bytes(4, "big")
    quarter = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    content[matrix : matrix + 36] = b"".join(number.to_bytes(4, "big", signed=True) for number in quarter)
    (tmp_path / "v.mp4").write_bytes(content)
    look(tmp_path / "out", tmp_path / "v.mp4")
    with shown_lines(pytest.fail):
        [first, _] = read_frames(str(tmp_path / "out" / "v.mp4"), False)
    assert first.image.shape == (96, 80, 3)
    expected = np.rot90(pixels(0)[..., ::-1], -1).astype(int)
    assert np.abs(first.image - expected)[40:, :40].mean() < 25 < np.abs(first.image - expected[::-1])[40:, :40].mean()


@pytest.mark.parametrize(
    ("name", "code"),
    [("v.ts", "mp4v"), ("v.wmv", "WMV2"), ("v.m2v", "MPG2"), ("v.nut", "mp4v"), ("v.mpg", "MPG1"), ("v.m2ts", "mp4v")],
)
def test_a_cut_video_without_a_count_of_frames_is_not_passed_in_silence(name: str, code: str, tmp_path: Path) -> None:
    content = write(tmp_path / name, 40, code=code)
    (tmp_path / name).write_bytes(content[: len(content) // 2 + 1])
    numbers, _, said, error = read(tmp_path / name)
    assert 15 < len(numbers) < 25
    assert any("missing" in line for line in [*said, error])
    if name in ("v.ts", "v.m2ts"):
        assert said == [f"{tmp_path / name} ends within a packet: it is cut, and how much is missing can't be told"]


def test_of_files_with_a_count_nothing_is_said(tmp_path: Path) -> None:
    for name, code in (("v.mp4", "mp4v"), ("v.avi", "MJPG"), ("v.mkv", "mp4v"), ("v.wmv", "WMV2"), ("v.flv", "FLV1")):
        write(tmp_path / name, code=code)
        assert read(tmp_path / name)[2:] == ([], "")
    write(tmp_path / "v.ts")
    assert read(tmp_path / "v.ts")[2] == [
        f"{tmp_path / 'v.ts'} does not say how many frames it has: whether its end is missing can't be told"
    ]


@pytest.mark.parametrize("scheme", ["file://", "FILE://", "file://localhost", "file:"])
def test_a_file_may_be_said_as_an_address(scheme: str, tmp_path: Path) -> None:
    write(tmp_path / "a b.mp4", rate=0.5)
    cv2.imwrite(str(tmp_path / "100%.png"), pixels(1))
    done, _ = look(tmp_path / "out", f"{scheme}{tmp_path}/a%20b.mp4", f"{scheme}{tmp_path}/100%.png")
    assert done == predict_module.Done(images=7)
    assert cv2.VideoCapture(str(tmp_path / "out" / "a b.mp4")).get(cv2.CAP_PROP_FPS) == pytest.approx(0.5)
    with pytest.raises(UserError, match=f"there is no image, video or folder {tmp_path}/no.mp4"):
        look(tmp_path / "out", f"{scheme}{tmp_path}/no.mp4")


def test_a_video_of_a_server_has_an_end_and_its_own_rate(tmp_path: Path) -> None:
    write(tmp_path / "v.avi", rate=0.5, code="MJPG")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            done, said = look(tmp_path / "out", f"http://127.0.0.1:{server.server_port}/v.avi")
        finally:
            server.shutdown()
    assert done == predict_module.Done(images=6), said
    assert cv2.VideoCapture(str(tmp_path / "out" / "stream.mp4")).get(cv2.CAP_PROP_FPS) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["p.jpg", "p.mp4", "p", "/dev/null"])
def test_what_is_neither_a_file_nor_a_folder_is_refused_at_once(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if not path.exists():
        os.mkfifo(path)
    with pytest.raises(UserError, match=f"{path} is a pipe, a socket or a device: name a file or a folder"):
        find_sources([str(path)])
    with pytest.raises(UserError, match="is a pipe, a socket or a device"):
        Finder()(path)


@pytest.mark.parametrize("name", ["v", "v.jpg", "v.tif", "v.dat", "v.xyz", "v.1", "caf\udce9.png"])
@pytest.mark.parametrize("code", ["mp4v", "MPG1"])
def test_a_named_video_may_have_any_suffix(name: str, code: str, tmp_path: Path) -> None:
    write(tmp_path / ("v.mp4" if code == "mp4v" else "v.mpg"), code=code)
    next(tmp_path.glob("v.*")).rename(tmp_path / name)
    done, _ = look(tmp_path / "out", tmp_path / name)
    assert done == predict_module.Done(images=6)
    assert (tmp_path / "out" / name).with_suffix(".mp4").exists()


@pytest.mark.parametrize("content", [b"", bytes(5000), b"text\n" * 900, b"\xff\xd8\xff\xe0" + bytes(900)])
def test_a_named_file_that_is_neither_is_no_video(content: bytes, tmp_path: Path) -> None:
    for name in ("a", "a.jpg", "a.txt"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableError, match=f"cannot read the image {tmp_path / name}"):
            look(tmp_path / "out", tmp_path / name)


def test_of_an_animated_image_it_is_said_that_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.fromarray(pixels(number)) for number in range(5)]
    for suffix in (".png", ".webp", ".tif"):
        path = tmp_path / f"a{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        count = cv2.imcount(str(path))  # not every release of OpenCV sees all frames of every format
        done, said = look(tmp_path / "out", path)
        assert (done.images, f"{path}: the first of {count} frames or pages is taken" in said) == (1, count > 1)
    assert count == 5
    frames[0].save(tmp_path / "one.tif")
    assert not any("the first of" in line for line in look(tmp_path / "out", tmp_path / "one.tif")[1])
