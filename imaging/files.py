"""Image files <-> frames: one way to read for training, rendering and colouring, and one to write.

    pixels = read_image(Path("photo.jpg"))                     # the first frame, 8 bits, on white

    found = scan(Path("film.gif"))                             # UserError where it is no image
    frames = (colour(frame) for frame in read_frames(found))   # one at a time, in the file's own depth
    write_frames(Path("out/film.gif"), frames, found)          # whole, or not at all

Reading applies the EXIF orientation and the ICC profile, and brings every mode (palette, CMYK, 1 bit, float)
to sRGB with 8 or 16 bits per channel. Instead of a file, `read_image` and `scan` take its bytes as `content`;
the path then only says what to call it. A UserError names the file.
"""

import io
import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from tifffile import TiffFile, TiffPage

from config import CACHE, UserError
from imaging import decoders
from imaging.decoders import guarded
from imaging.encoders import check_side, write
from imaging.metadata import Scan, info_of, read_notes, read_tiff_notes
from imaging.pixels import Array, Frame, check_size, flatten
from runtime.atomic import replacing
from runtime.run_folder import CLASSIFIER_RECORD, LOG, RECORD

FORMS = ("png", "jpg", "webp", "tif")  # what a user can ask for
FORMATS = {  # endings that can be written, and Pillow's names of their formats
    **{".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".apng": "PNG"},
    **{".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".gif": "GIF", ".bmp": "BMP", ".ppm": "PPM"},
    ".avif": "AVIF",
}
EXTENSIONS = frozenset([  # that are found in folders
    *FORMATS, ".mpo", ".pbm", ".pgm", ".pnm", ".tga", ".pcx", ".dib", ".jp2", ".j2k", ".j2c", ".jpf", ".jpx",
    ".heic", ".heif", ".hif",
])  # fmt: skip
MOVING = ("GIF", "PNG", "WEBP", "AVIF")  # formats that hold an animation; a TIFF holds pages
RESULTS = ".colorized"  # file in a folder of results of colorize.py
SERVICE = frozenset([  # what disks and desktops put beside images, in lower case
    "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found",
    "__macosx", "thumbs", "thumbs.db", "desktop.ini",
])  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What a folder holds, at any depth."""

    folder: Path
    images: list[Path] = field(default_factory=list)  # by their endings
    others: list[Path] = field(default_factory=list)  # files that are not taken
    closed: list[OSError] = field(default_factory=list)  # of folders that cannot be read; they name them
    notes: list[str] = field(default_factory=list)  # folders that were not entered, a sentence each

    @property
    def left_out(self) -> list[str]:
        """What is not taken, a sentence each; of closed folders nothing."""
        return [*self.notes, *count_endings(self.folder, self.others)]

    def require(self) -> None:
        """Raise UserError where there is no image, unless a folder could not be read."""
        if not self.images and not self.closed:
            told = "; ".join([f"looked for {' '.join(sorted(EXTENSIONS))}", *self.left_out])
            raise UserError(f"no image in {self.folder}: {told}")


def count_endings(where: Path, others: Iterable[Path]) -> list[str]:
    """Return a sentence that counts by ending what is not taken of a folder or archive; [] where there is nothing."""
    endings = Counter(path.suffix.lower() or "without ending" for path in others)
    counts = ", ".join(f"{number} {ending}" for ending, number in sorted(endings.items()))
    return [f"left out: files in {where} that are not read: {counts}"] if counts else []


def is_shown(name: str) -> bool:
    """Tell whether a file or folder of this name is the user's: not hidden, and not a disk's or a desktop's own."""
    return not name.startswith(".") and name.casefold() not in SERVICE


def search(folder: Path, enter: Callable[[Path], bool] | None = None, products: bool = False) -> Found:
    """Return what a folder holds, sorted; without what `is_shown` knows as none of the user's.

    Links to folders are followed, but no folder is entered twice.

    Args:
        enter: which of the folders below to search.
        products: also search runs, results of colorize.py and the cache of this project, where they lie below.

    Raises UserError where there is no such folder, and OSError where it cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: give the folder that holds the images")
    found, seen = Found(folder), {}  # (device, number) -> folder
    tops = [folder]  # grows by links, which come after all that needs none

    def refused(error: OSError) -> None:
        if error.filename == str(folder):
            raise error
        found.closed.append(error)

    for top in tops:
        for parent, folders, names in os.walk(top, onerror=refused):
            status = os.stat(parent)
            first = seen.setdefault((status.st_dev, status.st_ino), parent)
            why = "" if first == parent else f"it is {Path(first)}, which is searched already"
            if parent == str(top) != str(folder) and _leads_back(top):
                why = why or "it leads back to a folder above it"
            elif parent != str(folder) and not products:
                why = why or _own_product(parent, names)
            if why:
                found.notes.append(f"left out: {Path(parent)}, as {why}")
                folders.clear()
                continue
            below = (name for name in sorted(folders) if is_shown(name))
            folders[:] = [name for name in below if enter is None or enter(Path(parent, name))]
            tops += [Path(parent, name) for name in folders if os.path.islink(Path(parent, name))]
            for name in filter(is_shown, names):
                known = Path(name).suffix.lower() in EXTENSIONS
                (found.images if known else found.others).append(Path(parent, name))
    for paths in (found.images, found.others):
        paths.sort(key=Path.as_posix)
    return found


def _leads_back(link: Path) -> bool:
    """Tell whether a link leads to a folder in which it lies."""
    return Path(os.path.realpath(link.parent)).is_relative_to(os.path.realpath(link))


def _own_product(folder: str, names: list[str]) -> str:
    """Return what a folder with files of these names is of this project's, or nothing."""
    if LOG in names and not {RECORD, CLASSIFIER_RECORD}.isdisjoint(names):
        return "it is a run of this project"
    if RESULTS in names:
        return f"it holds results of colorize.py (to take them, name it, or delete {RESULTS} in it)"
    return "it is the cache of this project" if CACHE.is_dir() and os.path.samefile(folder, CACHE) else ""


def find_images(folder: Path) -> list[Path]:
    """Return all image files below a folder, sorted, as `search` does.

    Raises UserError where there is no such folder or no image in it, and OSError where one cannot be read.
    """
    found = search(folder)
    found.require()
    if found.closed:
        raise found.closed[0]
    return found.images


@contextmanager
def _opened(path: Path, content: bytes | None) -> Iterator[Image.Image | TiffFile]:
    """Open a file, or its bytes: a TIFF by tifffile, all else by Pillow; UserErrors name it."""
    with decoders.named(path), _open_bytes(path, content) as file:
        with guarded():
            is_tiff = file.read(4) in decoders.TIFF_STARTS
            file.seek(0)
            tiff = TiffFile(file) if is_tiff else None
        with tiff or decoders.open_image(file) as image:
            if not is_tiff:
                check_size(*image.size)
            yield image


def _open_bytes(path: Path, content: bytes | None) -> BinaryIO:
    if content is not None:
        return io.BytesIO(content)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would be to wait for ever
            raise UserError("not an image that can be read")
        return path.open("rb")
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise UserError("no such file" if missing else str(error.strerror)) from error


def read_image(path: Path, content: bytes | None = None, least: int = 0) -> Array:
    """Read the first frame or page as sRGB (H, W, 3) uint8, transparency laid over white.

    Args:
        content: of the file, where it has been read.
        least: px, the short side that is needed; a JPEG at least four times as large is read at 1/2, 1/4 or 1/8
            of its size, in a fraction of the time. 0: as it is.

    Raises UserError where it is missing, truncated, damaged, too large to be safe, or not an image.
    """
    with closing(read_frames(Scan(path, content=content), least)) as frames:
        return flatten(next(frames))


def read_frames(scan: Scan, least: int = 0) -> Iterator[Frame]:
    """Yield a file's frames or pages, one at a time; `least` as in read_image.

    Raises UserError where one is damaged or truncated, or a kind of image that cannot be read.
    """
    with _opened(scan.path, scan.content) as image:
        if isinstance(image, TiffFile):
            yield from _pages(scan, decoders.tiff_pages(image)[: scan.count])
        elif isinstance(image, decoders.Png) and image.is_deep:
            yield decoders.read_deep_png(image)
        else:
            if least and isinstance(image, JpegImageFile):
                with guarded():
                    image.draft(None, (2 * least, 2 * least))  # no smaller, or the result differs visibly
            yield from map(decoders.to_frame, decoders.walk(image, scan.count))


def _pages(scan: Scan, pages: list[TiffPage]) -> Iterator[Frame]:
    """Yield the pages of a TIFF: those that Pillow cannot read, or would cut to 8 bits, by tifffile."""
    with _open_bytes(scan.path, scan.content) as file:  # each library moves in its own
        image = None
        for page in pages:
            frame = decoders.read_page(page)
            if frame is None:
                image = image or decoders.open_image(file)
                with guarded():
                    image.seek(page.index)
                check_size(*image.size)
                frame = decoders.to_frame(image)
            yield frame
            del frame  # before the next one is made


def scan(path: Path, content: bytes | None = None, most: int | None = None) -> Scan:
    """Look into a file; only an animation is decoded, as its durations are not known otherwise.

    Args:
        most: pixels that a file may have, all its frames together; known before any is decoded.

    Raises UserError where it is missing, unreadable, too large to be safe, or not an image.
    """
    with _opened(path, content) as image:
        found = _scan_tiff(path, image) if isinstance(image, TiffFile) else _scan_image(path, image, most)
    _limit(math.prod(found.size) * found.count, most)
    return replace(found, content=content)


def _limit(pixels: int, most: int | None) -> None:
    if most is not None and pixels > most:
        raise UserError(f"the picture has {pixels / 1e6:.0f} megapixels, and {most / 1e6:.0f} are taken here")


def _scan_image(path: Path, image: Image.Image, most: int | None) -> Scan:
    # a phone's MPO: its other pictures are previews, or what the left eye sees
    notes, form = read_notes(image), "JPEG" if image.format == "MPO" else str(image.format)
    with guarded():
        count = image.n_frames - decoders.hidden(image) if form in MOVING else 1
    if count == 1:
        return Scan(path, form, 1, image.size, notes=notes)
    _limit(math.prod(image.size) * count, most)
    loop = info_of(image, "loop", int, 0)
    if form == "GIF":
        loop = loop + 1 if loop else int("loop" not in image.info)  # a GIF counts repetitions
    pictures = decoders.walk(image, count)
    durations = tuple(float(info_of(picture, "duration", int | float, 0)) for picture in pictures)
    return Scan(path, form, count, image.size, durations, loop, notes)


def _scan_tiff(path: Path, tiff: TiffFile) -> Scan:
    pages = decoders.tiff_pages(tiff)
    decoders.check_last_page(tiff)
    size = max(((page.imagewidth, page.imagelength) for page in pages), key=math.prod)
    notes, *others = map(read_tiff_notes, pages)
    return Scan(path, "TIFF", len(pages), size, notes=notes, others=tuple(others))


def write_image(path: Path, image: Array) -> None:
    """Write (H, W, 3) uint8 in the format of the name's ending, complete or not at all."""
    write_frames(path, [Frame(image, None)], Scan(path, size=image.shape[1::-1]))


def output_suffix(suffix: str, form: str | None = None) -> str:
    """Return a result's ending: as asked by one of FORMS, else the input's if it can be written, or .png."""
    return f".{form}" if form else suffix if suffix.lower() in FORMATS else ".png"


def check_frames(scan: Scan, path: Path) -> None:
    """Raise UserError where the format of a name's ending cannot hold what a file holds."""
    Image.init()
    form = FORMATS.get(path.suffix.lower())
    if form not in Image.SAVE:
        raise UserError(f"{path}: no image format to write has the ending {path.suffix!r}")
    if scan.count > 1 and form != "TIFF" and (scan.form == "TIFF" or form not in MOVING):
        many, room = ("pages", "tif") if scan.form == "TIFF" else ("frames", "gif, png, webp or tif")
        raise UserError(f"{scan.path}: {scan.count} {many} do not fit into one {path.suffix}; use {room}")
    check_side(max(scan.size), form, scan)


def write_frames(path: Path, frames: Iterable[Frame], scan: Scan) -> None:
    """Write frames in the format of the name's ending, complete or not at all, with the notes of a scan.

    Frames are taken one by one. What a format cannot hold is rounded (16 bits to 8), laid over white
    (transparency) or left out (notes).

    Raises:
        UserError: the format cannot hold the frames, or their number is not the scan's.
        OSError: the disk is full, or the place cannot be written to; names the file.
    """
    check_frames(scan, path)
    with replacing(path) as temporary:
        write(temporary, FORMATS[path.suffix.lower()], frames, scan)
