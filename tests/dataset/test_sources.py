"""dataset/sources.py: archives are read in place like folders; torchvision's data sets are found by name."""

import contextlib
import gzip
import io
import socket
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from config import Recipe, UserError
from dataset import sources
from dataset.folders import Item, list_items, open_tree, read_picture
from dataset.sources import Blob, Entry, find_named, open_archive, open_named
from imaging.pixels import Array

RECIPE = Recipe("x", val_fraction=0.3)
CACHE = Path("cache")
SPLIT = ["train/cat/a.png", "train/dog/a.jpg", "train/dog/b.PNG", "val/cat/c.png", "test/cat/d.webp"]
FLAT = [f"{label}/{i}.png" for label in ("cat", "dog") for i in range(6)]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test of this file off the network."""

    def fail(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    monkeypatch.setattr(socket, "getaddrinfo", fail)


def picture(seed: int) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (8, 9, 3), np.uint8)


def encoded(seed: int, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(seed)).save(file, form)
    return file.getvalue()


def write_folder(names: list[str], root: str = "set") -> Path:
    """Write pictures that all differ below a folder; names without a picture's ending become texts."""
    for seed, name in enumerate(names):
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in Image.registered_extensions():
            Image.fromarray(picture(seed)).save(path)
        else:
            path.write_text("no picture")
    return Path(root)


def pack(folder: Path, top: str, archive: str = "set.tar") -> Path:
    """Pack a folder, last name first; `top` is what its own name becomes in there."""
    with tarfile.open(archive, "w") as tar:
        for path in sorted(folder.rglob("*"), reverse=True):
            tar.add(path, f"{top and top + '/'}{path.relative_to(folder).as_posix()}", recursive=False)
    return Path(archive)


def facts(data: str) -> dict[str, list[tuple[str, str, str, list[int]]]]:
    """Return what there is to know of a data set: per split, each picture's stem, label, name and pixels."""
    splits = list_items(data, RECIPE, CACHE)
    return {
        split: [(i.stem, i.label, i.name, read_picture(i.target).ravel().tolist()) for i in items]
        for split, items in splits.items()
    }


