"""pipeline.py: every file ends in order, alone in its failure, coloured, with its depth, frames and alpha."""

import json
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from helpers import CPU, StandInRunner, chroma, frame_of, frames_of, gray, save_picture, write_model
from numpy.typing import NDArray
from PIL import Image
from skimage.color import rgb2lab

from config import UserError
from dataset import scenes
from imaging import encoders
from imaging.files import scan
from imaging.pixels import Frame
from inference import pipeline
from inference.pipeline import Job, Pipeline
from inference.runner import Pixels, Runner
from inference.tasks import plan_tasks

PLAIN: dict[str, bool] = {}
KEEP, AGAIN = {"keep_coloured": True}, {"overwrite": True}


@pytest.fixture(scope="module")
def photo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "photo.ts")


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """A user who colours good files sees no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def run(runner: Runner, *inputs: str, options: dict[str, bool] = PLAIN, jobs: int = 2, **how: Any) -> list[Job]:
    """Colourise files into out/; returns the jobs."""
    tasks = plan_tasks([Path(name) for name in inputs], Path("out"), **how)
    finished = list(Pipeline(runner, jobs, **options).run(tasks))
    assert [job.task for job in finished] == tasks  # always in order
    assert not [path for path in Path("out").rglob("*") if path.name.endswith(".tmp")]
    return finished


def done(runner: Runner, *inputs: str, **how: Any) -> list[Job]:
    """Colourise files that must all succeed."""
    finished = run(runner, *inputs, **how)
    assert {job.status for job in finished} == {"done"}, [job.reason for job in finished]
    return finished


def save_film(name: str, *frames: NDArray) -> None:
    first, *rest = map(Image.fromarray, frames)
    first.save(name, save_all=True, append_images=rest, duration=50, lossless=True)


def save_pages(name: str, *pages: NDArray) -> None:
    with tifffile.TiffWriter(name) as writer:
        for page in pages:
            writer.write(page, photometric="rgb" if page.ndim == 3 else "minisblack")


def gray_rgb(*arguments: Any, **options: Any) -> NDArray:
    return gray(*arguments, **options)[..., None].repeat(3, 2)


def lightness(pixels: Pixels) -> NDArray:
    return rgb2lab(pixels / np.iinfo(pixels.dtype).max)[..., 0]


def scene(index: int) -> NDArray:
    return np.ascontiguousarray(scenes.draw(index, 128)[0])


def test_every_file_ends_in_order_with_a_record() -> None:
    for i in range(20):
        save_picture(f"p/{i:02d}.png", gray(i, 8 + i % 5, 9))
    save_picture("out/07.png", gray(0))
    Path("p/11.png").write_bytes(b"a text")
    save_picture("p/13.png", np.dstack([gray(1), gray(2), gray(3)]))
    jobs = run(StandInRunner(), "p", options=KEEP)
    for i, (job, record) in enumerate((job, job.record()) for job in jobs):
        status = {7: "skipped", 11: "failed", 13: "kept"}.get(i, "done")
        reason = {"reason": "p/11.png: not an image that can be read"} if i == 11 else {}
        assert json.loads(json.dumps(record)) == {
            "file": f"p/{i:02d}.png", "output": f"out/{i:02d}.png", "status": status, **reason,
            "frames": 0 if i in (7, 11) else 1, "seconds": round(job.seconds, 3),
        }  # fmt: skip
        assert not job.bug
    assert not Path("out/11.png").exists()
    assert list(Pipeline(StandInRunner(), 1).run([])) == []


def test_seconds_are_those_of_all_steps_and_a_batch_shares_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0]
    monkeypatch.setattr(pipeline, "monotonic", lambda: now[0])

    def slow(owner: Any, step: str) -> None:
        """Let a step last a second for each picture."""
        works = getattr(owner, step)

        def slowed(*arguments: Any) -> Any:
            now[0] += next((len(given) for given in arguments if isinstance(given, list)), 1)
            return works(*arguments)

        monkeypatch.setattr(owner, step, slowed)

    slow(StandInRunner, "run")
    for i in range(4):
        save_picture(f"p/{i}.png", gray(i))
    assert [job.seconds for job in done(StandInRunner(), "p", jobs=1)] == [1.0] * 4
    for step in ("scan", "read_frames", "write_frames"):
        slow(pipeline, step)
    (job,) = done(StandInRunner(), "p/0.png", jobs=1, options=AGAIN)
    assert job.seconds == 4.0


def test_what_exists_is_skipped_unless_it_is_to_be_overwritten() -> None:
    save_picture("a.png", gray(0))
    Path("b.png").write_bytes(b"no picture: it is not even opened")
    Path("out").mkdir()
    Path("out/b.png").write_bytes(b"older")
    runner = StandInRunner()
    assert [job.status for job in run(runner, "a.png", "b.png")] == ["done", "skipped"]
    assert [job.status for job in run(runner, "a.png", "b.png")] == ["skipped", "skipped"]
    assert Path("out/b.png").read_bytes() == b"older"
    assert [job.status for job in run(runner, "a.png", compare=True)] == ["done"]  # its sheet is missing
    assert [job.status for job in run(runner, "a.png", compare=True)] == ["skipped"]
    Path("out/a.png").write_bytes(b"older")
    done(runner, "a.png", options=AGAIN)
    assert np.array_equal(frame_of("out/a.png").pixels, runner.coloured(gray_rgb(0)))


def test_coloured_pictures_are_kept_byte_for_byte_unless_the_format_changes() -> None:
    save_picture("p/gray.jpg", gray(0))
    save_picture("p/scene.JPG", scene(1), quality=71, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")
    save_picture("p/scene.png", scene(2))
    runner = StandInRunner()
    assert [job.status for job in run(runner, "p", options=KEEP)] == ["done", "kept", "kept"]
    for name in ("scene.JPG", "scene.png"):
        assert Path("out", name).read_bytes() == Path("p", name).read_bytes()
    assert runner.sizes() == [1]
    (job,) = run(runner, "p/scene.png", options=KEEP, form="tif")
    assert job.status == "kept"
    assert np.array_equal(frame_of("out/scene.tif").pixels, scene(2))


def test_pages_are_kept_or_coloured_one_by_one() -> None:
    save_pages("x.tif", scene(0), gray(1), scene(1))
    runner = StandInRunner()
    (job,) = run(runner, "x.tif", options=KEEP)
    assert job.record()["frames"] == 3
    found = [frame.pixels for frame in frames_of("out/x.tif")]
    for ours, expected in zip(found, (scene(0), runner.coloured(gray_rgb(1)), scene(1)), strict=True):
        assert np.array_equal(ours, expected)
    assert runner.sizes() == [1]


@pytest.mark.parametrize(("name", "form"), [("x.png", "webp"), ("x.gif", None)])
def test_kept_pictures_keep_their_transparency(name: str, form: str | None) -> None:
    alpha = np.where(np.arange(128) < 40, 0, 255).astype(np.uint8) + np.zeros((128, 1), np.uint8)
    save_film(name, *[np.dstack([scene(i), alpha]) for i in range(2 if name == "x.gif" else 1)])
    (job,) = run(StandInRunner("sketch"), name, options=KEEP, form=form, compare=True)
    for frame in frames_of(job.task.output):
        assert np.array_equal(frame.alpha == 0, alpha == 0)
    sheet = frame_of(job.task.sheet).pixels.astype(int)
    on_paper = np.where(alpha[..., None] == 0, 255, scene(0)).astype(int)
    assert np.abs(sheet - np.concatenate([on_paper] * 2, 1)).mean() < 10  # of a palette, or lossy


def test_a_sheet_shows_input_and_result_and_stacks_wide_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    given = gray_rgb(0, dtype=np.uint16)  # (40, 56)
    save_picture("x.png", gray(0, dtype=np.uint16))
    for axis, wide in ((1, 56), (0, 55)):
        monkeypatch.setattr(pipeline, "WIDE", wide)
        (job,) = done(StandInRunner(), "x.png", compare=True, options=AGAIN)
        assert job.task.sheet == Path("out/x_compare.png")
        sheet = frame_of(job.task.sheet).pixels
        assert sheet.dtype == np.uint16
        assert np.array_equal(sheet, np.concatenate([given, StandInRunner.coloured(given)], axis))


def test_a_sheet_that_cannot_be_written_fails_the_file_before_its_result_is_there() -> None:
    save_picture("x.png", gray(0))
    Path("out/x_compare.png").mkdir(parents=True)
    (job,) = run(StandInRunner(), "x.png", compare=True)
    assert (job.status, job.bug) == ("failed", "")
    assert "x_compare.png" in job.reason
    assert not Path("out/x.png").exists()  # or the next call would skip it


def test_what_a_format_cannot_hold_is_known_before_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(encoders.MAX_SIDE, "JPEG", 100)  # of 65,500
    save_picture("x.jpg", gray(0, 90, 51))
    save_picture("y.jpg", gray(0, 2, 101))
    save_film("z.gif", gray(0), gray(1))
    runner = StandInRunner()
    sheet, wide = run(runner, "x.jpg", "y.jpg", compare=True)
    (film,) = run(runner, "z.gif", form="jpg")
    assert "102 pixels a side" in sheet.reason
    assert "101 pixels a side" in wide.reason
    assert film.reason.startswith("z.gif: 2 frames do not fit into one .jpg")
    assert runner.calls == []


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_the_depth_of_lightness_stays(name: str, photo_model: Path) -> None:
    save_picture(name, gray(0, 90, 130, np.uint16))
    done(Runner(photo_model, CPU), name)
    pixels = frame_of(f"out/{name}").pixels
    assert (pixels.dtype, pixels.shape) == (np.uint16, (90, 130, 3))
    assert chroma(pixels) > 5
    off = lightness(pixels) - lightness(gray_rgb(0, 90, 130, np.uint16))
    assert np.abs(off).max() < 0.02  # of 100


@pytest.mark.parametrize(("ending", "colours", "dtype"), [("png", 1, np.uint8), ("tif", 3, np.uint16)])
def test_transparency_stays_and_what_it_hides_has_no_effect(
    ending: str, colours: int, dtype: Any, photo_model: Path
) -> None:
    alpha = gray(7, dtype=dtype)
    alpha[:20, :30], alpha[30:, 40:] = 0, np.iinfo(dtype).max
    hidden = alpha == 0
    for hides in range(2):  # what lies under a transparent place: one thing, or another
        values = gray(0, dtype=dtype)[..., None].repeat(colours, 2)
        values[hidden] = gray(9, dtype=dtype)[hidden, None] if hides else 0
        save_picture(f"x{hides}.{ending}", np.dstack([values, alpha]))
    done(Runner(photo_model, CPU), f"x0.{ending}", f"x1.{ending}")
    one, other = frame_of(f"out/x0.{ending}"), frame_of(f"out/x1.{ending}")
    for frame in (one, other):
        assert frame.pixels.dtype == dtype
        assert np.array_equal(frame.alpha, alpha)
    assert np.array_equal(one.pixels[~hidden], other.pixels[~hidden])
    assert chroma(one.pixels) > 5


def test_a_transparent_drawing_and_one_on_paper_are_coloured_alike(tmp_path: Path) -> None:
    ink = np.where(gray(0) < 80, 255, 0).astype(np.uint8)  # black where there is ink
    save_picture("p/clear.png", np.dstack([np.zeros_like(ink), ink]))
    save_picture("p/paper.png", 255 - ink)
    done(Runner(write_model(tmp_path / "line.ts", "sketch", "rgb"), CPU), "p", compare=True)
    clear, paper = frame_of("out/clear.png"), frame_of("out/paper.png")
    assert clear.alpha is None
    assert np.array_equal(clear.pixels, paper.pixels)
    assert chroma(clear.pixels) > 5
    assert np.array_equal(frame_of("out/clear_compare.png").pixels[:, :56], frame_of("p/paper.png").pixels)


@pytest.mark.parametrize("name", ["x.gif", "x.webp", "x.png", "x.tif"])
def test_every_frame_is_coloured(name: str, photo_model: Path) -> None:
    save_film(name, *map(gray, range(4)))
    runner = Runner(photo_model, CPU)
    (job,) = done(runner, name)
    assert job.record()["frames"] == scan(Path(f"out/{name}")).count == 4
    assert scan(Path(f"out/{name}")).durations == scan(Path(name)).durations
    for frame, given in zip(frames_of(f"out/{name}"), frames_of(name), strict=True):
        expected = runner.run([given.pixels])[0]
        assert chroma(frame.pixels) > 5
        error = np.abs(frame.pixels.astype(int) - expected)
        assert error.mean() < {"x.gif": 10, "x.webp": 8}.get(name, 0.01)


@pytest.mark.parametrize("before", [False, True])
def test_pages_that_break_off_fail_alone_and_change_nothing(before: bool) -> None:
    save_pages("b.tif", *(np.full((9, 9), value, np.uint8) for value in (3, 4, 5)))
    save_picture("a.tif", np.zeros((9, 9), np.uint8))
    save_picture("c.tif", np.zeros((9, 9), np.uint8))
    if before:
        done(StandInRunner(), "b.tif", compare=True)
    content = {path: path.read_bytes() for path in Path().glob("out/b*")}
    assert len(content) == 2 * before
    jobs = run(StandInRunner(bad=5), "a.tif", "b.tif", "c.tif", compare=True, options=AGAIN)
    assert [job.status for job in jobs] == ["done", "failed", "done"]
    assert {path: path.read_bytes() for path in Path().glob("out/b*")} == content


def test_pictures_are_coloured_in_batches(photo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "BATCH", 3)
    monkeypatch.setattr(pipeline, "BATCH_PIXELS", 3 * 40 * 56)
    shapes = [(40, 56)] * 4 + [(56, 40)] * 2 + [(41, 56)] * 2 + [(33, 33)] * 3  # two have too many px
    for i, shape in enumerate(shapes):
        save_picture(f"p/{i:02d}.png", gray(i, *shape))
    save_picture("p/05a.png", gray(6, dtype=np.uint16))
    runner = Runner(photo_model, CPU)
    sizes, real = [], runner.run
    monkeypatch.setattr(runner, "run", lambda pictures, _: sizes.append(len(pictures)) or real(pictures))
    jobs = done(runner, "p")
    assert sizes == [3, 3, 1, 1, 1, 3]
    for job in jobs:
        (alone,) = real([frame_of(job.task.path).pixels])
        error = np.abs(frame_of(job.task.output).pixels.astype(int) - alone)
        assert error.max() <= (1 if alone.dtype == np.uint8 else 257)


def test_one_picture_that_the_network_cannot_do_fails_alone() -> None:
    for i in range(5):
        values = gray(i)
        values[0, 0] = 77 if i == 2 else 5
        save_picture(f"p/{i}.png", values)
    jobs = run(StandInRunner(bad=77), "p", compare=True)
    assert [job.status for job in jobs] == ["done", "done", "failed", "done", "done"]
    assert jobs[2].reason == "p/2.png: RuntimeError: the network fell over"
    assert "Traceback" in jobs[2].bug
    assert not list(Path("out").glob("2*"))
    for i in (0, 1, 3, 4):
        given = frame_of(f"p/{i}.png").pixels
        assert np.array_equal(frame_of(f"out/{i}.png").pixels, StandInRunner.coloured(given))


DISK_FULL = OSError(28, "No space left on device", "out/b.png")


@pytest.mark.parametrize("step", ["scan", "read_frames", "run", "write_frames"])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UserError("broken\nin two"), "b.png: broken in two"),
        (DISK_FULL, "b.png: out/b.png: No space left on device"),
        (MemoryError(), "b.png: MemoryError"),
        (KeyError("x"), "b.png: KeyError: 'x'"),
    ],
    ids=repr,
)
def test_a_failure_of_any_step_is_of_one_file_and_a_bug_is_called_one(
    step: str, error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any) -> Any:
        shapes = [getattr(each, "shape", "") for one in arguments if isinstance(one, list) for each in one]
        if any(word in str([*arguments, *shapes]) for word in ("b.png", "(50, 56, 3)")):
            raise error
        return works(*arguments)

    for name, height in (("a", 40), ("b", 50), ("c", 40)):
        save_picture(f"{name}.png", gray(0, height))
    owner = StandInRunner if step == "run" else pipeline
    works = getattr(owner, step)
    monkeypatch.setattr(owner, step, fails)
    first, failed, last = run(StandInRunner(), "a.png", "b.png", "c.png")
    assert (first.status, failed.status, last.status) == ("done", "failed", "done")
    assert failed.reason == reason
    assert ("Traceback" in failed.bug) == isinstance(error, KeyError)
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.png", "c.png"]


def test_a_problem_of_the_plan_is_a_failure() -> None:
    save_picture("a/x.png", gray(0))
    save_picture("b/x.png", gray(1))
    first, second = run(StandInRunner(), "a", "b")
    assert (first.status, second.status) == ("done", "failed")
    assert (second.reason, second.bug) == (second.task.problem, "")


def test_the_number_of_threads_changes_nothing(photo_model: Path) -> None:
    for i in range(8):
        save_picture(f"p/{i:02d}.{'jpg' if i % 3 else 'png'}", gray(i, 40 + i // 5))
    Path("p/bad.png").write_bytes(b"bad")
    results = []
    for jobs in (1, 4):
        statuses = [job.status for job in run(Runner(photo_model, CPU), "p", jobs=jobs, compare=True)]
        results.append((statuses, {path.name: path.read_bytes() for path in Path("out").iterdir()}))
        Path("out").rename(f"out{jobs}")
    assert results[0] == results[1]
    assert len(results[0][1]) == 16


@pytest.mark.parametrize("step", ["read_frames", "write_frames"])
def test_files_are_read_and_written_beside_one_another(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    together, works = threading.Barrier(2, timeout=60), getattr(pipeline, step)

    def meets(*arguments: Any) -> Any:
        together.wait()
        return works(*arguments)

    for i in range(4):
        save_picture(f"p/{i}.png", gray(i, 40 + i))
    monkeypatch.setattr(pipeline, step, meets)
    assert len(done(StandInRunner(), "p", jobs=2)) == 4  # one at a time would break the barrier, and fail


class Watched:
    """Counts the pictures in memory: what was read, and what was made of it.

    The network waits for all reading that is under way, so that as much as possible is in memory.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pictures: list[weakref.ref[NDArray]] = []
        self.most, self.lock = 0, threading.Lock()
        self.read, self.write, self.run = pipeline.read_frames, pipeline.write_frames, StandInRunner.run
        self.reading: list[Future[None]] = []
        self.full_disk = False
        monkeypatch.setattr(pipeline, "ThreadPoolExecutor", self.pool)
        monkeypatch.setattr(pipeline, "read_frames", self.read_frames)
        monkeypatch.setattr(pipeline, "write_frames", self.write_frames)
        monkeypatch.setattr(StandInRunner, "run", lambda runner, pictures, _: self.coloured(pictures))

    def add(self, pixels: Pixels) -> None:
        with self.lock:
            self.pictures.append(weakref.ref(pixels))
            self.most = max(self.most, self.alive())

    def alive(self) -> int:
        return sum(one() is not None for one in self.pictures)

    def pool(self, threads: int) -> ThreadPoolExecutor:
        made = ThreadPoolExecutor(threads)
        submit = made.submit

        def noted(function: Callable[..., None], step: Callable[..., None]) -> Future[None]:
            future = submit(function, step)
            self.reading += [future] if step.__name__ == "read" else []
            return future

        made.submit = noted
        return made

    def read_frames(self, *arguments: Any) -> Iterator[Frame]:
        for frame in self.read(*arguments):
            self.add(frame.pixels)
            yield frame
            del frame

    def write_frames(self, path: Path, frames: Iterable[Frame], *more: Any) -> None:
        if self.full_disk:
            raise OSError(28, "No space left on device", str(path))
        self.write(path, frames, *more)

    def coloured(self, pictures: list[Pixels]) -> list[Pixels]:
        wait(self.reading)
        colours = [StandInRunner.coloured(picture) for picture in pictures]
        for colour in colours:
            self.add(colour)
        return colours


