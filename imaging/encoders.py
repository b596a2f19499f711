"""Frames and notes as bytes of one format or another; `files.py` decides which, and where they go.

Frames are taken one at a time: a document of 500 pages is never in memory. Pillow alone would write 8 bits
per channel, and hold all frames; so libpng and tifffile write PNG and TIFF, and Pillow is fed one by one.
"""

import io
import math
import struct
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import partial
from itertools import chain, count, repeat
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

LONGEST = {"JPEG": 65_500, "WEBP": 16_383, "GIF": 65_535}  # px a side
WITH_ALPHA = ("WEBP", "AVIF")  # of the formats that Pillow writes here
COUNTED = 2**22  # px of a picture that a GIF's colours are chosen by; all of them would be held three times
QUALITY = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}


def write(path: Path, form: str, frames: Iterable[Frame], scan: Scan) -> int:
    """Write frames in a format, by Pillow's name of it, with the notes of a scan; returns their number."""
    frames = map(partial(_checked, form, scan), frames)  # a generator would hold each until the next
    if form == "PNG":
        return _write_png(path, frames, scan)
    if form == "GIF":
        return _write_gif(path, frames, scan)
    if form == "TIFF":
        return _write_tiff(path, frames, scan)
    return _write_by_pillow(path, form, frames, scan)


def check_side(side: int, form: str, scan: Scan) -> None:
    """Raise UserError where a picture is too long for a format."""
    if side > LONGEST.get(form, math.inf):
        raise UserError(f"{scan.path}: {side} pixels a side are too many for {form}; use png or tif")


def _checked(form: str, scan: Scan, frame: Frame) -> Frame:
    check_side(max(frame.pixels.shape), form, scan)
    return frame


def _layers(frame: Frame, always: bool = False) -> Depth:
    """Return (H, W, 4) where there is transparency, or always; else (H, W, 3)."""
    if frame.alpha is None and not always:
        return frame.pixels.copy()  # libpng wants the usual strides, which 1 x 1 px can lack
    layers = np.empty((*frame.pixels.shape[:2], 4), frame.pixels.dtype)
    layers[..., :3] = frame.pixels
    layers[..., 3] = np.iinfo(layers.dtype).max if frame.alpha is None else frame.alpha
    return layers


def _check_same(one: object, other: object, scan: Scan) -> None:
    if one != other:
        raise UserError(f"{scan.path}: its frames differ in size, and only the pages of a tif may")


def _delays(scan: Scan) -> Iterator[float]:
    """Yield the duration of each frame, in ms."""
    return chain(scan.durations, repeat(0.0))


def _write_png(path: Path, frames: Iterable[Frame], scan: Scan) -> int:
    """Encode each frame by libpng, and join the parts."""
    moving, number, serials, delays, start = scan.count > 1, 0, count(), _delays(scan), b""
    with path.open("wb") as file:
        file.write(PNG_START)
        for frame in frames:
            picture = io.BytesIO(imagecodecs.png_encode(_layers(frame, always=moving), level=1))
            del frame  # before the next one is made
            ((_, header),) = png_chunks(picture, (b"IHDR",))
            if number == 0:
                start = header
                for chunk in _png_head(header, scan):
                    putchunk(file, *chunk)
            _check_same(header, start, scan)
            if moving:
                place = struct.pack(">I8sII", next(serials), header[:8], 0, 0)  # all of the canvas
                putchunk(file, b"fcTL", place, struct.pack(">HHBB", *_ratio(next(delays)), 0, 0))
            for _, contents in png_chunks(picture, (b"IDAT",)):
                if number == 0:
                    putchunk(file, b"IDAT", contents)
                else:
                    putchunk(file, b"fdAT", struct.pack(">I", next(serials)), contents)
            number += 1
        putchunk(file, b"IEND")
    return number


def _png_head(header: bytes, scan: Scan) -> list[tuple[bytes, bytes]]:
    chunks = [(b"IHDR", header), *png_notes(scan.notes)]
    return [*chunks, (b"acTL", struct.pack(">II", scan.count, scan.loop))] if scan.count > 1 else chunks


def _ratio(ms: float) -> tuple[int, int]:
    """Return a duration as a fraction of seconds whose parts have 16 bits."""
    seconds = min(ms / 1000, 65535.0)
    return Fraction(seconds).limit_denominator(int(65535 / max(1, seconds))).as_integer_ratio()