def refusal(work: Callable[..., Any], *arguments: Any) -> str:
    """Return the sentence of the UserError that a call ends in."""
    with pytest.raises(UserError) as caught:
        work(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(("names", "top"), [(SPLIT, ""), (SPLIT, "./set"), (FLAT, "."), (FLAT, "set")])
def test_a_tar_is_its_folder(names: list[str], top: str) -> None:
    folder = write_folder(names)
    assert facts(str(pack(folder, top))) == facts(str(folder))


def test_hidden_files_and_what_is_no_picture_are_left_out() -> None:
    shown = ["dog/a.png", "cat/b.jpg"]
    hidden = [".DS_Store", "dog/._a.png", ".thumbs/x.png", "dog/.old/y.png", "readme.txt", "dog/a.png.txt"]
    folder = write_folder([*shown, *hidden])
    assert set(open_archive(pack(folder, "set"))) == set(shown)
    assert set(open_archive(pack(folder, "", "FLAT.TAR"))) == set(shown)


@pytest.mark.parametrize("names", [["val/dog/a.png", "val/cat/b.png"], ["a.png", "sub/b.png"]])
def test_a_split_and_a_folder_beside_pictures_stay_in_the_names(names: list[str]) -> None:
    assert set(open_archive(pack(write_folder(names), ""))) == set(names)


def test_a_second_name_of_a_file_in_a_tar_is_a_picture_too() -> None:
    folder = write_folder(["dog/a.png", "cat/b.png"])
    (folder / "dog/hard.png").hardlink_to(folder / "dog/a.png")
    (folder / "dog/soft.png").symlink_to("../cat/b.png")
    (folder / "dog/nowhere.png").symlink_to("../cat/none.png")
    found = open_archive(pack(folder, "set"))
    assert sorted(found) == ["cat/b.png", "dog/a.png", "dog/hard.png", "dog/soft.png"]
    for name, other in (("dog/hard.png", "dog/a.png"), ("dog/soft.png", "cat/b.png")):
        assert found[name].content() == found[other].content()


def test_a_tar_is_not_unpacked() -> None:
    archive = pack(write_folder(FLAT, "elsewhere/set"), "set")
    before = {path for path in Path().rglob("*") if path.parts[0] != "elsewhere"}
    items = list_items(str(archive), RECIPE, CACHE)["train"]
    assert all(isinstance(item.target, Blob) and isinstance(item.target.data, np.memmap) for item in items)
    assert len({id(item.target.data) for item in items}) == 1  # mapped once
    for item in items:
        read_picture(item.target)
    assert {path for path in Path().rglob("*") if path.parts[0] != "elsewhere"} == before


def test_a_damaged_picture_in_a_tar_is_named() -> None:
    folder = write_folder(["dog/a.png", "cat/b.png"])
    (folder / "dog/a.png").write_bytes(encoded(0)[:60])
    found = open_archive(pack(folder, "set"))
    assert "set.tar:set/dog/a.png" in refusal(found["dog/a.png"].read)
    assert np.array_equal(found["cat/b.png"].read(), picture(1))


def small_tar() -> bytes:
    """Return an archive of three pictures, each a block of header and a block of PNG."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for seed in range(3):
            member = tarfile.TarInfo(f"{seed}.png")
            member.size = len(encoded(seed))
            assert 40 < member.size <= 512
            tar.addfile(member, io.BytesIO(encoded(seed)))
    return file.getvalue()


def test_a_damaged_tar_is_one_sentence() -> None:
    whole = small_tar()
    for content in (
        whole[:100],  # cut in the first header
        whole[:530],  # in the first picture
        whole[: 5 * 512 + 20],  # in the last picture
        whole[:20] + b"x" + whole[21:],  # header changed
        whole[: 2 * 512 + 100],  # cut in a later header: one whole picture of three
        b"",
        b"this is no archive",
        gzip.compress(whole),
    ):
        Path("set.tar").write_bytes(content)
        assert "set.tar" in refusal(open_archive, Path("set.tar"))


def test_other_files_and_a_tar_without_pictures_are_one_sentence() -> None:
    for name in ("set.tar.gz", "set.zip", "set"):
        Path(name).write_bytes(gzip.compress(small_tar()))
        assert refusal(list_items, name, RECIPE, CACHE).startswith(f"{name} is neither a folder nor a .tar")
    archive = pack(write_folder(["readme.txt", ".hidden.png"], "elsewhere"), "")
    assert "no image in set.tar" in refusal(list_items, str(archive), RECIPE, CACHE)


def pack_npz(count: int = 6, **more: Any) -> Path:
    """Pack pictures by the very command of the module's docstring; `more` replaces or, None, removes."""
    (command,) = (line.strip() for line in (sources.__doc__ or "").splitlines() if "np.savez" in line)
    exec(command, {"np": np, "files": [encoded(i, "JPEG" if i % 2 else "PNG") for i in range(count)]})
    if more:
        with np.load("set.npz") as packed:
            arrays = {**packed, **more}
        np.savez("set.npz", **{key: value for key, value in arrays.items() if value is not None})
    return Path("set.npz")


def test_npz_as_the_docstring_packs_it() -> None:
    found = open_archive(pack_npz())
    assert list(found) == [f"{i:06d}.jpg" for i in range(6)]
    for i, blob in enumerate(found.values()):
        with Image.open(io.BytesIO(encoded(i, "JPEG" if i % 2 else "PNG"))) as image:
            assert np.array_equal(blob.read(), image)
        assert str(blob) == f"set.npz:{i:06d}.jpg"


TEST = [False, False, True, False, True, False]


@pytest.mark.parametrize(
    ("labels", "classes", "expected", "is_test"),
    [
        ([0, 1, 0, 1, 2, 2], None, ["0", "1", "0", "1", "2", "2"], None),
        ([0, 1, 0, 1, 0, 0], ["cat", "/outdoor/dog/"], ["cat", "outdoor-dog"] * 2 + ["cat"] * 2, TEST),
        (["cat"] * 3 + ["dog"] * 3, None, ["cat"] * 3 + ["dog"] * 3, None),
        (None, ["cat"], [""] * 6, TEST),
    ],
)
def test_npz_labels_and_split(
    labels: list[Any] | None, classes: list[str] | None, expected: list[str], is_test: list[bool] | None
) -> None:
    arrays = {"labels": labels, "classes": classes, "is_test": is_test}
    archive = pack_npz(**{key: np.array(value) for key, value in arrays.items() if value is not None})
    splits = list_items(str(archive), RECIPE, CACHE)
    items = {item.stem[-6:]: item for split in ("train", "val", "test") for item in splits[split]}
    assert [items[f"{i:06d}"].label for i in range(6)] == expected
    assert not {i.stem for i in splits["train"]} & {i.stem for i in splits["val"]}
    assert splits["val"]
    if is_test is None:
        assert splits["test"] == splits["val"]
    else:
        assert [item.stem[-6:] for item in splits["test"]] == ["000002", "000004"]


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("offsets", {"offsets": np.array([0, 50, 40, 60, 70, 80, 90])}),
        ("offsets", {"offsets": np.array([0, 10**6])}),
        ("offsets", {"offsets": np.array([-50, 10, 20, 30, 40, 50, 60])}),
        ("offsets", {"offsets": np.zeros(0, int)}), ("offsets", {"offsets": np.array(0)}),
        ("offsets", {"offsets": None}),
        ("data", {"data": np.zeros(10**5, np.uint16)}),
        ("data", {"data": None, "images": np.zeros(3)}),
        ("no image", {"data": np.zeros(0, np.uint8), "offsets": np.zeros(1, int)}),
        ("labels", {"labels": np.zeros(5, int)}),
        ("labels", {"labels": np.arange(6), "classes": np.array(["cat", "dog"])}),
        ("labels", {"labels": np.array(list("abcdef")), "classes": np.array(["cat", "dog"])}),
        ("labels", {"labels": np.full(6, -1), "classes": np.array(["cat", "dog"])}),
        ("labels", {"labels": np.zeros(6, int), "classes": np.array("cat")}),
        ("allow_pickle", {"labels": np.array([1, None, 3, 4, 5, 6], object)}),
        ("is_test", {"is_test": np.zeros(5, bool)}), ("is_test", {"is_test": np.array(True)}),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_together_are_one_sentence(reason: str, change: dict[str, Any]) -> None:
    sentence = refusal(open_archive, pack_npz(**change))
    assert "set.npz" in sentence
    assert reason in sentence


def test_a_damaged_npz_is_one_sentence() -> None:
    whole = pack_npz().read_bytes()
    middle = len(whole) // 2
    changed = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    for content in (b"", b"this is no archive", whole[:middle], changed):
        Path("set.npz").write_bytes(content)
        assert "set.npz cannot be read as .npz" in refusal(open_archive, Path("set.npz"))
    np.save("one.npy", np.zeros(3))
    Path("one.npy").rename("set.npz")
    assert "one array" in refusal(open_archive, Path("set.npz"))


def test_any_changed_byte_ends_in_a_sentence_or_in_pictures() -> None:
    with np.load(pack_npz()) as packed:
        np.savez_compressed("set.npz", **packed)
    content = Path("set.npz").read_bytes()
    for place in range(60, len(content) // 2, 20):
        changed = content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]
        Path("set.npz").write_bytes(changed)
        with contextlib.suppress(UserError):
            assert len(open_archive(Path("set.npz"))) == 6


def test_find_named() -> None:
    assert find_named("cifar10") == find_named("CIFAR-10") == "CIFAR10"
    assert find_named("oxford_iiit-pet") == "OxfordIIITPet"
    for name in ("imagefolder", "cifar11", ""):
        assert find_named(name) is None
    assert "torchvision data set such as cifar10" in refusal(list_items, "cifar11", RECIPE, CACHE)


def test_fakedata_as_it_is() -> None:
    splits = list_items("fake_data", RECIPE, CACHE)
    items = sorted(splits["train"] + splits["val"], key=lambda item: item.stem)
    assert [item.stem for item in items] == [f"{i:06d}" for i in range(1000)]
    assert {item.label for item in items} == {""}
    assert np.array_equal(read_picture(items[7].target), torchvision.datasets.FakeData()[7][0])
    assert str(items[7].target) == "FakeData/[7]"
    assert not CACHE.exists()
    write_folder(["a.png", "b.png"], "fake_data")
    assert len(open_tree("fake_data", CACHE, [])) == 2  # a folder of that name comes first


def write_imagenette(counts: dict[str, int]) -> None:
    """Write what torchvision looks for below cache/datasets, of two of the ten classes."""
    for split, count in counts.items():
        for kind in ("n01440764", "n02979186"):  # tench, cassette player
            for i in range(count):
                path = CACHE / "datasets/imagenette2-320" / split / kind / f"{i}.jpeg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture(i)).save(path, quality=95)


def test_a_set_that_lies_in_the_cache_is_not_downloaded() -> None:
    write_imagenette({"train": 4, "val": 2})
    splits = list_items("imagenette", RECIPE, CACHE)
    assert [(item.label, item.stem) for item in splits["train"]] == [
        *(("tench", f"tench__{i:06d}") for i in range(4)),
        *(("cassette player", f"cassette player__{i:06d}") for i in range(4, 8)),
    ]
    assert len(splits["val"]) == 4
    assert splits["test"] == splits["val"]
    assert not {str(item.target) for item in splits["train"]} & {str(item.target) for item in splits["val"]}
    path = CACHE / "datasets/imagenette2-320/train/n02979186/1.jpeg"
    with Image.open(path) as image:
        assert np.array_equal(read_picture(splits["train"][5].target), image)
    path.write_bytes(path.read_bytes()[:200])
    assert "Imagenette/train/[5]" in refusal(read_picture, splits["train"][5].target)


def test_a_set_without_a_network_or_that_needs_more_than_a_name() -> None:
    for name, parts in {
        "cifar10": ("CIFAR10 is not in cache/datasets", "no route to host", "--data"),
        "places365": ("Places365 is not in cache/datasets", "no route to host", "--data"),
        "ucf101": ("annotation_path frames_per_clip",),
        "emnist": ("EMNIST needs split",),
    }.items():
        sentence = refusal(list_items, name, RECIPE, CACHE)
        assert all(part in sentence for part in parts), sentence


def test_every_name_of_torchvision_is_pictures_or_one_sentence() -> None:
    for name in torchvision.datasets.__all__:
        if name != "FakeData":
            assert name in refusal(list_items, name, RECIPE, CACHE)


class Fake:
    """A set of pictures that says `split` as STL10 does, and records how it is built."""

    SIZES: dict[str, int] = {"train": 8, "test": 3, "unlabeled": 20}  # noqa: RUF012
    built: list[tuple[str, bool]] = []  # noqa: RUF012

    def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
        Fake.built.append((split, download))
        if split not in self.SIZES:
            raise ValueError(f"Unknown value '{split}' for argument split.")
        if not download and not Path(root, "fake").exists():
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        Path(root, "fake").mkdir(parents=True, exist_ok=True)
        self.split, self.count = split, self.SIZES[split]
        self.classes = ["cat", "dog"]
        self.labels: Any = np.arange(self.count) % 2

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.fromarray(picture(100 * len(self.split) + i)), int(self.labels[i])


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], None]:
    """Return what makes a class one of torchvision's data sets, called Fake."""
    monkeypatch.setattr(torchvision.datasets, "__all__", ["Fake"])
    monkeypatch.setattr(Fake, "built", [])
    return lambda kind: monkeypatch.setattr(torchvision.datasets, "Fake", kind, raising=False)


