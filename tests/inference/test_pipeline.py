"""conveyor.py: every file ends in order, alone in its failure, coloured, with its depth, frames and alpha."""

import json
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.color import rgb2lab

from dataset import scenes
from imaging import color, encoders
from imaging.files import read_frames, scan
from imaging.pixels import Frame
from inference import pipeline
from inference.checkpoint import EXPORT_FORMAT
from inference.colorizer import Colorizer
from inference.pipeline import Conveyor, Job, Options, is_coloured
from inference.runner import Painter, Pixels
from inference.tasks import Task, plan_tasks
from models import UNet

CPU = torch.device("cpu")
PLAIN = Options()
KEEP = Options(keep_coloured=True)


def write_model(path: Path, x_kind: str = "L", y_kind: str = "ab", **metadata: Any) -> Path:
    """Write a generator.ts of random weights."""
    torch.manual_seed(3)
    generator = UNet(color.CHANNELS[x_kind], color.CHANNELS[y_kind], ngf=4, depth=3, dropout=0.0)
    fields = {"format": EXPORT_FORMAT, "version": "1", "recipe": {"input": x_kind, "output": y_kind}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and asked for
        module = torch.jit.script(Colorizer(generator, x_kind, y_kind, 32, 8).eval())
        module.save(path, _extra_files={"tinct.json": json.dumps({**fields, **metadata})})
    return path


@pytest.fixture(scope="session")
def photo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a generator.ts for photographs: L -> ab."""
    return write_model(tmp_path_factory.mktemp("model") / "photo.ts")


@pytest.fixture(scope="session")
def line_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a generator.ts for line art: sketch -> rgb."""
    return write_model(tmp_path_factory.mktemp("model") / "line.ts", "sketch", "rgb")


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """A user who colours good files sees nothing of ours or of the libraries on stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class StandIn:
    """In place of a Painter: turns black into red, and fails on pictures that begin with a bad value."""

    def __init__(self, kind: str = "L", bad: int = -1) -> None:
        self.metadata = {"recipe": {"input": kind}}
        self.bad = bad
        self.calls: list[list[Pixels]] = []

    def paint(self, pictures: list[Pixels]) -> list[Pixels]:
        self.calls.append([picture.copy() for picture in pictures])
        assert len({(picture.shape, picture.dtype) for picture in pictures}) == 1
        if any(picture[0, 0, 0] == self.bad for picture in pictures):
            raise RuntimeError("the network\n  fell over")
        return [self.coloured(picture) for picture in pictures]

    @staticmethod
    def coloured(picture: Pixels) -> Pixels:
        out = picture.copy()
        out[..., 0] = np.iinfo(out.dtype).max
        return out

    def sizes(self) -> list[int]:
        """Return how many pictures each call had."""
        return [len(call) for call in self.calls]


def run(painter: Any, *inputs: str, options: Options = PLAIN, jobs: int = 2, **how: Any) -> list[Job]:
    """Colourise files into out/; returns the jobs."""
    tasks = plan_tasks([Path(name) for name in inputs], Path("out"), **how)
    finished = list(Conveyor(painter, options, jobs).run(tasks))
    assert [job.task for job in finished] == tasks  # always in order
    assert not [path for path in Path("out").rglob("*") if path.name.endswith(".tmp")]
    return finished


def done(painter: Any, *inputs: str, **how: Any) -> list[Job]:
    """Colourise files that must all succeed."""
    finished = run(painter, *inputs, **how)
    assert {job.status for job in finished} == {"done"}, [job.reason for job in finished]
    return finished


def save(name: str, values: NDArray, **options: Any) -> Path:
    """Write a picture of any depth."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        channels = values.shape[2] if values.ndim == 3 else 1
        extra = {"extrasamples": ["UNASSALPHA"]} if channels in (2, 4) else {}
        tifffile.imwrite(
            path, values, photometric="rgb" if channels > 2 else "minisblack", **extra, **options
        )
    elif values.dtype == np.uint16:
        path.write_bytes(imagecodecs.png_encode(values))
    else:
        Image.fromarray(values).save(path, **options)
    return path


def gray(seed: int, height: int = 40, width: int = 56, dtype: Any = np.uint8) -> NDArray:
    """Return a smooth gray picture (H, W) with all tones."""
    rng, top = np.random.default_rng(seed), np.iinfo(dtype).max
    small = torch.from_numpy(rng.random((1, 1, 6, 6)))
    values = torch.nn.functional.interpolate(small, (height, width), mode="bilinear")[0, 0].numpy()
    values = (values - values.min()) / max(float(np.ptp(values)), 1e-9)
    return (values * top).round().astype(dtype)


def frames_of(name: str | Path) -> list[Frame]:
    return list(read_frames(scan(Path(name))))


def frame_of(name: str | Path) -> Frame:
    (frame,) = frames_of(name)
    return frame


def chroma(pixels: Pixels) -> float:
    """Return how far a picture is from gray, of 255, on average."""
    return float(np.ptp(pixels.astype(float), axis=2).mean() * 255 / np.iinfo(pixels.dtype).max)


def lightness(pixels: Pixels) -> NDArray:
    return rgb2lab(pixels / np.iinfo(pixels.dtype).max)[..., 0]


# order and records


def test_every_file_ends_in_order_with_a_record() -> None:
    for i in range(30):
        save(f"p/{i:02d}.png", gray(i, 8 + i % 5, 9))
    save("out/07.png", gray(0))
    Path("p/11.png").write_bytes(b"a text")
    colour = np.dstack([gray(1), gray(2), gray(3)])
    save("p/13.png", colour)
    jobs = run(StandIn(), "p", options=KEEP)
    assert all(job.seconds > 0 for job in jobs)
    records = [job.record() for job in jobs]
    assert [record["file"] for record in records] == [f"p/{i:02d}.png" for i in range(30)]
    for i, record in enumerate(records):
        assert json.loads(json.dumps(record)) == record
        assert record["output"] == f"out/{i:02d}.png"
        assert record["status"] == {7: "skipped", 11: "failed", 13: "kept"}.get(i, "done")
        assert record["frames"] == (0 if i in (7, 11) else 1)
        assert record["seconds"] == round(jobs[i].seconds, 3)
        assert record.get("reason") == ("p/11.png: not an image that can be read" if i == 11 else None)
        fields = {"file", "output", "status", "frames", "seconds"} | ({"reason"} if i == 11 else set())
        assert record.keys() == fields
    assert not Path("out/11.png").exists()


def test_seconds_are_those_of_all_three_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(step: Callable[..., Any]) -> Callable[..., Any]:
        def slowed(*arguments: Any, **options: Any) -> Any:
            time.sleep(0.1)
            return step(*arguments, **options)

        return slowed

    save("a.png", gray(0))
    for name in ("scan", "read_frames", "write_frames"):
        monkeypatch.setattr(pipeline, name, slow(getattr(pipeline, name)))
    monkeypatch.setattr(StandIn, "paint", slow(StandIn.paint))
    (job,) = done(StandIn(), "a.png")
    assert 0.4 <= job.seconds < 1.6


def test_a_batch_shares_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    def paint(self: StandIn, pictures: list[Pixels]) -> list[Pixels]:
        time.sleep(0.8)
        return pictures

    for i in range(4):
        save(f"p/{i}.png", gray(i))
    monkeypatch.setattr(StandIn, "paint", paint)
    assert all(0.2 <= job.seconds < 0.7 for job in done(StandIn(), "p"))


@pytest.mark.parametrize("count", [0, 1])
def test_few_files(count: int) -> None:
    tasks = [Task(save(f"{i}.png", gray(i)), Path(f"out/{i}.png")) for i in range(count)]
    assert [job.status for job in Conveyor(StandIn(), Options(), 1).run(tasks)] == ["done"] * count


# what is there is left alone


def test_what_exists_is_skipped_unless_it_is_to_be_overwritten() -> None:
    save("a.png", gray(0))
    save("b.png", gray(1))
    Path("out").mkdir()
    Path("out/a.png").write_bytes(b"older")
    painter = StandIn()
    assert [job.status for job in run(painter, "a.png", "b.png")] == ["skipped", "done"]
    assert Path("out/a.png").read_bytes() == b"older"
    assert painter.sizes() == [1]
    written = Path("out/b.png").stat().st_mtime_ns
    assert [job.status for job in run(painter, "a.png", "b.png")] == ["skipped", "skipped"]
    assert Path("out/b.png").stat().st_mtime_ns == written
    assert painter.sizes() == [1]
    done(painter, "a.png", "b.png", options=Options(overwrite=True))
    assert np.array_equal(frame_of("out/a.png").pixels, StandIn.coloured(frame_of("a.png").pixels))
    assert Path("out/b.png").stat().st_mtime_ns > written


def test_a_sheet_that_is_missing_is_made() -> None:
    save("a.png", gray(0))
    done(StandIn(), "a.png")
    assert [job.status for job in run(StandIn(), "a.png")] == ["skipped"]
    done(StandIn(), "a.png", compare=True)
    assert Path("out/a_compare.png").exists()
    assert [job.status for job in run(StandIn(), "a.png", compare=True)] == ["skipped"]


def test_a_skipped_file_is_not_even_opened() -> None:
    Path("a.png").write_bytes(b"no picture")
    save("out/a.png", gray(0))
    assert [job.status for job in run(StandIn(), "a.png")] == ["skipped"]


# what has colours


def scene(index: int) -> NDArray:
    return np.ascontiguousarray(scenes.draw(index, 128)[0])


def faded(index: int) -> NDArray:
    return (scene(index) @ [0.299, 0.587, 0.114])[..., None]


UNCOLOURED = {
    "gray": lambda luma: luma * [1, 1, 1],
    "sepia": lambda luma: luma * [1.07, 0.81, 0.5],
    "yellowed": lambda luma: luma * [1, 0.93, 0.76],
    "cyanotype": lambda luma: 255 * (luma / 255) ** [1.8, 1.1, 0.8],
    "stained": lambda luma: luma * np.linspace(1, 0.93, 128)[:, None, None] ** [0, 1, 3],
    "noisy": lambda luma: luma + np.random.default_rng(0).normal(0, 4, (128, 128, 3)),
    "paper": lambda _: np.full((128, 128, 3), (240, 225, 190)),
}


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_counts_as_colours(index: int, dtype: Any) -> None:
    scale = np.iinfo(dtype).max // 255
    assert is_coloured(scene(index).astype(dtype) * dtype(scale))
    for kind, make in UNCOLOURED.items():
        pixels = make(faded(index)).clip(0, 255).round().astype(dtype) * dtype(scale)
        assert not is_coloured(pixels), kind


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (2, 30_000), (3000, 1), (3, 3), (2100, 40)])
def test_pictures_of_every_shape_can_be_asked(shape: tuple[int, int]) -> None:
    flat = np.full((*shape, 3), 99, np.uint8)
    assert not is_coloured(flat)
    assert not is_coloured(np.zeros_like(flat))
    if max(shape) > 1000:
        hues = np.random.default_rng(0).integers(0, 256, (9, 3)).astype(np.uint8)
        stripes = hues[np.arange(max(shape)) // 100 % 9]  # (max(shape), 3)
        flat[:] = stripes[None] if shape[1] == max(shape) else stripes[:, None]
        assert is_coloured(flat)


def test_coloured_pictures_are_kept_as_they_are() -> None:
    for kind, make in UNCOLOURED.items():
        save(f"p/{kind}.jpg", make(faded(0)).clip(0, 255).astype(np.uint8), quality=90)
    save("p/scene.jpg", scene(1), quality=71, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")
    save("p/scene.png", scene(2))
    painter = StandIn()
    jobs = {job.task.path.name: job for job in run(painter, "p", options=KEEP)}
    assert {name for name, job in jobs.items() if job.status == "kept"} == {"scene.jpg", "scene.png"}
    assert {job.status for job in jobs.values()} == {"kept", "done"}
    for name in ("scene.jpg", "scene.png"):
        assert Path("out", name).read_bytes() == Path("p", name).read_bytes()
    assert sum(painter.sizes()) == len(UNCOLOURED)
    assert all(job.status == "done" for job in run(painter, "p", options=Options(overwrite=True)))


@pytest.mark.parametrize(
    ("name", "form", "same"),
    [
        ("x.jpg", "jpg", True),
        ("x.JPG", "jpg", True),
        ("x.jpeg", "jpg", True),
        ("x.tiff", "tif", True),
        ("x.jpg", "png", False),
        ("x.png", "webp", False),
        ("x.png", "tif", False),
    ],
)
def test_kept_pictures_are_encoded_again_only_for_another_format(name: str, form: str, same: bool) -> None:
    Image.fromarray(scene(1)).save(name)
    (job,) = run(StandIn(), name, options=KEEP, form=form)
    assert job.status == "kept"
    assert job.task.output == Path(f"out/x.{form}")
    assert (job.task.output.read_bytes() == Path(name).read_bytes()) == same
    error = np.abs(frame_of(job.task.output).pixels.astype(int) - frame_of(name).pixels)
    assert error.mean() < (4 if form == "webp" else 0.001)


def test_pages_are_kept_or_coloured_one_by_one() -> None:
    with tifffile.TiffWriter("x.tif") as writer:
        for page in (scene(0), gray(1), scene(1)):
            writer.write(page, photometric="rgb" if page.ndim == 3 else "minisblack")
    painter = StandIn()
    (job,) = run(painter, "x.tif", options=KEEP)
    assert job.record()["frames"] == 3
    first, second, third = (frame.pixels for frame in frames_of("out/x.tif"))
    assert np.array_equal(first, scene(0))
    assert np.array_equal(second, StandIn.coloured(gray(1)[..., None].repeat(3, 2)))
    assert np.array_equal(third, scene(1))
    assert painter.sizes() == [1]


# sheets


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_sheet_shows_input_and_result(dtype: Any, ending: str) -> None:
    values = gray(0, dtype=dtype)
    save(f"x.{ending}", values)
    (job,) = done(StandIn(), f"x.{ending}", compare=True)
    assert job.task.sheet == Path(f"out/x_compare.{ending}")
    sheet, given = frame_of(job.task.sheet).pixels, values[..., None].repeat(3, 2)
    assert sheet.dtype == dtype
    assert np.array_equal(sheet, np.concatenate([given, StandIn.coloured(given)], 1))
    assert np.array_equal(frame_of(job.task.output).pixels, StandIn.coloured(given))


def test_no_sheet_unless_asked_for() -> None:
    save("x.png", gray(0))
    done(StandIn(), "x.png")
    assert [path.name for path in Path("out").iterdir()] == ["x.png"]


@pytest.mark.parametrize("name", ["x.gif", "x.tif", "x.webp", "x.png"])
def test_a_sheet_of_many_frames_shows_the_first(name: str) -> None:
    first, *rest = (Image.fromarray(gray(i)) for i in range(3))
    first.save(name, save_all=True, append_images=rest, duration=50, lossless=True)
    given = frames_of(name)[0].pixels
    done(StandIn(), name, compare=True)
    sheet = frame_of(f"out/{Path(name).stem}_compare{Path(name).suffix}").pixels
    assert sheet.shape == (40, 112, 3)
    error = np.abs(sheet.astype(int) - np.concatenate([given, StandIn.coloured(given)], 1))
    assert error.mean() < (10 if name == "x.gif" else 3)  # 256 colours; what WebP loses
    assert len(frames_of(f"out/{name}")) == 3


def test_a_kept_picture_has_a_sheet_too() -> None:
    save("x.png", scene(0))
    (job,) = run(StandIn(), "x.png", options=KEEP, compare=True)
    assert job.status == "kept"
    assert np.array_equal(frame_of("out/x_compare.png").pixels, np.concatenate([scene(0)] * 2, 1))


def test_a_sheet_that_cannot_be_written_fails_the_file_before_its_result_is_there() -> None:
    save("x.png", gray(0))
    Path("out/x_compare.png").mkdir(parents=True)
    (job,) = run(StandIn(), "x.png", compare=True)
    assert job.status == "failed"
    assert "x_compare.png" in job.reason
    assert not Path("out/x.png").exists()  # or the next call would skip it, and it never had a sheet


def test_a_sheet_too_large_for_its_format_fails_the_file_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(encoders.LONGEST, "JPEG", 100)  # of 65,500
    save("x.jpg", gray(0, 90, 51))
    painter = StandIn()
    (job,) = run(painter, "x.jpg", compare=True)
    assert job.status == "failed"
    assert "102 pixels a side are too many" in job.reason
    assert painter.calls == []
    assert not Path("out/x.jpg").exists()


def test_what_cannot_be_written_names_the_input_too() -> None:
    save("x.png", gray(0))
    Path("out/x.png").mkdir(parents=True)
    (job,) = run(StandIn(), "x.png", options=Options(overwrite=True))
    assert (job.status, job.reason) == ("failed", "x.png: out/x.png: Is a directory")


# depth


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_16_bits_of_lightness_stay(name: str, photo_model: Path) -> None:
    values = gray(0, 90, 130, np.uint16)
    save(name, values)
    done(Painter(photo_model, CPU), name)
    pixels = frame_of(f"out/{name}").pixels
    assert (pixels.dtype, pixels.shape) == (np.uint16, (90, 130, 3))
    assert chroma(pixels) > 5
    assert len(np.unique(pixels[..., 0])) > 1000
    before = lightness(values[..., None].repeat(3, 2))
    assert np.abs(lightness(pixels) - before).max() < 0.02  # of 100; 8 bits are off by 0.2


def test_8_bits_of_lightness_stay(photo_model: Path) -> None:
    save("x.png", gray(0, 90, 130))
    done(Painter(photo_model, CPU), "x.png")
    pixels = frame_of("out/x.png").pixels
    assert (pixels.dtype, pixels.shape) == (np.uint8, (90, 130, 3))
    assert np.abs(lightness(pixels) - lightness(gray(0, 90, 130)[..., None].repeat(3, 2))).max() < 0.6


# transparency


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("colours", [1, 3])
def test_transparency_stays_and_what_it_hides_has_no_say(
    dtype: Any, ending: str, colours: int, photo_model: Path
) -> None:
    top = np.iinfo(dtype).max
    alpha = gray(7, dtype=dtype)
    alpha[:20, :30] = 0
    alpha[30:, 40:] = top
    hidden = alpha == 0
    for hides in range(2):  # what lies under a transparent place: one thing, or another
        values = gray(0, dtype=dtype)[..., None].repeat(colours, 2)
        values[hidden] = gray(8 + hides, dtype=dtype)[hidden, None] if hides else 0
        save(f"x{hides}.{ending}", np.dstack([values, alpha]))
    done(Painter(photo_model, CPU), f"x0.{ending}", f"x1.{ending}")
    one, other = frame_of(f"out/x0.{ending}"), frame_of(f"out/x1.{ending}")
    for frame in (one, other):
        assert frame.pixels.dtype == dtype
        assert np.array_equal(frame.alpha, alpha)
    assert np.array_equal(one.pixels[~hidden], other.pixels[~hidden])
    assert chroma(one.pixels) > 5
    before = lightness(gray(0, dtype=dtype)[..., None].repeat(3, 2))
    assert np.abs(lightness(one.pixels) - before)[~hidden].max() < (0.6 if dtype == np.uint8 else 0.02)


def test_a_transparent_place_is_white_to_the_network() -> None:
    values = np.dstack([gray(0), np.where(np.arange(56) < 20, 0, 1).astype(np.uint8) * gray(1).clip(1)])
    save("x.png", values)
    painter = StandIn()
    done(painter, "x.png")
    ((seen,),) = painter.calls
    hidden = values[..., 1] == 0
    assert (seen[hidden] == 255).all()
    assert np.array_equal(seen[~hidden], values[~hidden, :1].repeat(3, 1))  # half transparent: as it is


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", ["sketch", "line", "gray+line"])
def test_for_line_art_a_transparent_page_is_paper(kind: str, dtype: Any) -> None:
    top = np.iinfo(dtype).max
    alpha = gray(1, dtype=dtype)
    values = gray(0, dtype=dtype)
    save("x.png", np.dstack([values, alpha]))
    painter = StandIn(kind)
    done(painter, "x.png", compare=True)
    ((seen,),) = painter.calls
    expected = (values * (alpha / top) + top * (1 - alpha / top))[..., None].repeat(3, 2)
    assert seen.dtype == dtype
    assert np.abs(seen - expected).max() <= 1
    assert frame_of("out/x.png").alpha is None
    assert np.array_equal(frame_of("out/x_compare.png").pixels[:, :56], seen)


def test_a_transparent_drawing_and_one_on_paper_are_coloured_alike(line_model: Path) -> None:
    ink = np.where(gray(0) < 80, 255, 0).astype(np.uint8)  # black where there is ink
    save("p/clear.png", np.dstack([np.zeros_like(ink), ink]))
    save("p/paper.png", 255 - ink)
    done(Painter(line_model, CPU), "p")
    clear, paper = frame_of("out/clear.png"), frame_of("out/paper.png")
    assert clear.alpha is None
    assert np.array_equal(clear.pixels, paper.pixels)
    assert chroma(clear.pixels) > 5


# animations and pages


@pytest.mark.parametrize("name", ["x.gif", "x.webp", "x.png", "x.tif"])
def test_every_frame_is_coloured(name: str, photo_model: Path) -> None:
    first, *rest = (Image.fromarray(gray(i)) for i in range(4))
    durations = [40, 90, 200, 1000]
    first.save(name, save_all=True, append_images=rest, duration=durations, loop=0, lossless=True)
    before = frames_of(name)
    painter = Painter(photo_model, CPU)
    (job,) = done(painter, name)
    assert job.record()["frames"] == 4
    after = scan(Path(f"out/{name}"))
    assert after.durations == (() if name == "x.tif" else tuple(durations))
    for frame, given in zip(frames_of(f"out/{name}"), before, strict=True):
        expected = painter.paint([given.pixels])[0]
        assert chroma(frame.pixels) > 5
        error = np.abs(frame.pixels.astype(int) - expected)
        assert error.mean() < {"x.gif": 10, "x.webp": 8}.get(name, 0.01)
    assert after.count == 4


@pytest.mark.parametrize(("form", "fits"), [("tif", True), ("webp", True), ("png", True), ("jpg", False)])
def test_an_animation_in_another_format(form: str, fits: bool) -> None:
    first, *rest = (Image.fromarray(gray(i)) for i in range(3))
    first.save("x.gif", save_all=True, append_images=rest, duration=50)
    painter = StandIn()
    (job,) = run(painter, "x.gif", form=form)
    assert (job.status == "done") == fits
    assert Path(f"out/x.{form}").exists() == fits
    if not fits:
        assert job.reason.startswith("x.gif: 3 frames do not fit into one .jpg")
        assert painter.calls == []


def test_what_a_format_cannot_hold_is_known_before_work() -> None:
    save("x.png", gray(0, 2, 70_000))
    painter = StandIn()
    (job,) = run(painter, "x.png", form="jpg")
    assert job.reason.startswith("x.png: 70000 pixels a side are too many")
    assert painter.calls == []


@pytest.mark.parametrize("compare", [False, True])
def test_pages_that_break_off_fail_alone_and_leave_nothing(compare: bool) -> None:
    with tifffile.TiffWriter("b.tif") as writer:
        for value in (3, 4, 5):
            writer.write(np.full((9, 9), value, np.uint8), photometric="minisblack")
    save("a.tif", np.zeros((9, 9), np.uint8))
    save("c.tif", np.zeros((9, 9), np.uint8))
    jobs = run(StandIn(bad=5), "a.tif", "b.tif", "c.tif", compare=compare)
    assert [job.status for job in jobs] == ["done", "failed", "done"]
    assert sorted(path.name for path in Path("out").glob("*")) == sorted(
        ["a.tif", "c.tif"] + ["a_compare.tif", "c_compare.tif"] * compare
    )


def test_what_was_there_stays_where_pages_break_off() -> None:
    with tifffile.TiffWriter("x.tif") as writer:
        for value in (3, 4, 5):
            writer.write(np.full((9, 9), value, np.uint8), photometric="minisblack")
    done(StandIn(), "x.tif", compare=True)
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert before.keys() == {"x.tif", "x_compare.tif"}
    (job,) = run(StandIn(bad=5), "x.tif", compare=True, options=Options(overwrite=True))
    assert job.status == "failed"
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before


# batches


def test_pictures_of_one_shape_share_a_forward(photo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "BATCH", 3)
    shapes = [(40, 56)] * 4 + [(56, 40)] * 2 + [(40, 56)] + [(33, 33)] * 3
    for i, shape in enumerate(shapes):
        save(f"p/{i}.png", gray(i, *shape))
    save("p/6a.png", gray(6, dtype=np.uint16))
    painter = Painter(photo_model, CPU)
    sizes, paint = [], painter.paint

    def counted(pictures: list[Pixels]) -> list[Pixels]:
        sizes.append(len(pictures))
        return paint(pictures)

    monkeypatch.setattr(painter, "paint", counted)
    jobs = done(painter, "p")
    assert sizes == [3, 1, 2, 1, 1, 3]
    for job in jobs:
        alone = paint([frame_of(job.task.path).pixels])[0]
        error = np.abs(frame_of(job.task.output).pixels.astype(int) - alone)
        assert error.max() <= (1 if alone.dtype == np.uint8 else 257)


def test_large_pictures_go_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "BATCH_PIXELS", pipeline.BATCH * 40 * 56)
    for i in range(3):
        save(f"p/a{i}.png", gray(i))
        save(f"p/b{i}.png", gray(i, 41))
    painter = StandIn()
    done(painter, "p")
    assert painter.sizes() == [3, 1, 1, 1]


def test_one_picture_that_the_network_cannot_do_fails_alone() -> None:
    for i in range(5):
        values = gray(i)
        values[0, 0] = 77 if i == 2 else 5
        save(f"p/{i}.png", values)
    painter = StandIn(bad=77)
    jobs = run(painter, "p", compare=True)
    assert [job.status for job in jobs] == ["done", "done", "failed", "done", "done"]
    assert "the network fell over" in jobs[2].reason
    assert painter.sizes() == [5, 1, 1, 1, 1, 1]
    assert not list(Path("out").glob("2*"))
    for i in (0, 1, 3, 4):
        assert np.array_equal(
            frame_of(f"out/{i}.png").pixels, StandIn.coloured(frame_of(f"p/{i}.png").pixels)
        )


@pytest.mark.parametrize(
    "error", [MemoryError(), MemoryError("no room for it"), RuntimeError("no room for it")]
)
def test_no_memory_for_one_picture_is_its_own_failure(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def paint(self: StandIn, pictures: list[Pixels]) -> list[Pixels]:
        if pictures[0].shape[0] > 50:
            raise error
        return pictures

    save("a.png", gray(0))
    save("b.png", gray(0, 60))
    save("c.png", gray(0))
    monkeypatch.setattr(StandIn, "paint", paint)
    jobs = run(StandIn(), "a.png", "b.png", "c.png")
    assert [job.status for job in jobs] == ["done", "failed", "done"]
    assert (str(error) or "MemoryError") in jobs[1].reason
    assert "\n" not in jobs[1].reason


@pytest.mark.parametrize("step", ["scan", "read_frames", "write_frames"])
@pytest.mark.parametrize("error", [ValueError, OSError, MemoryError, RuntimeError, TypeError])
def test_what_any_step_raises_is_that_files_failure(
    step: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    works = getattr(pipeline, step)

    def fails(first: Any, *more: Any) -> Any:
        if "b.png" in str(first):
            raise error("broken\nin two")
        return works(first, *more)

    for name in "abc":
        save(f"{name}.png", gray(0))
    monkeypatch.setattr(pipeline, step, fails)
    jobs = run(StandIn(), "a.png", "b.png", "c.png")
    assert [job.status for job in jobs] == ["done", "failed", "done"]
    assert jobs[1].reason == "b.png: broken in two"
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.png", "c.png"]


def test_a_problem_of_the_plan_is_a_failure() -> None:
    save("a/x.png", gray(0))
    save("b/x.png", gray(1))
    first, second = run(StandIn(), "a", "b")
    assert (first.status, second.status) == ("done", "failed")
    assert second.reason == second.task.problem
    assert np.array_equal(frame_of("out/x.png").pixels, StandIn.coloured(frame_of("a/x.png").pixels))
    first, second = run(StandIn(), "a", "b")
    assert (first.status, second.status) == ("skipped", "failed")  # not: skipped as if it were done


# threads


def test_the_number_of_threads_changes_nothing(photo_model: Path) -> None:
    for i in range(14):
        save(f"p/{i:02d}.{'jpg' if i % 3 else 'png'}", gray(i, 40 + i // 5))
    (Path("p") / "bad.png").write_bytes(b"bad")
    results = []
    for jobs in (1, 4):
        statuses = [job.status for job in run(Painter(photo_model, CPU), "p", jobs=jobs, compare=True)]
        results.append((statuses, {path.name: path.read_bytes() for path in Path("out").iterdir()}))
        Path("out").rename(f"out{jobs}")
    assert results[0] == results[1]
    assert len(results[0][1]) == 28


@pytest.mark.parametrize("step", ["read_frames", "write_frames"])
def test_files_are_read_and_written_beside_one_another(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    together, works = threading.Barrier(2, timeout=20), getattr(pipeline, step)

    def meets(*arguments: Any) -> Any:
        together.wait()
        return works(*arguments)

    for i in range(4):
        save(f"p/{i}.png", gray(i, 40 + i))
    monkeypatch.setattr(pipeline, step, meets)
    assert len(done(StandIn(), "p", jobs=2)) == 4  # one at a time would break the barrier, and fail
    assert not together.broken


class Watched:
    """Count the pictures that are in memory: what was read, and what was made of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slow: str) -> None:
        self.read_ones: list[weakref.ref[NDArray]] = []
        self.made_ones: list[weakref.ref[NDArray]] = []
        self.most, self.slow, self.lock = 0, slow, threading.Lock()
        self.read, self.write, self.paint = pipeline.read_frames, pipeline.write_frames, StandIn.paint
        monkeypatch.setattr(pipeline, "read_frames", self.read_frames)
        monkeypatch.setattr(pipeline, "write_frames", self.write_frames)
        monkeypatch.setattr(StandIn, "paint", lambda *arguments: self.painted(*arguments))

    def add(self, pixels: Pixels, ones: list[weakref.ref[NDArray]]) -> None:
        with self.lock:
            ones.append(weakref.ref(pixels))
            self.most = max(self.most, self.alive())

    def alive(self) -> int:
        return sum(one() is not None for one in self.read_ones + self.made_ones)

    def read_frames(self, *arguments: Any) -> Iterator[Frame]:
        for frame in self.read(*arguments):
            self.add(frame.pixels, self.read_ones)
            yield frame
            del frame

    def write_frames(self, path: Path, frames: Iterable[Frame], *more: Any) -> None:
        if self.slow == "write":
            time.sleep(0.01)
        if self.slow == "full":
            raise OSError(28, "No space left on device", str(path))
        self.write(path, frames, *more)

    def painted(self, painter: StandIn, pictures: list[Pixels]) -> list[Pixels]:
        if self.slow == "paint":
            time.sleep(0.02)
        colours = [StandIn.coloured(picture) for picture in pictures]
        for colour in colours:
            self.add(colour, self.made_ones)
        return colours


@pytest.mark.parametrize("slow", ["read", "paint", "write", "full"])
@pytest.mark.parametrize(("jobs", "height"), [(1, 0), (2, 0), (2, 1)])
def test_few_of_many_pictures_are_in_memory(
    slow: str, jobs: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(60):
        save(f"p/{i:02d}.png", gray(i, 16 + i * height, 16))
    watched = Watched(monkeypatch, slow)
    finished = run(StandIn(), "p", jobs=jobs)
    assert {job.status for job in finished} == {"failed" if slow == "full" else "done"}
    # read ahead; in a batch, which is there twice while it is coloured; next to it; being written
    assert watched.most <= 2 * jobs + 2 * (1 if height else pipeline.BATCH) + 2 + 2 * jobs
    assert watched.alive() == 0


@pytest.mark.parametrize("slow", ["paint", "write"])
def test_fewer_large_pictures_are_in_memory(slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "HELD_PIXELS", 3 * 16 * 16)
    monkeypatch.setattr(pipeline, "BATCH", 1)
    for i in range(30):
        save(f"p/{i:02d}.png", gray(i, 16, 16))
    watched = Watched(monkeypatch, slow)
    done(StandIn(), "p", jobs=8)
    assert watched.most <= 3 + 2 + 2 + 3


def test_a_picture_larger_than_what_may_be_held_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "HELD_PIXELS", 5)
    for i in range(5):
        save(f"p/{i:02d}.png", gray(i, 16 + i, 16))
    watched = Watched(monkeypatch, "paint")
    done(StandIn(), "p", jobs=8)
    assert watched.most <= 1 + 2 + 2 + 1


def test_of_many_frames_few_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with tifffile.TiffWriter("x.tif") as writer:
        for i in range(40):
            writer.write(gray(i), photometric="minisblack")
    watched = Watched(monkeypatch, "read")
    done(StandIn(), "x.tif", compare=True)
    assert len(watched.read_ones) == 40
    assert watched.most <= 6  # two frames, and the first for its sheet, each there twice
    assert watched.alive() == 0


@pytest.mark.parametrize(
    ("size", "whole"), [((8001, 20), (40, 8001)), ((8000, 20), (20, 16_000)), ((20, 8001), (8001, 40))]
)
def test_a_sheet_of_a_wide_picture_is_twice_as_high(size: tuple[int, int], whole: tuple[int, int]) -> None:
    save("x.webp", gray(0, size[1], size[0]), lossless=True)
    done(StandIn(), "x.webp", compare=True)
    assert frame_of("out/x_compare.webp").pixels.shape == (*whole, 3)


@pytest.mark.parametrize(("name", "form"), [("x.png", "webp"), ("x.gif", None)])
def test_kept_pictures_keep_their_transparency(name: str, form: str | None) -> None:
    alpha = np.where(np.arange(128) < 40, 0, 255).astype(np.uint8) + np.zeros((128, 1), np.uint8)
    frames = [Image.fromarray(np.dstack([scene(i), alpha])) for i in (0, 1)]
    more = {"save_all": True, "append_images": frames[1:], "duration": 50} if name == "x.gif" else {}
    frames[0].save(name, **more)
    (job,) = run(StandIn("sketch"), name, options=KEEP, form=form, compare=True)
    assert job.status == ("done" if more else "kept")
    found = frames_of(str(job.task.output))
    assert len(found) == (2 if more else 1)
    for frame in found:
        assert frame.alpha is not None
        assert np.array_equal(frame.alpha == 0, alpha == 0)
    sheet = frame_of(str(job.task.sheet)).pixels
    assert min(sheet[:, :30].min(), sheet[:, 134:158].min()) > 245  # as on white paper; WebP loses some


def test_kept_and_coloured_frames_go_into_one_film() -> None:
    alpha = np.where(np.arange(128) < 40, 0, 255).astype(np.uint8) + np.zeros((128, 1), np.uint8)
    frames = [
        Image.fromarray(np.dstack([pixels, alpha]))
        for pixels in (scene(0), gray(1, 128, 128)[..., None].repeat(3, 2))
    ]
    for first, second in (frames, frames[::-1]):
        first.save("x.png", save_all=True, append_images=[second], duration=50)
        (job,) = run(StandIn("sketch"), "x.png", options=replace(KEEP, overwrite=True))
        assert job.status == "done"
        found = [
            frame.pixels if frame.alpha is None else np.where(frame.alpha[..., None] == 0, 255, frame.pixels)
            for frame in frames_of("out/x.png")
        ]
        for frame, given in zip(found, (first, second), strict=True):
            kept = np.array_equal(frame[:, 40:], np.asarray(given)[:, 40:, :3])
            assert kept == (given is frames[0])
