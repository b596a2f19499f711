"""tasks.py: what a call names, found in order, and where each result goes."""

import io
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from config import UserError
from imaging.files import RESULTS
from inference.tasks import Task, make_output_folder, plan_tasks, take_shard

OUT = Path("out")


def place(*names: str | bytes) -> Path:
    """Make small files; what they hold matters to nobody here. Returns the last."""
    for name in names:
        path = Path(os.fsdecode(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a picture")
    return path


@pytest.fixture
def scans() -> Path:
    """Return a folder with pictures three levels deep, hidden ones, and what is no picture."""
    place("scans/one.png", "scans/notes.txt", "scans/.hidden.png", "scans/.cache/small.png")
    place("scans/album/two.JPG", "scans/album/deep/three.tif", "scans/album/deep/four.jp2")
    return Path("scans")


def plan(*inputs: str, **how: Any) -> list[Task]:
    return plan_tasks([Path(name) for name in inputs], OUT, **how)


def names(tasks: list[Task]) -> list[tuple[str, str]]:
    """Return what becomes what below out/, of tasks without a problem."""
    assert not [task.problem for task in tasks if task.problem]
    return [(str(task.path), str(task.output.relative_to(OUT))) for task in tasks]


def outputs(tasks: list[Task]) -> list[str]:
    return [output for _, output in names(tasks)]


def listed(content: bytes, monkeypatch: pytest.MonkeyPatch, *more: str, **how: Any) -> list[Task]:
    """Plan what a list on standard input names."""
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    return plan("-", *more, **how)


def test_a_folder_is_searched_through_and_keeps_its_structure(scans: Path) -> None:
    expected = [
        ("scans/album/deep/four.jp2", "album/deep/four.png"),  # jp2 cannot be written
        ("scans/album/deep/three.tif", "album/deep/three.tif"),
        ("scans/album/two.JPG", "album/two.JPG"),
        ("scans/one.png", "one.png"),
    ]
    assert names(plan("scans")) == names(plan("scans/")) == expected
    assert outputs(plan("scans/.cache", "scans/.hidden.png")) == ["small.png", ".hidden.png"]  # if named
    os.chdir("scans")
    assert [name for name, _ in names(plan("."))] == [name[6:] for name, _ in expected]


def test_inputs_stay_in_the_order_of_the_call_and_are_done_once(scans: Path) -> None:
    place("z.png", "a.png")
    tasks = plan("z.png", "scans/album", "a.png", "scans/*.png", "./z.png")
    expected = ["z.png", "four.jp2", "three.tif", "two.JPG", "a.png", "one.png"]
    assert [task.path.name for task in tasks] == expected
    assert len(names(plan("scans", "scans/one.png", "scans/../scans", "scans", compare=True))) == 4
    places = outputs(plan("scans/album", "scans/**/*.JPG"))  # two places of one file
    assert places[-2:] == ["two.JPG", "album/two.JPG"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("scans/**/*.JPG", ["album/two.JPG"]),
        ("scans/**/*t*", ["album/deep/three.tif", "album/two.JPG", "notes.png"]),
        ("scans/album/**", ["deep/four.png", "deep/three.tif", "two.JPG"]),
        ("scans/album/deep/[t]*", ["three.tif"]),
        ("**/t*", ["scans/album/deep/three.tif", "scans/album/two.JPG"]),
        ("./scans/../scans/?ne.png", ["one.png"]),
        ("scans/scan[1].png", ["scan[1].png"]),  # a file of that name comes first
    ],
)  # fmt: skip
@pytest.mark.parametrize("absolute", [False, True])
def test_a_pattern_keeps_the_structure_below_its_fixed_part(
    scans: Path, pattern: str, expected: list[str], absolute: bool
) -> None:
    if "scan[" in pattern:
        place("scans/scan[1].png", "scans/scan1.png")
    tasks = plan(str(Path.cwd() / pattern) if absolute else pattern)
    assert outputs(tasks) == expected
    assert all(task.path.is_absolute() == absolute and task.path.is_file() for task in tasks)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (["missing.jpg"], "no file or folder missing.jpg"),
        (["scans/**/*.webp"], r"no file matches scans/\*\*/\*.webp"),
        (["scans/albu*"], r"no file matches scans/albu\*"),  # a folder alone
        (["scans/**.png/x"], r"no (pattern|file matches) scans/\*\*.png/x"),  # before Python 3.13: no pattern
        (["empty"], "no image in empty"),
    ],
)
def test_an_argument_that_stands_for_nothing_is_a_mistake(scans: Path, inputs: list[str], words: str) -> None:
    Path("empty").mkdir()
    with pytest.raises(UserError, match=words):
        plan(*inputs)


