"""files.py: what a file holds comes back out of it: frames, pages, transparency; whole, or not at all."""

import errno
import os
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from image_samples import ALPHA, DEEP, RGB, SMOOTH, read_all, read_one, scan_of
from numpy.typing import NDArray
from PIL import Image

from config import UserError
from dataset import scenes
from imaging.files import (
    FORMATS,
    FORMS,
    RESULTS,
    check_frames,
    find_images,
    output_suffix,
    read_frames,
    read_image,
    scan,
    search,
    write_frames,
    write_image,
)
from imaging.pixels import Frame, flatten, resize

# finding


def place(*names: str) -> None:
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def inside(found: list[Path], folder: str = "root") -> list[str]:
    return [path.relative_to(folder).as_posix() for path in found]


def test_find_images() -> None:
    shown = ["B.JPG", "a.jpeg", "a/x.Png", "a/b/c.tIf", "b.webp", "z.avif", "a/c.HEIC", "a/d.pcx", "a/e.j2k"]
    place(*(f"root/{name}" for name in [*shown, "notes.txt", "png", "x.png.txt"]))
    assert inside(find_images(Path("root"))) == sorted(shown)


def test_service_folders_hold_no_images() -> None:
    hidden = [".hidden.png", ".cache/x.png", "a/.trash/y.png", ".Trash-1000/files/z.png", "a/._x.png"]
    disks = [f"{name}/x.png" for name in ("@eaDir", "a/#recycle", "$RECYCLE.BIN", "__MACOSX", "Thumbs", "lost+found")]
    place(*(f"root/{name}" for name in ["a/x.png", "a/Thumbs.db", "desktop.ini", *hidden, *disks]))
    found = search(Path("root"))
    assert (inside(found.images), found.left_out) == (["a/x.png"], [])
    assert inside(search(Path("root/@eaDir")).images, "root/@eaDir") == ["x.png"]  # if named


def test_what_is_not_taken_is_counted_by_ending() -> None:
    place("root/a.png", "root/b.jxl", "root/c/d.JXL", "root/c/e.txt", "root/f")
    assert search(Path("root")).left_out == [
        "left out: files in root that are not read: 2 .jxl, 1 .txt, 1 without ending"
    ]


def test_links_to_folders_are_followed_once() -> None:
    place("root/b/x.png", "far/away/y.png", "z/z.png")
    for link, target in {"root/a": "b", "root/b/up": "..", "root/far": "../far", "root/b/all": "../..",
                         "far/away/more": "../../z", "far/back": "../root/b"}.items():  # fmt: skip
        Path(link).symlink_to(target)
    found = search(Path("root"))
    assert inside(found.images) == ["b/x.png", "far/away/more/z.png", "far/away/y.png"]
    said = "\n".join(sorted(found.left_out))
    assert said == (
        "left out: root/a, as it is root/b, which is searched already\n"
        "left out: root/b/all, as it leads back to a folder above it\n"
        "left out: root/b/up, as it is root, which is searched already\n"
        "left out: root/far/back, as it is root/b, which is searched already"
    )
    Path("linked").symlink_to("root")
    assert len(search(Path("linked")).images) == 3
    place("links/.hidden")
    Path("links/b").symlink_to("../root/b")
    assert inside(search(Path("links")).images, "links") == ["b/x.png"]


def test_runs_and_the_cache_are_left_out_unless_they_are_named() -> None:
    place("x.png", "runs/a/targets/x.png", "runs/a/recipe.json", "runs/a/log.jsonl", "b/classifier.json", "b/log.jsonl")
    place("b/y.png", "cache/datasets/z.png", "cake/recipe.json", "cake/x.png")
    found = search(Path())
    assert inside(found.images, ".") == ["cake/x.png", "x.png"]
    assert found.left_out == [
        "left out: b, as it is a run of this project",
        "left out: cache, as it is the cache of this project",
        "left out: runs/a, as it is a run of this project",
        "left out: files in . that are not read: 1 .json",
    ]
    for named in ("runs/a", "cache", "b"):
        assert len(find_images(Path(named))) == 1
    assert len(search(Path(), products=True).images) == 5


