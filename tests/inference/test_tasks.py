"""inputs.py: what a call names, found in order, and where each result goes."""

import io
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imaging.files import FORMS
from inference.tasks import Task, plan_tasks

OUT = Path("out")


@pytest.fixture
def scans() -> Path:
    """Return a folder with pictures three levels deep, hidden ones, and what is no picture."""
    for name in (
        "one.png",
        "notes.txt",
        ".hidden.png",
        ".cache/small.png",
        "album/two.JPG",
        "album/deep/three.tif",
        "album/deep/four.jp2",
    ):
        place(f"scans/{name}")
    return Path("scans")


def place(name: str | bytes) -> Path:
    """Make a small file; what it holds matters to nobody here."""
    path = Path(os.fsdecode(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"a picture")
    return path


def plan(*inputs: str, **how: Any) -> list[Task]:
    return plan_tasks([Path(name) for name in inputs], OUT, **how)


def names(tasks: list[Task]) -> list[tuple[str, str]]:
    """Return what becomes what, of tasks without a problem."""
    assert not [task.problem for task in tasks if task.problem]
    return [(str(task.path), str(task.output)) for task in tasks]


def listed(content: bytes, monkeypatch: pytest.MonkeyPatch, *more: str) -> list[Task]:
    """Plan what a list on standard input names."""
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    return plan("-", *more)


# files, folders, patterns


def test_a_file_goes_into_the_output_folder_without_its_folders(scans: Path) -> None:
    assert names(plan("scans/album/two.JPG", str(Path("scans/one.png").absolute()))) == [
        ("scans/album/two.JPG", "out/two.JPG"),
        (str(Path("scans/one.png").absolute()), "out/one.png"),
    ]


def test_a_folder_is_searched_through_and_keeps_its_structure(scans: Path) -> None:
    expected = [
        ("scans/album/deep/four.jp2", "out/album/deep/four.png"),  # jp2 cannot be written
        ("scans/album/deep/three.tif", "out/album/deep/three.tif"),
        ("scans/album/two.JPG", "out/album/two.JPG"),
        ("scans/one.png", "out/one.png"),
    ]
    assert names(plan("scans")) == expected
    assert names(plan("scans/")) == expected
    os.chdir("scans")
    assert [name for name, _ in names(plan("."))] == [name[6:] for name, _ in expected]


def test_a_hidden_folder_is_searched_when_it_is_named(scans: Path) -> None:
    assert names(plan("scans/.cache")) == [("scans/.cache/small.png", "out/small.png")]
    assert names(plan("scans/.hidden.png")) == [("scans/.hidden.png", "out/.hidden.png")]


def test_inputs_stay_in_the_order_of_the_call(scans: Path) -> None:
    place("z.png")
    place("a.png")
    tasks = plan("z.png", "scans/album", "a.png", "scans/*.png")
    assert [task.path.name for task in tasks] == [
        "z.png",
        "four.jp2",
        "three.tif",
        "two.JPG",
        "a.png",
        "one.png",
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("scans/**/*.JPG", ["album/two.JPG"]),
        (
            "scans/**/*",
            ["album/deep/four.png", "album/deep/three.tif", "album/two.JPG", "notes.png", "one.png"],
        ),
        ("scans/album/**", ["deep/four.png", "deep/three.tif", "two.JPG"]),
        ("scans/*/two.*", ["album/two.JPG"]),
        ("scans/album/**/*.tif", ["deep/three.tif"]),  # below the fixed part
        ("scans/album/deep/[t]*", ["three.tif"]),
        ("*/one.png", ["scans/one.png"]),
        ("**/t*", ["scans/album/deep/three.tif", "scans/album/two.JPG"]),
        ("scans/../scans/*.png", ["one.png"]),
        ("./scans/?ne.png", ["one.png"]),
    ],
)
@pytest.mark.parametrize("absolute", [False, True])
def test_a_pattern_keeps_the_structure_below_its_fixed_part(
    scans: Path, pattern: str, expected: list[str], absolute: bool
) -> None:
    tasks = plan(str(Path.cwd() / pattern) if absolute else pattern)
    assert [output for _, output in names(tasks)] == [f"out/{name}" for name in expected]
    assert all(task.path.is_absolute() == absolute and task.path.is_file() for task in tasks)