def test_a_list_has_a_name_a_line_or_a_nul_after_each(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place("z.png")
    for end in ("\n", "\r\n", "\0"):
        content = end.join(["", "scans/one.png", "./scans/album/two.JPG", "scans/one.png", "", ""])
        tasks = listed(content.encode(), monkeypatch, "z.png")
        assert outputs(tasks) == ["scans/one.png", "scans/album/two.JPG", "z.png"]
    for content in (b"", b"\n", b"\n\r\n", b"\0\0"):
        with pytest.raises(UserError, match="no file name on standard input"):
            listed(content, monkeypatch)


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
    for tasks in (listed(b"folder/%b\0" % name, monkeypatch), plan("folder"), plan(str(path))):
        (task,) = tasks
        assert (task.path, task.problem, os.fsencode(task.output.name)) == (path, "", name)


@pytest.mark.parametrize("name", ["missing.png", "scans/album", "x" * 300, "scans/one.png/x.png"])
def test_a_name_in_a_list_that_is_no_file_is_its_own_problem(
    name: str, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, bad, after = listed(f"scans/one.png\n{name}\nscans/album/two.JPG\n".encode(), monkeypatch)
    assert (before.problem, after.problem, bad.path) == ("", "", Path(name))
    assert bad.problem.startswith(f"{name}: ")
    assert ("a folder" in bad.problem) == (name == "scans/album")


def test_a_list_reaches_no_place_outside_the_output_folder(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absolute = Path("scans/one.png").absolute()
    os.chdir("scans/album")
    content = f"../../scans/notes.txt\n{absolute}\ndeep/../two.JPG\ndeep/three.tif\n".encode()
    expected = ["notes.png", "one.png", "two.JPG", "deep/three.tif"]
    assert outputs(listed(content, monkeypatch)) == expected


def test_a_format_changes_the_last_ending(scans: Path) -> None:
    place("p/a.b.jp2", "p/.c.png")
    expected = ["album/deep/four.webp", "album/deep/three.webp", "album/two.webp", "one.webp"]
    assert outputs(plan("scans", form="webp")) == expected
    assert outputs(plan("p/a.b.jp2", "p/.c.png", form="jpg")) == ["a.b.jpg", ".c.jpg"]


def test_of_inputs_with_one_output_the_later_have_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    place("a/x.png", "b/x.png", "c/x.png", "c/y.png", "p/x.jp2", "p/x.pgm", "p/x.jpg", "q/X.png")
    first, second, third, other = plan("a", "b/x.png", "c")
    assert [first.problem, other.problem] == ["", ""]
    assert second.problem == "b/x.png: a/x.png becomes out/x.png too; colourise it with another --out"
    assert third.problem.startswith("c/x.png: a/x.png becomes out/x.png too")
    assert [bool(task.problem) for task in plan("p")] == [False, False, True]  # both become x.png
    assert [bool(task.problem) for task in plan("p", form="tif")] == [False, True, True]
    assert len(names(plan("q", "c"))) == 3
    monkeypatch.setattr("sys.platform", "darwin")  # whose disks know no case
    assert [bool(task.problem) for task in plan("q", "c")] == [False, True, False]


@pytest.mark.parametrize("order", [["x.png", "x_compare.png"], ["x_compare.png", "x.png"]])
def test_sheets_collide_with_results(order: list[str]) -> None:
    place(*order)
    assert outputs(plan(*order)) == order
    first, second = plan(*order, compare=True)
    assert not first.problem
    assert second.problem.startswith(f"{order[1]}: {order[0]} becomes out/x_compare.png too")


def test_no_result_may_overwrite_an_input(scans: Path) -> None:
    def refused(words: str, *inputs: str, out: str, overwrite: bool = False) -> None:
        with pytest.raises(UserError, match=words):
            plan_tasks([Path(name) for name in inputs], Path(out), None, True, overwrite)

    refused("scans/one.png, the result of scans/one.png, would overwrite", "scans/one.png", out="scans")
    Path("elsewhere").symlink_to("scans")  # a link, or a folder mounted twice
    refused("elsewhere/one.png, the result of .*, would overwrite", "scans/one.png", out="elsewhere")
    place("scans/x.png", "x_compare.png", "scans/album/one.png", "out/one.png")
    refused("x_compare.png, the result of scans/x.png, would", "scans/x.png", "x_compare.png", out=".")
    Path("link.png").symlink_to("out/one.png")
    refused("out/one.png, the result of scans/one.png, would", "link.png", "scans/one.png", out="out")
    words = "scans/album/one.png, .* may be an original, as scans/album lies among the inputs; delete it"
    refused(words, "scans", out="scans/album", overwrite=True)
    assert Path("scans/album/one.png") not in [t.path for t in plan_tasks([scans], Path("scans/album"))]
    (task,) = plan_tasks([Path("scans/album/deep/four.jp2")], Path("scans/album/deep"))  # is no harm
    assert task.output == Path("scans/album/deep/four.png")


def test_one_folder_by_two_names_is_one(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("Scans").symlink_to("scans")  # in place of a disk that knows no case, by a link that nobody follows
    monkeypatch.setattr(os.path, "realpath", os.path.abspath)
    with pytest.raises(UserError, match=r"^Scans/(.+), the result of scans/\1, would overwrite an input"):
        plan_tasks([scans], Path("Scans"), overwrite=True)


@pytest.mark.parametrize(("inputs", "linked"), [(".", False), ("**/*.*", True), ("-", True)])
def test_former_results_are_no_inputs_unless_they_are_named(
    inputs: str,
    linked: bool,
    scans: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("scans/notes.txt").unlink()
    paths = names(plan(".")) if inputs != "-" else [("scans/one.png", "scans/one.png")]
    place("out/scans/one.png", "out/scans/one_compare.png")
    if linked:
        Path("out").rename("elsewhere")
        Path("out").symlink_to("elsewhere")
    content = b"scans/one.png\nout/scans/one.png\nout/scans/one_compare.png\n"
    notes: list[str] = []
    assert names(listed(content, monkeypatch, notes=notes) if inputs == "-" else plan(inputs, notes=notes)) == paths
    assert notes[-1] == "left out: 2 files in out, the output folder"
    notes.clear()
    tasks = plan("out/scans/one_compare.png", notes=notes)
    assert names(tasks) == [("out/scans/one_compare.png", "one_compare.png")]
    assert notes == []


def test_links_are_inputs_and_lead_round_in_no_circle(scans: Path) -> None:
    Path("link.png").symlink_to("scans/one.png")
    Path("folder").symlink_to("scans/album")
    assert outputs(plan("link.png", "folder")) == ["link.png", "deep/four.png", "deep/three.tif", "two.JPG"]
    Path("scans/notes.txt").unlink()
    before = names(plan("scans"))
    Path("scans/album/up").symlink_to("..")
    Path("scans/album/deep/up").symlink_to("..")
    for given in ("scans", "scans/**/*.*"):
        assert names(plan(given)) == before
    Path("scans/again").symlink_to("album")
    for pattern in ("scans/**/two.JPG", "scans/*/two.JPG"):
        assert outputs(plan(pattern)) == ["album/two.JPG"]
    assert outputs(plan("scans/again/*.JPG")) == ["two.JPG"]
    Path("more").mkdir()
    Path("more/far").symlink_to("../scans/album")
    for given in ("more", "more/*/*.*", "more/**"):
        assert [name for name in outputs(plan(given)) if "two" in name] == ["far/two.JPG"]


def test_what_a_folder_holds_and_is_not_taken_is_said(scans: Path) -> None:
    notes: list[str] = []
    place("scans/a.jxl", "scans/album/b.jxl")
    Path("scans/again").symlink_to("album")
    assert len(plan("scans", notes=notes)) == 4
    assert notes == [
        "left out: scans/again, as it is scans/album, which is searched already",
        "left out: files in scans that are not read: 2 .jxl, 1 .txt",
    ]


def test_a_folder_named_like_a_pattern_is_taken_for_itself() -> None:
    place("[Group] Title/one.png", "p/[Group] Title/two.png")
    assert outputs(plan("[Group] Title/*.png")) == ["one.png"]
    assert outputs(plan("p/[Group] Title/*.png")) == ["two.png"]
    assert outputs(plan("*/[[]Group] Title/*.png")) == ["p/[Group] Title/two.png"]
    with pytest.raises(UserError, match=r"^no file matches \*/\[Group\] Title/\*.png; .*: write \[\[\] for the letter"):
        plan("*/[Group] Title/*.png")


def test_names_of_results_are_no_longer_than_names_may_be() -> None:
    long = [f"{letter}{'x' * 250}.jpg" for letter in "ab"]
    tasks = plan(*map(str, [place(name) for name in long]), form="webp", compare=True)
    results = [path for task in tasks for path in (task.output, task.sheet)]
    assert len(set(results)) == 4
    for path in results:
        place(str(path))
    assert all(task.sheet.name.endswith("_compare.webp") for task in tasks)
    assert plan(long[0], form="png")[0].output == OUT / f"{long[0][:-4]}.png"  # it fits as it is


@pytest.mark.parametrize("target", ["missing", "broken.png"], ids=["nowhere", "itself"])
def test_a_link_to_no_file_is_an_input(target: str, scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("scans/album/broken.png").symlink_to(target)
    for given in ("scans/album", "scans/album/*.png", "scans/album/broken.png"):
        assert ("scans/album/broken.png", "broken.png") in names(plan(given))
    assert len(names(listed(b"scans/album/broken.png\n", monkeypatch))) == 1


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
    words = "scans/album/deep: the folder cannot be read (Permission denied)"
    assert problems == {"scans/album/two.JPG": "", "scans/one.png": "", "scans/album/deep": words}


@pytest.mark.parametrize("number", [1, 3, 7])
def test_shards_are_disjoint_equal_and_complete(number: int) -> None:
    place(*(f"scans/p{i}.png" for i in range(11)), "scans/album/x.png")
    tasks = plan("scans", "scans/p3.png")  # one of whose results has two inputs
    shards = [take_shard(tasks, f"{i}/{number}") for i in range(1, number + 1)]
    assert sorted(repr(task) for shard in shards for task in shard) == sorted(map(repr, tasks))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("shard", ["0/4", "5/4", "1/0", "1", "a/b", "-1/4", "1/4/2", ""])
def test_a_shard_that_is_none_is_one_sentence(shard: str) -> None:
    with pytest.raises(UserError, match="--shard is I/N"):
        take_shard([], shard)


@pytest.mark.usefixtures("scans")
def test_results_of_a_former_call_are_no_originals() -> None:
    place("scans/done/.DS_Store")
    make_output_folder(Path("scans/done"))
    place("scans/done/one.png", "scans/done/deep/two.png")
    notes: list[str] = []
    for given in ("scans", "scans/**/*.*", "scans/*/*.*"):
        assert "done/one.png" not in outputs(plan(given, notes=notes))
    said = (
        f"left out: scans/done, as it holds results of colorize.py (to take them, name it, or delete {RESULTS} in it)"
    )
    assert notes.count(said) == 3
    with pytest.raises(UserError, match=rf"^no file matches scans/\*/one\.png; {re.escape(said)}$"):
        plan("scans/*/one.png")
    assert outputs(plan("scans/done/*.png")) == ["one.png"]
    assert outputs(plan("scans/done")) == ["deep/two.png", "one.png"]
    assert outputs(plan("scans/**/deep/two.png")) == ["done/deep/two.png"]  # a folder that is named
    make_output_folder(Path("scans/album"))  # which holds pictures of a user
    assert "album/two.JPG" in outputs(plan("scans"))