def test_results_are_left_out_unless_they_are_named() -> None:
    place("x.png", "out/x.png", f"out/{RESULTS}")
    assert search(Path()).notes == [
        "left out: out, as it holds results of colorize.py (to take them, name it, or delete .colorized in it)"
    ]
    assert find_images(Path()) == [Path("x.png")]
    assert find_images(Path("out")) == [Path("out/x.png")]


def test_find_images_errors() -> None:
    with pytest.raises(UserError, match="no folder nowhere"):
        find_images(Path("nowhere"))
    place("empty/readme.txt")
    with pytest.raises(UserError, match=r"no image in empty: looked for .*\.png.*; left out: .*: 1 \.txt"):
        find_images(Path("empty"))


def test_a_folder_that_cannot_be_read_is_no_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def stand_in(path: str) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    place("root/locked/x.png", "root/open/x.png")
    monkeypatch.setattr(os, "scandir", stand_in)  # root may read all
    with pytest.raises(PermissionError, match=r"Permission denied: 'root/locked'"):
        find_images(Path("root"))
    found = search(Path("root"))
    assert inside(found.images) == ["open/x.png"]
    assert [error.filename for error in found.closed] == ["root/locked"]
    with pytest.raises(PermissionError, match=r"'root/locked'"):
        search(Path("root/locked"))


def test_a_heic_says_so_whatever_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"HEIC": b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", "JPEG XL": b"\xff\x0aanything"}
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    for kind, content in kinds.items():
        Path("x.jpg").write_bytes(content + bytes(64))
        with pytest.raises(UserError, match=rf"^x\.jpg: a {kind} image"):
            read_image(Path("x.jpg"))
    stand_in = SimpleNamespace(HeifImageFile=lambda file, name: Image.fromarray(SMOOTH[: len(file.read(4))]))
    monkeypatch.setitem(sys.modules, "pillow_heif", stand_in)
    Path("x.jpg").write_bytes(kinds["HEIC"] + bytes(64))
    assert np.array_equal(read_image(Path("x.jpg")), SMOOTH[:4])


def test_pillow_heif_reads_what_it_wrote() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.fromarray(SMOOTH)).save("x.heic", quality=-1)
    assert np.abs(read_image(Path("x.heic")).astype(int) - SMOOTH).mean() < 3
    assert (scan(Path("x.heic")).count, output_suffix(".heic")) == (1, ".png")


# one way to read


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "ppm", "gif", "webp", "jpg", "jp2", "avif"])
def test_training_and_colouring_read_the_same(ending: str) -> None:
    Image.fromarray(np.dstack([SMOOTH, ALPHA]) if ending in ("png", "tif") else SMOOTH).save(f"x.{ending}")
    path, data = Path(f"x.{ending}"), Path(f"x.{ending}").read_bytes()
    frame = read_one(path)
    assert np.abs(frame.pixels.astype(int) - SMOOTH).mean() < 12
    assert np.array_equal(read_image(path), flatten(frame))
    path.unlink()
    assert np.array_equal(read_image(Path("set.tar:x"), data), flatten(frame))
    (again,) = read_all("photo from a stream", data)
    assert np.array_equal(again.pixels, frame.pixels)


# animations and pages


def film(count: int = 5) -> list[Image.Image]:
    """Return frames on which a square of few colours moves."""
    frames = []
    for k in range(count):
        frame = Image.new("RGB", (40, 30), (10, 60, 200))
        frame.paste((255, 40 * k, 0), (4 * k, 3 * k, 4 * k + 9, 3 * k + 7))
        frames.append(frame)
    return frames


DURATIONS = (40, 90, 200, 60, 1000)


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "avif"])
def test_every_frame_is_as_a_viewer_shows_it(ending: str) -> None:
    first, *rest = film()
    options = {"lossless": True} if ending == "webp" else {}
    first.save(f"x.{ending}", save_all=True, append_images=rest, duration=list(DURATIONS), loop=3, **options)
    assert scan(Path(f"x.{ending}")).durations == DURATIONS
    frames = read_all(f"x.{ending}")
    for frame, expected in zip(frames, film(), strict=True):
        error = np.abs(frame.pixels.astype(int) - np.asarray(expected))
        assert error.mean() < 8 if ending == "avif" else error.max() == 0
        assert frame.alpha is None or (frame.alpha == 255).all()
    assert np.array_equal(read_image(Path(f"x.{ending}")), flatten(frames[0]))