def _write_gif(path: Path, frames: Iterable[Frame], scan: Scan) -> int:
    """Write whole frames of 256 colours each; Pillow would write what changes, and hold all frames for it."""
    number, delays, size = 0, _delays(scan), (0, 0)
    with path.open("wb") as file:
        for frame in frames:
            image = _to_palette(frame)
            del frame  # before the next one is made
            if number == 0:
                size = image.size
                file.write(_gif_head(size, scan))
            _check_same(image.size, size, scan)
            options = {"disposal": 2, "include_color_table": True}  # 2: the next frame starts from nothing
            options["duration"] = min(10 * round(next(delays) / 10), 655_350)
            options["transparency"] = image.info.get("transparency")
            file.writelines(GifImagePlugin.getdata(image, (0, 0), **options))
            number += 1
        file.write(b";")
    return number


def _gif_head(size: tuple[int, int], scan: Scan) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", *size, 0x70, 0, 0)  # 8 bits per colour, no common palette
    if scan.count > 1 and scan.loop != 1:
        repetitions = min(max(scan.loop - 1, 0), 65535)
        head += b"!\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<HB", repetitions, 0)
    comment = scan.notes.comment
    if comment:
        parts = (comment[i : i + 255] for i in range(0, len(comment), 255))
        head += b"!\xfe" + b"".join(bytes([len(part)]) + part for part in parts) + b"\0"
    return head


def _to_palette(frame: Frame) -> Image.Image:
    """Return a picture of at most 256 colours; what is less than half opaque is transparent."""
    pixels, most = to_8_bits(frame.pixels), 256 if frame.alpha is None else 255
    sparse = max(1, math.isqrt(pixels[..., 0].size // COUNTED))
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


def _write_tiff(path: Path, frames: Iterable[Frame], scan: Scan) -> int:
    number = 0
    options = {"compression": "zlib", "compressionargs": {"level": 1}, "predictor": True}
    options |= {"photometric": "rgb", "metadata": None, "software": False}
    pages = chain([scan.notes], scan.others, repeat(Notes(dpi=scan.notes.dpi)))
    big = 8 * scan.count * scan.pixels > 2**32  # bytes of RGBA with 16 bits
    with TiffWriter(path, bigtiff=big, byteorder="<") as writer:
        for frame in frames:
            alpha, notes = [] if frame.alpha is None else ["UNASSALPHA"], next(pages)
            options |= {"extratags": tiff_tags(notes, first=not number), "extrasamples": alpha}
            options |= {"resolution": notes.dpi, "resolutionunit": "INCH" if notes.dpi else None}
            writer.write(_layers(frame), **options)
            del frame  # before the next one is made
            number += 1
    append_directories(path, scan.notes)
    return number


def _write_by_pillow(path: Path, form: str, frames: Iterable[Frame], scan: Scan) -> int:
    options = QUALITY.get(form, {}) | save_options(scan.notes, form)
    if scan.count == 1:
        (image,) = (_to_image(frame, form) for frame in frames)
        encoded = io.BytesIO()  # into a file Pillow would write itself, and take a full disk for success
        image.save(encoded, form, **options)
        path.write_bytes(encoded.getvalue())
        return 1
    frames, delays = iter(frames), _delays(scan)
    film = _Film(frames, scan)
    durations = [round(next(delays)) for _ in range(scan.count)]
    film.save(path, form, save_all=True, duration=durations, loop=scan.loop, **options)
    return scan.count + sum(1 for _ in frames)


def _to_image(frame: Frame, form: str) -> Image.Image:
    """Return 8 bits per channel, with transparency where a format has it."""
    if frame.alpha is None or form not in WITH_ALPHA:
        return Image.fromarray(flatten(frame))
    image = Image.fromarray(to_8_bits(frame.pixels))
    image.putalpha(Image.fromarray(to_8_bits(frame.alpha)))
    return image


class _Film(Image.Image):
    """An animation whose frames are made when one of Pillow's writers asks for them."""

    def __init__(self, frames: Iterator[Frame], scan: Scan) -> None:
        super().__init__()
        self.n_frames, self.is_animated = scan.count, True
        self._frames, self._scan, self._made = frames, scan, 0
        self.seek(0)

    def seek(self, frame: int) -> None:
        """Go on to the next frame; Pillow also asks for the first again, when it has done."""
        if frame >= self.n_frames:
            raise EOFError
        if frame < self._made:
            return
        made = next(self._frames, None)
        if made is None:
            raise UserError(f"got {self._made} of the {self.n_frames} frames of {self._scan.path}")
        image = _to_image(made, "WEBP").convert("RGBA")  # AVIF wants all frames of one mode
        if self._made:
            _check_same(image.size, self.size, self._scan)
        self.im, self._mode, self._size = image.im, image.mode, image.size
        self._made += 1
