"""Frames -> encoded images in one of the formats that can be written, with metadata.

Frames are taken one at a time, so that a document of 500 pages is never whole in memory. Pillow alone would
write 8 bits per channel and hold all frames. Therefore libpng and tifffile write PNG and TIFF, and GIF, WebP
and AVIF get their frames one by one.
"""

import io
import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import chain, count, islice, repeat
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import GifImagePlugin, Image
from PIL.PngImagePlugin import putchunk
from tifffile import TiffWriter

from config import UserError
from imaging.decoders import PNG_START, png_chunks
from imaging.metadata import Notes, Scan, append_directories, png_notes, save_options, tiff_tags
from imaging.pixels import Depth, Frame, flatten, to_8_bits

MAX_SIDE = {"JPEG": 65_500, "WEBP": 16_383, "GIF": 65_535}  # px
PALETTE_PIXELS = 2**22  # of a frame, by which its GIF palette is chosen; Pillow copies them three times
QUALITY = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}


def write(path: Path, form: str, frames: Iterable[Frame], scan: Scan) -> None:
    """Write frames and the metadata of their input in a format, by Pillow's name of it.

    Raises UserError where the format cannot hold a frame, or their number is not that of the scan.
    """
    checked = _checked(frames, form, scan)
    scan = replace(scan, durations=scan.durations or (0.0,) * scan.count)
    writers = {"PNG": _write_png, "GIF": _write_gif, "TIFF": _write_tiff}
    writers.get(form, partial(_write_by_pillow, form=form))(path, checked, scan)
    next(checked, None)  # where there is one more, it is refused


def _checked(frames: Iterable[Frame], form: str, scan: Scan) -> Iterator[Frame]:
    """Yield frames; each is checked when a writer asks for it, and so is their number."""
    number, kind = 0, None
    for frame in frames:
        number += 1
        if number > scan.count:
            break
        check_side(max(frame.pixels.shape), form, scan)
        kind = kind or (frame.pixels.shape, frame.pixels.dtype)
        if kind != (frame.pixels.shape, frame.pixels.dtype) and form != "TIFF":
            raise UserError(f"{scan.path}: its frames differ in size, and only the pages of a tif may")
        yield frame
        del frame  # before the next one is made
    if number != scan.count:
        raise UserError(f"got {number} of the {scan.count} frames of {scan.path}")


def check_side(side: int, form: str, scan: Scan) -> None:
    """Raise UserError where a side of a picture, in px, is too long for a format."""
    if side > MAX_SIDE.get(form, math.inf):
        raise UserError(f"{scan.path}: {side} pixels a side are too many for {form}; use png or tif")


def _layers(frame: Frame, always: bool = False) -> Depth:
    """Return (H, W, 4) where there is transparency, or always; else (H, W, 3)."""
    if frame.alpha is None and not always:
        return frame.pixels.copy()  # libpng wants the usual strides, which 1 x 1 px can lack
    layers = np.empty((*frame.pixels.shape[:2], 4), frame.pixels.dtype)
    layers[..., :3] = frame.pixels
    layers[..., 3] = np.iinfo(layers.dtype).max if frame.alpha is None else frame.alpha
    return layers


def _write_png(path: Path, frames: Iterator[Frame], scan: Scan) -> None:
    """Encode each frame by libpng, and join the parts."""
    serials, moving = count(), scan.count > 1
    with path.open("wb") as file:
        file.write(PNG_START)
        for index, duration in enumerate(scan.durations):
            picture = io.BytesIO(imagecodecs.png_encode(_layers(next(frames), always=moving), level=1))
            ((_, header),) = png_chunks(picture, (b"IHDR",))
            if index == 0:
                animation = [(b"acTL", struct.pack(">II", scan.count, scan.loop))] * moving
                for chunk in [(b"IHDR", header), *png_notes(scan.notes), *animation]:
                    putchunk(file, *chunk)
            if moving:
                place = struct.pack(">I8sII", next(serials), header[:8], 0, 0)  # all of the canvas
                putchunk(file, b"fcTL", place, struct.pack(">HHBB", *_ratio(duration), 0, 0))
            for _, contents in png_chunks(picture, (b"IDAT",)):
                if index == 0:
                    putchunk(file, b"IDAT", contents)
                else:
                    putchunk(file, b"fdAT", struct.pack(">I", next(serials)), contents)
        putchunk(file, b"IEND")


def _ratio(ms: float) -> tuple[int, int]:
    """Return a duration as a fraction of seconds whose parts have 16 bits."""
    seconds = min(ms / 1000, 65535.0)
    return Fraction(seconds).limit_denominator(int(65535 / max(1, seconds))).as_integer_ratio()