@pytest.mark.parametrize("target", ["gif", "webp", "png", "avif", "tif"])
@pytest.mark.parametrize(("source", "loop"), [("gif", 0), ("gif", 1), ("gif", 3), ("webp", 1), ("png", 3)])
def test_an_animation_becomes_another(source: str, target: str, loop: int) -> None:
    first, *rest = film()
    repeat = {} if (source, loop) == ("gif", 1) else {"loop": loop - 1 if source == "gif" and loop else loop}
    options = {"save_all": True, "append_images": rest, "duration": list(DURATIONS), "lossless": True}
    first.save(f"x.{source}", **options, **repeat)
    found = scan(Path(f"x.{source}"))
    assert found.loop == loop
    write_frames(Path(f"out.{target}"), read_frames(found), found)
    out = scan(Path(f"out.{target}"))
    assert out.count == 5
    if target != "tif":
        assert out.durations == DURATIONS
        assert out.loop == (0 if target == "avif" else loop)
    for frame, expected in zip(read_all(f"out.{target}"), film(), strict=True):
        error = np.abs(frame.pixels.astype(int) - np.asarray(expected))
        assert error.max() == 0 if target in ("gif", "png", "tif") else error.mean() < 4


def test_transparency_of_an_animation_survives_disposal() -> None:
    frames = []
    for k in range(3):
        frame = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
        frame.paste((255, 0, 60 * k, 255), (10 * k, 5, 10 * k + 10, 25))
        frames.append(frame)
    frames[0].save("x.png", save_all=True, append_images=frames[1:], duration=50, disposal=1)
    for target in ("gif", "webp", "png"):
        found = scan(Path("x.png"))
        write_frames(Path(f"out.{target}"), read_frames(found), found)
        for frame, expected in zip(read_all(f"out.{target}"), frames, strict=True):
            wanted = np.asarray(expected)
            assert np.array_equal(frame.alpha, wanted[..., 3])
            shown = wanted[..., 3] > 0
            assert np.abs(frame.pixels[shown].astype(int) - wanted[..., :3][shown]).mean() < 4


def test_a_picture_for_programs_without_animation_is_no_frame() -> None:
    first, *rest = film(3)
    cover = Image.new("RGB", first.size, "white")
    options = {"save_all": True, "append_images": [first, *rest], "default_image": True}
    cover.save("x.png", duration=[50, 60, 70], **options)
    assert scan(Path("x.png")).durations == (50, 60, 70)
    for frame, expected in zip(read_all("x.png"), film(3), strict=True):
        assert np.array_equal(frame.pixels, np.asarray(expected))
    assert np.array_equal(read_image(Path("x.png")), np.asarray(film(1)[0]))


def test_a_duration_that_is_no_whole_number_stays() -> None:
    thirtieth = 1000 / 30
    write_frames(Path("x.png"), [Frame(RGB, None)] * 2, scan_of(2, durations=(thirtieth, 70_123.0)))
    assert scan(Path("x.png")).durations == pytest.approx((thirtieth, 70_123.0), rel=1e-4)
    assert scan(Path("x.png")).durations[0] == thirtieth


def pages() -> list[NDArray]:
    """Return pages of several sizes, depths and kinds."""
    ramp = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    return [RGB, DEEP[:10], RGB[:7, :9, 0], DEEP[:, :5, 0], ramp]


@pytest.mark.parametrize("bigtiff", [False, True])
def test_pages_of_different_size_and_depth(bigtiff: bool) -> None:
    with tifffile.TiffWriter("x.tif", bigtiff=bigtiff) as writer:
        for page in pages():
            writer.write(page, photometric="rgb" if page.ndim == 3 else "minisblack", compression="lzw")
    found = scan(Path("x.tif"))
    assert (found.form, found.count, found.size, found.durations) == ("TIFF", 5, (32, 24), ())
    write_frames(Path("out.tif"), read_frames(found), found)
    for name in ("x.tif", "out.tif"):
        for frame, page in zip(read_all(name), pages(), strict=True):
            colour = page if page.ndim == 3 else page[..., None].repeat(3, 2)
            expected = (colour.astype(np.float64) * 65535).round() if page.dtype == np.float32 else colour
            assert frame.pixels.dtype == (np.uint8 if page.dtype == np.uint8 else np.uint16)
            assert np.array_equal(frame.pixels, expected)