def named(items: list[Item]) -> list[str]:
    return [str(item.target) for item in items]


def test_a_set_of_train_and_test_is_downloaded_once_and_has_its_val_held_out(
    offer: Callable[[type], None],
) -> None:
    offer(Fake)
    splits = list_items("fake", RECIPE, CACHE)
    assert ("train", True) in Fake.built  # a download leaves alone what is there
    assert ("train", False) not in Fake.built
    assert not {split for split, _ in Fake.built} & {"unlabeled", "train+unlabeled"}
    assert named(splits["test"]) == [f"Fake/test/[{i}]" for i in range(3)]
    held = named(splits["train"]) + named(splits["val"])
    assert sorted(held) == [f"Fake/train/[{i}]" for i in range(8)]
    assert splits["val"]
    for item in splits["train"] + splits["val"] + splits["test"]:
        assert item.label == ("cat" if item.target.index % 2 == 0 else "dog")
        assert np.array_equal(read_picture(item.target), item.target.dataset[item.target.index][0])


def test_splits_by_other_names(offer: Callable[[type], None]) -> None:
    offer(type("Fake", (Fake,), {"SIZES": {"trainval": 4, "validation": 2}}))
    splits = list_items("fake", RECIPE, CACHE)
    assert {split: sorted(named(items)) for split, items in splits.items()} == {
        "train": [f"Fake/train/[{i}]" for i in range(4)],
        "val": [f"Fake/val/[{i}]" for i in range(2)],
        "test": [f"Fake/val/[{i}]" for i in range(2)],
    }