def test_a_file_whose_name_looks_like_a_pattern_is_a_file() -> None:
    place("scan[1].png")
    place("scan1.png")
    assert names(plan("scan[1].png")) == [("scan[1].png", "out/scan[1].png")]


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        (["missing.jpg"], "^no file or folder missing.jpg$"),
        (["scans/one.png", "scans/two"], "^no file or folder scans/two$"),
        (["scans/**/*.webp"], r"^no file matches scans/\*\*/\*.webp$"),
        (["scans/albu[x]"], r"^no file matches scans/albu\[x\]$"),
        (["scans/albu*"], r"^no file matches scans/albu\*$"),  # a folder alone
        (
            ["scans/**.png/x"],
            r"^no (pattern|file matches) scans/\*\*.png/x",
        ),  # before Python 3.13: no pattern
        (["empty"], "^no image in empty"),
    ],
)
def test_an_argument_that_stands_for_nothing_is_a_mistake(
    scans: Path, inputs: list[str], sentence: str
) -> None:
    Path("empty").mkdir()
    with pytest.raises(ValueError, match=sentence):
        plan(*inputs)


# lists


@pytest.mark.parametrize("end", ["\n", "\r\n", "\0"])
@pytest.mark.parametrize("last", [False, True])
def test_a_list_has_a_name_a_line_or_a_nul_after_each(
    scans: Path, monkeypatch: pytest.MonkeyPatch, end: str, last: bool
) -> None:
    content = end.join(["scans/one.png", "./scans/album/two.JPG"]) + end * last
    assert names(listed(content.encode(), monkeypatch)) == [
        ("scans/one.png", "out/scans/one.png"),
        ("scans/album/two.JPG", "out/scans/album/two.JPG"),
    ]