def test_pages_that_pillow_writes() -> None:
    kinds = [Image.fromarray(RGB).convert(mode) for mode in ("1", "P", "CMYK", "RGBA", "L")]
    kinds[0].save("x.tif", save_all=True, append_images=kinds[1:])
    for frame, kind in zip(read_all("x.tif"), kinds, strict=True):
        assert np.array_equal(frame.pixels, np.asarray(kind.convert("RGB")))
        assert (frame.alpha is not None) == (kind.mode == "RGBA")


def test_previews_and_masks_in_a_tiff_are_no_pages() -> None:
    with tifffile.TiffWriter("x.tif") as writer:
        for kind, page in ((1, RGB[::4, ::4]), (0, RGB), (4, RGB[..., 0] > 99), (2, DEEP)):
            writer.write(page, photometric="rgb" if page.ndim == 3 else "minisblack", subfiletype=kind)
    assert [frame.pixels.shape for frame in read_all("x.tif")] == [RGB.shape, DEEP.shape]
    assert np.array_equal(read_image(Path("x.tif")), RGB)
    tifffile.imwrite("x.tif", RGB, photometric="rgb", subfiletype=1)
    assert np.array_equal(read_one("x.tif").pixels, RGB)  # better than nothing


@pytest.mark.parametrize("form", ["RGB", "L", "CMYK", "MPO", "turned"])
def test_a_large_jpeg_is_read_at_a_part_of_its_size(form: str) -> None:
    drawn = Image.fromarray(scenes.draw(3, 300)[0]).resize((1330, 1000), Image.Resampling.BICUBIC)
    picture = drawn.convert(form) if form in ("L", "CMYK") else drawn
    exif = Image.Exif()
    exif[0x0112] = 6 if form == "turned" else 1
    more = {"save_all": True, "append_images": [drawn]} if form == "MPO" else {}
    picture.save("x.jpg", "MPO" if more else "JPEG", quality=95, exif=exif, **more)
    whole = read_image(Path("x.jpg"))
    for least, part in ((126, 2), (125, 4), (63, 4), (30, 8), (251, 1), (0, 1)):
        found = read_image(Path("x.jpg"), least=least)
        assert found.shape[:2] == tuple(-(-side // part) for side in whole.shape[:2]), least
        small = [resize(np.ascontiguousarray(image), 30, 30).astype(float) for image in (found, whole)]
        assert np.abs(small[0] - small[1]).mean() < 2, least


def test_a_phones_several_pictures_are_one() -> None:
    options = {"save_all": True, "append_images": [Image.new("RGB", (8, 8))], "quality": 95}
    Image.fromarray(RGB).save("x.jpg", "MPO", **options)
    found = scan(Path("x.jpg"))
    assert (found.form, found.count, found.size) == ("JPEG", 1, (32, 24))
    write_frames(Path("out.jpg"), read_frames(found), found)
    with Image.open("out.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (32, 24))
        assert b"MPF" not in Path("out.jpg").read_bytes()


@pytest.mark.parametrize("name", ["x.tif", "deep.tif", "x.gif", "x.webp", "x.png"])
def test_reading_holds_no_frame_that_was_taken(name: str) -> None:
    if name == "deep.tif":
        tifffile.imwrite(name, np.stack([DEEP] * 50), photometric="rgb")
    else:
        frames = [Image.fromarray(np.roll(RGB, k, 0)) for k in range(50)]
        frames[0].save(name, save_all=True, append_images=frames[1:], duration=20)
    alive: list[weakref.ref[NDArray]] = []
    for frame in read_frames(scan(Path(name))):
        alive.append(weakref.ref(frame.pixels))
        assert sum(one() is not None for one in alive) <= 2  # this one, and the loop variable's last
    assert len(alive) == 50


# names


def test_output_suffix() -> None:
    assert [output_suffix(suffix) for suffix in (".JPG", ".Tiff", ".avif")] == [".JPG", ".Tiff", ".avif"]
    assert {output_suffix(suffix) for suffix in (".pgm", ".jp2", ".xyz", "")} == {".png"}
    assert [output_suffix(".JPG", form) for form in FORMS] == [".png", ".jpg", ".webp", ".tif"]
    assert all(f".{form}" in FORMATS for form in FORMS)


@pytest.mark.parametrize(
    ("fields", "target", "words"),
    [
        ({"form": "GIF", "count": 12}, "x.jpg", "source.png: 12 frames do not fit into one .jpg"),
        ({"form": "TIFF", "count": 3}, "x.png", "source.png: 3 pages do not fit into one .png; use tif"),
        ({"size": (20, 70_000)}, "x.jpg", "source.png: 70000 pixels a side are too many for JPEG"),
        ({}, "x.psd", "x.psd: no image format to write has the ending '.psd'"),
        ({}, "x", "x: no image format to write has the ending ''"),
    ],
)
def test_what_a_format_cannot_hold_is_known_before_work(fields: dict[str, Any], target: str, words: str) -> None:
    found = scan_of(**fields)
    with pytest.raises(UserError, match=words):
        check_frames(found, Path(target))
    with pytest.raises(UserError, match=words):
        write_frames(Path(target), iter([]), found)
    assert not Path(target).exists()


def test_what_a_format_can_hold() -> None:
    for target in ("x.tif", "x.WEBP"):
        check_frames(scan_of(12, form="GIF"), Path(target))
    check_frames(scan_of(3, form="TIFF"), Path("x.TIFF"))
    check_frames(scan_of(1, form="TIFF"), Path("x.jpg"))
    check_frames(scan_of(size=(20, 70_000)), Path("x.png"))


# writing, whole or not at all


@pytest.mark.parametrize("name", ["x.png", "deep/er/x.PNG", "x.bmp", "x.tif"])
def test_write_image_round_trip(name: str) -> None:
    write_image(Path(name), RGB)
    assert np.array_equal(read_image(Path(name)), RGB)
    assert [path.name for path in Path(name).parent.iterdir()] == [Path(name).name]


@pytest.mark.parametrize("ending", ["png", "tif", "gif", "webp", "avif"])
def test_nothing_is_left_when_the_frames_break_off(ending: str) -> None:
    path = Path(f"x.{ending}")
    path.write_bytes(b"old")

    def broken() -> Iterator[Frame]:
        yield Frame(RGB, None)
        yield Frame(RGB, None)
        raise RuntimeError("no more colours")

    with pytest.raises(RuntimeError, match="no more colours"):
        write_frames(path, broken(), scan_of(4, durations=(50,) * 4))
    for given in (0, 1, 3):
        with pytest.raises(UserError, match=r"got \d of the 2 frames of source.png"):
            write_frames(path, [Frame(RGB, None)] * given, scan_of(2))
    if ending != "tif":  # of which pages may differ
        with pytest.raises(UserError, match=r"^source.png: its frames differ in size"):
            write_frames(path, [Frame(RGB, None), Frame(RGB[:9], None)], scan_of(2))
    assert path.read_bytes() == b"old"
    assert list(Path().iterdir()) == [path]


@pytest.mark.parametrize(
    ("ending", "count"),
    [("jpg", 1), ("webp", 1), ("png", 3), ("tif", 3), ("gif", 3), ("webp", 3)],
)
def test_a_full_disk_names_the_file_and_leaves_nothing(ending: str, count: int) -> None:
    resource = pytest.importorskip("resource")
    frame = Frame(np.random.default_rng(0).integers(0, 256, (100, 100, 3)).astype(np.uint8), None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))  # what writing says differs from ENOSPC alone
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            write_frames(Path(f"x.{ending}"), [frame] * count, scan_of(count, durations=(50,) * count))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.filename == f"x.{ending}"
    assert list(Path().iterdir()) == []


def test_a_place_that_cannot_be_written_to_is_named() -> None:
    Path("taken").write_text("a file")
    Path("x.png").mkdir()
    for name in ("taken/x.png", "x.png"):
        with pytest.raises(OSError, match=name) as raised:
            write_frames(Path(name), [Frame(RGB, None)], scan_of())
        assert raised.value.filename == name
    assert sorted(path.name for path in Path().iterdir()) == ["taken", "x.png"]