class Halves(Fake):
    """A set that says `train` as CIFAR10 does, and offers a small form as Places365 does."""

    def __init__(self, root: str, train: bool = True, small: bool = False) -> None:
        assert small
        super().__init__(root, "train" if train else "test", download=True)


class Whole(Fake):
    """A set without splits."""

    def __init__(self, root: str, download: bool = False) -> None:
        super().__init__(root, "train", download)


def test_a_set_with_a_train_flag_and_one_without_splits(offer: Callable[[type], None]) -> None:
    offer(Halves)
    splits = list_items("fake", RECIPE, CACHE)
    assert sorted(named(splits["train"] + splits["val"])) == [f"Fake/train/[{i}]" for i in range(8)]
    assert len(splits["test"]) == 3
    offer(Whole)
    splits = list_items("fake", RECIPE, CACHE)
    assert sorted(named(splits["train"] + splits["val"])) == [f"Fake/[{i}]" for i in range(8)]
    assert splits["test"] == splits["val"]


@pytest.mark.parametrize(
    ("attribute", "values", "classes", "expected"),
    [
        ("targets", torch.tensor([0, 1, 1]), ["a", "b"], ["a", "b", "b"]),
        ("targets", [2, 0, 1], None, ["2", "0", "1"]),
        ("labels", np.array([1, 1, 0], np.uint8), ["a", "b"], ["b", "b", "a"]),
        ("_labels", [0, 1, 0], ["/a/airfield", "b"], ["a-airfield", "b", "a-airfield"]),
        ("_samples", [("x.jpg", 1), ("y.jpg", 0), ("z.jpg", 1)], [("tench", "Tinca"), ("dog",)], None),
        ("targets", [0, 1], ["a", "b"], ["", "", ""]),  # of something else than pictures
        ("nothing", None, ["a", "b"], ["", "", ""]),
        ("targets", [f"labels/{i}.txt" for i in range(3)], None, ["", "", ""]),  # as Kitti and VOC have it
    ],
)  # fmt: skip
def test_labels_wherever_a_set_keeps_them(
    attribute: str, values: Any, classes: Any, expected: list[str] | None, offer: Callable[[type], None]
) -> None:
    class Kept(Whole):
        SIZES = {"train": 3}  # noqa: RUF012

        def __init__(self, root: str, download: bool = False) -> None:
            super().__init__(root, download)
            del self.labels
            setattr(self, attribute, values)
            self.classes = classes

    offer(Kept)
    tree = open_named("fake", CACHE)
    labels = {entry.index: name.rpartition("/")[0] for name, entry in tree.items()}
    assert [labels[i] for i in range(3)] == (expected or ["dog", "tench", "dog"])