@pytest.mark.parametrize(("full_disk", "jobs", "growth"), [(False, 1, 0), (False, 2, 1), (True, 2, 0)])
def test_few_of_many_pictures_are_in_memory(
    full_disk: bool, jobs: int, growth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(50):
        save_picture(f"p/{i:02d}.png", gray(i, 16 + i * growth, 16))
    watched = Watched(monkeypatch)
    watched.full_disk = full_disk
    finished = run(StandInRunner(), "p", jobs=jobs)
    assert {job.status for job in finished} == {"failed" if full_disk else "done"}
    # read ahead; in a batch, which is there twice while it is coloured; next to it; being written
    assert watched.most <= pipeline.BATCH + jobs + 2 * pipeline.BATCH + 2 + 2 * jobs
    assert watched.alive() == 0


@pytest.mark.parametrize(("limit", "most"), [(3 * 16 * 16, 10), (5, 6)])
def test_fewer_large_pictures_are_in_memory(limit: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "QUEUED_PIXELS", limit)  # of three pictures, or less than one
    monkeypatch.setattr(pipeline, "BATCH", 1)
    for i in range(20):
        save_picture(f"p/{i:02d}.png", gray(i, 16, 16))
    watched = Watched(monkeypatch)
    done(StandInRunner(), "p", jobs=8)
    assert watched.most <= most


def test_of_many_frames_few_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    save_pages("x.tif", *map(gray, range(40)))
    watched = Watched(monkeypatch)
    done(StandInRunner(), "x.tif", compare=True)
    sheet = frame_of("out/x_compare.tif").pixels
    assert np.array_equal(sheet, np.concatenate([gray_rgb(0), StandInRunner.coloured(gray_rgb(0))], 1))
    assert watched.most <= 6  # two frames, and the first for its sheet, each there twice
    assert watched.alive() == 0