def _write_gif(path: Path, frames: Iterator[Frame], scan: Scan) -> None:
    """Write whole frames of 256 colours each; Pillow would write differences, and hold all frames for it."""
    with path.open("wb") as file:
        for index, duration in enumerate(scan.durations):
            image = _to_palette(next(frames))
            if index == 0:
                file.write(_gif_head(image.size, scan))
            options = {"disposal": 2, "include_color_table": True}  # 2: the next frame starts from nothing
            options["duration"] = min(10 * round(duration / 10), 655_350)
            options["transparency"] = image.info.get("transparency")
            file.writelines(GifImagePlugin.getdata(image, (0, 0), **options))
        file.write(b";")


def _gif_head(size: tuple[int, int], scan: Scan) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", *size, 0x70, 0, 0)  # 8 bits per colour, no common palette
    if scan.count > 1 and scan.loop != 1:
        repetitions = min(max(scan.loop - 1, 0), 65535)
        head += b"!\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<HB", repetitions, 0)
    if comment := scan.notes.comment:
        parts = (comment[i : i + 255] for i in range(0, len(comment), 255))
        head += b"!\xfe" + b"".join(bytes([len(part)]) + part for part in parts) + b"\0"
    return head


def _to_palette(frame: Frame) -> Image.Image:
    """Return a picture of at most 256 colours; what is less than half opaque is transparent."""
    pixels, most = to_8_bits(frame.pixels), 256 if frame.alpha is None else 255
    sparse = max(1, math.isqrt(pixels[..., 0].size // PALETTE_PIXELS))
    colours = Image.fromarray(pixels[::sparse, ::sparse]).quantize(most)
    image = Image.fromarray(pixels)
    if sparse == 1 and image.getcolors(most):
        image = colours  # exact, which dithering is not
    else:
        image = image.quantize(palette=colours, dither=Image.Dither.FLOYDSTEINBERG)
    image.putpalette((image.getpalette() + [0] * 768)[:768])
    if frame.alpha is not None:
        image.paste(255, mask=Image.fromarray(to_8_bits(frame.alpha) < 128))
        image.info["transparency"] = 255
    return image


def _write_tiff(path: Path, frames: Iterator[Frame], scan: Scan) -> None:
    options = {"compression": "zlib", "compressionargs": {"level": 1}, "predictor": True}
    options |= {"photometric": "rgb", "metadata": None, "software": False}
    pages = chain([scan.notes], scan.others, repeat(Notes(dpi=scan.notes.dpi)))
    big = 8 * scan.count * scan.pixels > 2**32  # bytes of RGBA with 16 bits
    with TiffWriter(path, bigtiff=big, byteorder="<") as writer:
        for index, notes in enumerate(islice(pages, scan.count)):
            layers = _layers(next(frames))
            options |= {"extratags": tiff_tags(notes, first=index == 0)}
            options |= {"extrasamples": ["UNASSALPHA"] * (layers.shape[2] == 4)}
            options |= {"resolution": notes.dpi, "resolutionunit": "INCH" if notes.dpi else None}
            writer.write(layers, **options)
            del layers  # before the next frame is made
    append_directories(path, scan.notes)


def _write_by_pillow(path: Path, frames: Iterator[Frame], scan: Scan, form: str) -> None:
    options = QUALITY.get(form, {}) | save_options(scan.notes, form)
    if scan.count == 1:
        encoded = io.BytesIO()  # when Pillow writes to a file itself, it takes a full disk for success
        _to_image(next(frames), form).save(encoded, form, **options)
        path.write_bytes(encoded.getvalue())
    else:
        options |= {"duration": [round(ms) for ms in scan.durations], "loop": scan.loop}
        _Film(frames, scan.count).save(path, form, save_all=True, **options)


def _to_image(frame: Frame, form: str) -> Image.Image:
    """Return 8 bits per channel, with transparency where a format has it."""
    if frame.alpha is None or form not in ("WEBP", "AVIF"):
        return Image.fromarray(flatten(frame))
    image = Image.fromarray(to_8_bits(frame.pixels))
    image.putalpha(Image.fromarray(to_8_bits(frame.alpha)))
    return image


class _Film(Image.Image):
    """An animation whose frames are made when one of Pillow's writers asks for them."""

    def __init__(self, frames: Iterator[Frame], count: int) -> None:
        super().__init__()
        self.n_frames, self.is_animated = count, True
        self._frames, self._made = frames, 0
        self.seek(0)

    def seek(self, frame: int) -> None:
        """Go on to the next frame; in the end, Pillow also asks for the first again."""
        if frame >= self.n_frames:
            raise EOFError
        if frame == self._made:
            self._made += 1
            image = _to_image(next(self._frames), "WEBP").convert("RGBA")  # AVIF wants all frames of one mode
            self.im, self._mode, self._size = image.im, image.mode, image.size