def test_what_is_no_picture_or_needs_a_missing_library_is_one_sentence(offer: Callable[[type], None]) -> None:
    class Frames(Whole):
        def __getitem__(self, i: int) -> tuple[Any, int]:
            return torch.zeros(20, 1, 64, 64), 0

    class Needy(Whole):
        def __init__(self, root: str, download: bool = False) -> None:
            raise ImportError("No module named 'scipy'")

    offer(Frames)
    entry = next(iter(open_named("fake", CACHE).values()))
    assert "Fake/[0]: not an image" in refusal(entry.read)
    offer(Needy)
    assert "No module named 'scipy'" in refusal(open_named, "fake", CACHE)


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack_npz()

    def fail(*_: Any) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(sources, "_class_names", fail)
    with pytest.raises(TypeError, match="a bug"):
        open_archive(archive)


def test_pictures_are_equal_by_place_alone() -> None:
    assert Blob(Path("a"), "x", 0, 1, np.zeros(1)) == Blob(Path("a"), "x", 0, 1, np.ones(1))
    assert Entry("a", 0, None) == Entry("a", 0, 1) != Entry("a", 1, 1)
    assert len({Entry("a", 0, []), Entry("a", 0, [])}) == 1  # can be hashed, whatever the data set


@pytest.mark.parametrize("last", [tarfile.SYMTYPE, tarfile.DIRTYPE, None])
def test_a_tar_that_ends_otherwise_is_whole(last: bytes | None) -> None:
    Image.fromarray(picture(0)).save("a.png")
    with tarfile.open("set.tar", "w") as archive:
        archive.add("a.png")
        end = archive.offset
        if last is not None:
            member = tarfile.TarInfo("z")
            member.type = last
            archive.addfile(member)
    if last is None:  # no closing blocks
        Path("set.tar").write_bytes(Path("set.tar").read_bytes()[:end])
    assert list(open_archive(Path("set.tar"))) == ["a.png"]