def test_one_name_with_a_nul_is_one_name(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names(listed(b"scans/one.png\0", monkeypatch)) == [("scans/one.png", "out/scans/one.png")]


@pytest.mark.parametrize(
    "name",
    [b"two\nlines.png", b" spaces  around .png", "фото 写真 é.png".encode(), b"caf\xe9.png", b"tab\t\\0.png"],
    ids=["newline", "spaces", "unicode", "not-utf-8", "tab"],
)
def test_names_of_all_bytes_arrive(name: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        path = place(b"folder/" + name)
    except (OSError, UnicodeError):
        pytest.skip("no such name in this file system")
    content = b"folder/%b\0" % name
    for tasks in (listed(content, monkeypatch), plan("folder"), plan(str(path))):
        (task,) = tasks
        assert (task.path, task.problem) == (path, "")
        assert os.fsencode(task.output.name) == name
    if b"\n" not in name:
        assert names(listed(content[:-1] + b"\n", monkeypatch)) == [(str(path), f"out/{path}")]


def test_empty_names_in_a_list_are_no_names(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(listed(b"\n\nscans/one.png\n\n", monkeypatch)) == 1
    assert len(listed(b"\0\0scans/one.png\0", monkeypatch)) == 1


@pytest.mark.parametrize("content", [b"", b"\n", b"\n\r\n", b"\0", b"\0\0"])
def test_an_empty_list_is_a_mistake(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^no file name on standard input$"):
        listed(content, monkeypatch)


@pytest.mark.parametrize("name", ["missing.png", "scans/album", "x" * 300, "scans/one.png/x.png"])
def test_a_name_in_a_list_that_is_no_file_is_its_own_problem(
    name: str, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, bad, after = listed(f"scans/one.png\n{name}\nscans/album/two.JPG\n".encode(), monkeypatch)
    assert not before.problem
    assert not after.problem
    assert bad.path == Path(name)
    assert bad.problem.startswith(f"{name}: ")
    assert ("a folder" in bad.problem) == (name == "scans/album")


def test_a_list_reaches_no_place_outside_the_output_folder(
    scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absolute = Path("scans/one.png").absolute()
    os.chdir("scans/album")
    content = f"../../scans/notes.txt\n{absolute}\ndeep/../two.JPG\ndeep/three.tif\n".encode()
    assert [output for _, output in names(listed(content, monkeypatch))] == [
        "out/notes.png",
        "out/one.png",
        "out/two.JPG",
        "out/deep/three.tif",
    ]


def test_a_list_stands_beside_other_inputs(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = listed(b"scans/album/two.JPG\n", monkeypatch, "scans/one.png")
    assert [task.path.name for task in tasks] == ["two.JPG", "one.png"]


# endings, sheets


@pytest.mark.parametrize("form", FORMS)
def test_a_format_changes_the_endings(scans: Path, form: str) -> None:
    assert [output for _, output in names(plan("scans", form=form))] == [
        f"out/album/deep/four.{form}",
        f"out/album/deep/three.{form}",
        f"out/album/two.{form}",
        f"out/one.{form}",
    ]


def test_an_unknown_format_is_a_mistake(scans: Path) -> None:
    with pytest.raises(ValueError, match="no image format 'gif': use one of png jpg webp tif"):
        plan("scans", form="gif")


def test_only_the_last_ending_is_an_ending() -> None:
    place("p/a.b.jp2")
    place("p/.c.png")
    assert names(plan("p/a.b.jp2", "p/.c.png", form="jpg")) == [
        ("p/a.b.jp2", "out/a.b.jpg"),
        ("p/.c.png", "out/.c.jpg"),
    ]


def test_sheets_stand_beside_the_results(scans: Path) -> None:
    assert {task.sheet for task in plan("scans")} == {None}
    tasks = plan("scans", form="webp", compare=True)
    assert [str(task.sheet) for task in tasks][-2:] == ["out/album/two_compare.webp", "out/one_compare.webp"]


# names that meet


def test_of_two_inputs_with_one_output_the_later_has_a_problem(scans: Path) -> None:
    for name in ("a/x.png", "b/x.png", "c/x.png", "c/y.png"):
        place(name)
    first, second, third, other = plan("a", "b/x.png", "c")
    assert [first.problem, other.problem] == ["", ""]
    assert second.problem == "b/x.png: a/x.png becomes out/x.png too; colourise it with another --out"
    assert third.problem == "c/x.png: a/x.png becomes out/x.png too; colourise it with another --out"


def test_endings_that_become_one_collide(scans: Path) -> None:
    place("p/x.jp2")
    place("p/x.pgm")
    place("p/x.jpg")
    assert [bool(task.problem) for task in plan("p")] == [False, False, True]  # both become x.png
    assert [bool(task.problem) for task in plan("p", form="tif")] == [False, True, True]


def test_a_file_that_is_named_twice_is_done_once(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(names(plan("scans/one.png", "scans/one.png", "./scans/one.png"))) == 1
    assert len(names(plan("scans", "scans/one.png", "scans/*.png"))) == 4
    assert len(names(listed(b"scans/one.png\nscans/one.png\n", monkeypatch))) == 1
    assert len(names(plan("scans/one.png", str(Path("scans/one.png").absolute()), "scans/../scans"))) == 4
    assert len(names(plan("scans", "scans", compare=True))) == 4


def test_a_file_with_two_places_is_done_twice(scans: Path) -> None:
    assert [output for _, output in names(plan("scans/album", "scans/**/*.JPG"))][-2:] == [
        "out/two.JPG",
        "out/album/two.JPG",
    ]


@pytest.mark.parametrize("order", [["x.png", "x_compare.png"], ["x_compare.png", "x.png"]])
def test_sheets_collide_with_results(order: list[str]) -> None:
    for name in order:
        place(name)
    assert names(plan(*order)) == [(name, f"out/{name}") for name in order]
    first, second = plan(*order, compare=True)
    assert not first.problem
    assert (
        second.problem
        == f"{order[1]}: {order[0]} becomes out/x_compare.png too; colourise it with another --out"
    )


# inputs are safe


def test_no_result_may_overwrite_an_input(scans: Path) -> None:
    with pytest.raises(ValueError, match=r"^scans/one.png, the result of scans/one.png, would overwrite"):
        plan_tasks([Path("scans/one.png")], Path("scans"))
    place("scans/album/one.png")
    sentence = (
        r"^scans/album/one.png, the result of scans/one.png, is there and may be an original, "
        r"as scans/album lies among the inputs; delete it, or name another --out$"
    )
    with pytest.raises(ValueError, match=sentence):
        plan_tasks([scans], Path("scans/album"), overwrite=True)
    assert Path("scans/album/one.png") not in [t.path for t in plan_tasks([scans], Path("scans/album"))]
    place("scans/x.png")
    place("x_compare.png")
    with pytest.raises(ValueError, match=r"^x_compare.png, the result of scans/x.png, would overwrite"):
        plan_tasks([Path("scans/x.png"), Path("x_compare.png")], Path("."), None, True)


def test_no_result_may_overwrite_an_input_through_a_link(scans: Path) -> None:
    Path("elsewhere").symlink_to("scans")
    with pytest.raises(ValueError, match=r"^elsewhere/one.png, the result of scans/one.png, would overwrite"):
        plan_tasks([Path("scans/one.png")], Path("elsewhere"))
    place("out/one.png")
    Path("link.png").symlink_to("out/one.png")
    with pytest.raises(ValueError, match=r"^out/one.png, the result of scans/one.png, would overwrite"):
        plan("link.png", "scans/one.png")


def test_a_result_beside_the_inputs_is_no_harm(scans: Path) -> None:
    tasks = plan_tasks([Path("scans/album/deep/four.jp2")], Path("scans/album/deep"))
    assert names(tasks) == [("scans/album/deep/four.jp2", "scans/album/deep/four.png")]


# former results


@pytest.mark.parametrize("inputs", [".", "**/*.*", "-"])
@pytest.mark.parametrize("linked", [False, True])
def test_former_results_are_no_inputs_unless_they_are_named(
    inputs: str,
    linked: bool,
    scans: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("scans/notes.txt").unlink()
    paths = names(plan(".")) if inputs != "-" else [("scans/one.png", "out/scans/one.png")]
    place("out/scans/one.png")
    place("out/scans/one_compare.png")
    if linked:
        Path("out").rename("elsewhere")
        Path("out").symlink_to("elsewhere")
    content = b"scans/one.png\nout/scans/one.png\nout/scans/one_compare.png\n"
    assert capsys.readouterr().err == ""
    assert names(listed(content, monkeypatch) if inputs == "-" else plan(inputs)) == paths
    assert capsys.readouterr().err == "left out: 2 files in out, the output folder\n"
    tasks = plan("out/scans/one_compare.png")
    assert names(tasks) == [("out/scans/one_compare.png", "out/one_compare.png")]
    assert capsys.readouterr().err == ""


# links


def test_a_link_is_an_input_like_another(scans: Path) -> None:
    Path("link.png").symlink_to("scans/one.png")
    Path("folder").symlink_to("scans/album")
    assert names(plan("link.png")) == [("link.png", "out/link.png")]
    assert [output for _, output in names(plan("folder"))][-1] == "out/two.JPG"


@pytest.mark.parametrize("target", ["missing", "broken.png"], ids=["nowhere", "itself"])
def test_a_link_to_no_file_is_an_input(target: str, scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("scans/album/broken.png").symlink_to(target)
    expected = ("scans/album/broken.png", "out/broken.png")
    assert expected in names(plan("scans/album"))
    assert expected in names(plan("scans/album/*.png"))
    assert names(plan("scans/album/broken.png")) == [expected]
    assert len(names(listed(b"scans/album/broken.png\n", monkeypatch))) == 1


@pytest.mark.parametrize("inputs", ["scans", "scans/**/*.*"])
def test_a_folder_that_links_to_its_parent_is_not_walked_in_circles(scans: Path, inputs: str) -> None:
    Path("scans/notes.txt").unlink()
    before = names(plan(inputs))
    assert len(before) == 4
    Path("scans/album/up").symlink_to("..")
    assert names(plan(inputs)) == before


def test_links_that_could_be_followed_for_ever_are_not(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_long(*_: object) -> None:
        pytest.fail("still walking")  # no OSError: glob passes over those

    Path("scans/album/up").symlink_to("..")
    Path("scans/album/deep/up").symlink_to("..")
    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(5)
    try:
        assert len(plan("scans/**/*.JPG")) == 1
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_pattern_goes_through_no_link_below_its_fixed_part(scans: Path) -> None:
    Path("scans/again").symlink_to("album")
    assert names(plan("scans/*/two.JPG")) == [("scans/album/two.JPG", "out/album/two.JPG")]
    assert names(plan("scans/again/*.JPG")) == [("scans/again/two.JPG", "out/two.JPG")]


# what a disk makes of names


def test_one_folder_by_two_names_is_one(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for a disk that knows no case, or a folder mounted twice, by a link that nobody follows."""
    Path("Scans").symlink_to("scans")
    monkeypatch.setattr(os.path, "realpath", os.path.abspath)
    with pytest.raises(ValueError, match=r"^Scans/(.+), the result of scans/\1, would overwrite an input"):
        plan_tasks([scans], Path("Scans"), overwrite=True)


def test_results_that_differ_in_case_are_one_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/X.png", "b/x.png", "b/y.png"):
        place(name)
    assert len(names(plan("a/X.png", "b"))) == 3
    monkeypatch.setattr("sys.platform", "darwin")
    problems = [task.problem for task in plan("a/X.png", "b")]
    assert problems == ["", "b/x.png: a/X.png becomes out/x.png too; colourise it with another --out", ""]


def test_a_missing_file_takes_no_name_from_another(monkeypatch: pytest.MonkeyPatch) -> None:
    there = place("real/a.jpg").absolute()
    missing, found = listed(f"/nowhere/a.jpg\n{there}\n".encode(), monkeypatch)
    assert missing.problem == "/nowhere/a.jpg: no such file"
    assert (found.path, found.output, found.problem) == (there, OUT / "a.jpg", "")


def test_a_folder_that_cannot_be_read_is_a_failure_beside_the_others(
    scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def stand_in(path: str) -> Any:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", stand_in)  # root may read all
    problems = {str(task.path): task.problem for task in plan("scans")}
    sentence = "scans/album/deep: the folder cannot be read (Permission denied)"
    assert problems == {"scans/album/two.JPG": "", "scans/one.png": "", "scans/album/deep": sentence}
