"""What is settled before a run, and what is recorded of it."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import CPU, TINY
from PIL import Image
from torch import nn

import train
from config import Recipe, UserError, make_recipe
from data import ImageSet, Loading, find_loading
from dataset import scenes
from dataset.folders import Halves, Item, Splits, list_items
from dataset.streams import Stream
from models import fit_networks
from runtime import distributed, run_folder
from runtime.run_folder import read_run
from training import setup
from training.gan import build_gan
from training.loop import State

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the trained run that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_a_resume_adds_to_the_record(run: Path) -> None:
    first = read_run(run)
    train.main(run=str(run), resume=True, epochs=3, device="cpu")
    record = read_run(run)
    assert run_folder.saved_epochs(run) == [1, 2, 3]
    assert record.recipe.epochs == 3
    assert (record.data, record.mean_ab, record.versions) == (first.data, first.mean_ab, first.versions)
    assert [entry["images"] for entry in record.resumed] == [first.images]
    assert first.overrides == {"epochs": 2, "size": 32, "batch_size": 4, "save_every": 1, "ngf": 4, "ndf": 4,
                               "log_every": 1, "samples": 2}  # fmt: skip
    assert record.overrides == {**first.overrides, "epochs": 3}
    assert fit_networks(make_recipe("coco", record.overrides)) == record.recipe


def test_a_run_of_an_older_version_goes_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((run / "recipe.json").read_text())
    del record["overrides"], record["recipe"]["metric"], record["recipe"]["spectral_norm"]  # newer fields
    record["fingerprints"]["train"] = "other"
    (run / "recipe.json").write_text(json.dumps(record))
    train.main(run=run, resume=True, epochs=3, device="cpu")
    assert read_run(run).overrides is None  # of what was not recorded nothing is known
    assert run_folder.saved_epochs(run) == [1, 2, 3]
    assert "the images have changed" in capsys.readouterr().out


@pytest.mark.parametrize(("key", "value"), [("lr_d", 1e-5), ("precision", "fp32"), ("save_every", 3)])
def test_what_a_resume_may_change(trained: Path, pictures: Path, key: str, value: object) -> None:
    plan = setup.go_on(trained, read_run(trained), "coco", str(pictures), {"size": 32, key: value}, None)
    assert (plan.folder, plan.data, plan.recipe.epochs) == (trained, str(pictures), 2)
    assert getattr(plan.recipe, key) == value


@pytest.mark.parametrize(
    ("name", "data", "given", "key"),
    [
        ("anime", None, {}, "recipe"), (None, None, {"size": 64}, "size"),
        (None, None, {"pretrain_epochs": 1}, "pretrain_epochs"), (None, None, {"norm_d": "none"}, "norm_d"),
    ],
)  # fmt: skip
def test_what_a_resume_may_not_change(
    trained: Path, name: str | None, data: str | None, given: dict[str, Any], key: str
) -> None:
    with pytest.raises(UserError, match=f"was trained with {key} .*; a resume cannot make it "):
        setup.go_on(trained, read_run(trained), name, data, given, None)


def described(
    recipe: str, loading: Loading | None = None, labels: str = "x", halves: Halves | None = None,
    has_val: bool = False, **fields: Any,
) -> dict[str, Any]:  # fmt: skip
    """Return what is announced of a recipe at 64 px."""
    made = fit_networks(make_recipe(recipe, {"size": 64, "load_size": 64, **fields}))
    items = [Item(Path(f"{i}.png"), f"{i}", label=label) for i, label in enumerate(labels)]
    sizes = {"generator": 1000} | ({"discriminator": 2000} if made.is_adversarial else {})
    splits = Splits(train=items, val=items[:1])
    splits.halves, splits.has_val = halves, has_val
    return setup.describe(made, "photos", splits, loading or Loading(64, "crop", "none", False), sizes)


def test_what_is_announced() -> None:
    said = described("coco", epochs=3)
    assert (said["recipe"], said["epochs"]) == ("coco, L -> ab at 64 px", "3")
    assert said["generator"] == "unet, 1,000 parameters to train"
    assert said["discriminator"] == "patch30, 2,000 parameters"
    assert said["data"] == "photos: 1 to train, 1 to validate (pictures)"
    both = {"pretrain_epochs": 4, "half_epochs": 2, "depth": 4}
    said = described("coco", epochs=9, **both)["epochs"]
    assert said == "9, the first 2 at 32 px, the first 4 without the discriminator"
    said = described("places-resnet", labels="abca")
    assert "none" in said["discriminator"]
    assert said["data"] == "photos: 4 to train, 1 to validate (pictures, 3 classes)"
    for pair, kind in {
        "AB": "pairs, colour left", "BA": "pairs, colour right", "none": "pictures, lines drawn from them"
    }.items():  # fmt: skip
        assert described("anime", Loading(64, "crop", pair, True))["data"].endswith(f"({kind})")

    sketches = Loading(64, "crop", "none", True)
    for loading, kind in (
        (sketches, "pairs, colour in Colour/, sketches in lines/; val/ is used"),
        (None, "pictures in Colour/; those in lines/ are not needed; val/ is used"),
    ):
        said = described("anime", loading, halves=("Colour", "lines"), has_val=True)
        assert said["data"].endswith(f"({kind})")


def test_what_was_left_out_stands_below_what_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    plan = setup.Setup(Path("run"), make_recipe("coco", {}), "photos", {}, None)
    plan.announce({"data": "photos"}, False, ["left out: this", "left out: that"])
    assert capsys.readouterr().out.splitlines()[-2:] == ["left out: this", "left out: that"]


def noise(count: int, colourful: int, spot: bool = False) -> ImageSet:
    """Return pictures of which the first few are colourful, or have a `spot` of colour, the others sepia."""
    gray = np.random.default_rng(0).integers(0, 256, (4, 4, 1), np.uint8).repeat(8, 0).repeat(8, 1)
    sepia = (gray * np.array([1.0, 0.85, 0.7])).astype(np.uint8)
    hues = np.random.default_rng(1).integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    if spot:  # 6 %
        hues[4:], hues[:4, 16:] = sepia[4:], sepia[:4, 16:]
    pixels = np.concatenate([hues if i < colourful else sepia for i in range(count)]).ravel()
    index = np.array([[i * hues.size, 32, 32] for i in range(count)])
    return ImageSet([f"p{i}" for i in range(count)], [""] * count, pixels, index, 3, [], 0, "key")


def test_pictures_without_colour_are_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no colour in the 64 training pictures looked at"):
        setup.require_colour(noise(100, 0))
    setup.require_colour(noise(4, 3))
    assert capsys.readouterr().out == ""
    setup.require_colour(noise(8, 1))
    said = capsys.readouterr().out
    begun = "WARNING: 7 of 8 training pictures looked at have little or no colour"
    assert said.startswith(f"{begun}: p1, p2, p3, p4, p5 and 2 more; take")
    setup.require_colour(noise(8, 8, spot=True))  # as of comics with a spot colour
    said = capsys.readouterr().out
    assert "WARNING: 8 of 8 training pictures" in said
    assert "min_colorfulness" not in said  # which would leave all out


def test_a_new_run_on_pictures_without_colour_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gray").mkdir()
    for i in range(5):
        Image.fromarray(np.full((40, 40, 3), 40 * i, np.uint8)).save(tmp_path / "gray" / f"{i}.png")
    with pytest.raises(UserError, match="no colour in the 4 training pictures"):
        train.main(recipe="coco", data="gray", epochs=1, **TINY)


def test_sketches_of_another_shape_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, width in (("color", 40), ("sketch", 60)):
        for i in range(4):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(scenes.draw(i, 64)[0][:40, :width]).save(tmp_path / "data" / folder / f"{i}.png")
    recipe = fit_networks(make_recipe("anime", {"size": 64, "val_fraction": 0.5}))
    plan = setup.Setup(tmp_path / "run", recipe, "data", {}, None)
    items = list_items("data", recipe, tmp_path / "cache")
    plan.load_splits(items, find_loading(recipe, items["train"]))
    said = capsys.readouterr().out
    assert "WARNING: 1 sketches of train have another shape than their pictures and are cut around their" in said
    assert "sketches of val" in said


def test_a_batch_of_all_processes_is_shared_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.distributed.world", lambda: 2)
    recipe = fit_networks(make_recipe("coco", {"size": 64}))
    plan = setup.Setup(Path("run"), recipe, "data", {}, None)
    assert setup.complete(plan, 6, writes=True).recipe.batch_size == 3
    with pytest.raises(UserError, match=r"^--global-batch 5 cannot be shared among 2 processes$"):
        setup.complete(plan, 5, writes=True)
    with pytest.raises(UserError, match=r"^--batch-size is of each process .*: give one of them$"):
        setup.complete(replace(plan, given={"batch_size": 2}), 4, writes=True)


def test_long_pictures_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("train", "val"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for name, height in (("strip", 200), ("page", 100)):
            picture = np.resize(scenes.draw(1, 64)[0], (height, 40, 3))
            Image.fromarray(picture).save(tmp_path / f"data/{folder}/{folder}_{name}.png")
    recipe = fit_networks(make_recipe("coco", {"size": 32, "depth": 4}))
    items = list_items("data", recipe, tmp_path / "cache")
    setup.Setup(tmp_path / "run", recipe, "data", {}, None).load_splits(items, find_loading(recipe, items["train"]))
    said = capsys.readouterr().out
    for split in ("train", "val"):
        line = "of pictures longer than 3:1 the middle alone is used, so cut strips up; "
        assert said.count(f"{line}1 of {split} are so long, or just 3:1: {split}_strip\n") == 1


def test_what_decoding_has_shown_of_a_set_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(9):
        path = Path("data", "val" if i > 5 else "train", f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scenes.draw(i, 64)[0]).save(path)
    recipe = fit_networks(make_recipe("coco", {"size": 64}))
    plan = setup.Setup(Path("run"), recipe, "data", {}, None)

    def said(plan: setup.Setup = plan) -> str:
        items = list_items("data", recipe, Path("cache"))
        plan.load_splits(items, find_loading(recipe, items["train"]))
        return capsys.readouterr().out

    assert "checked        9 pictures: nothing found; more: python data.py --check data" in said()
    Path("data/train/twin.png").write_bytes(Path("data/train/1.png").read_bytes())
    Path("data/train/bad.png").write_bytes(b"no image")
    Path("data/val/leak.png").write_bytes(Path("data/train/2.png").read_bytes())
    told = "11 pictures: 1 cannot be read, 1 are there twice, 1 to validate on are trained on, too; more"
    assert [told in said() for _ in range(2)] == [True, True]  # decoded, then cached
    other = replace(recipe, pair="none", pair_folders="one/the other")
    assert "--check data --pair none --pair-folders one 'the other'" in said(replace(plan, recipe=other))


# several processes


def test_all_processes_have_the_memory_format_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = setup.Setup(Path("run"), make_recipe("coco", {}), "photos", {}, None)
    monkeypatch.setattr(distributed, "gather", lambda own: [own if isinstance(own, dict) else "channels_last", own])
    assert plan.settle_format(nn.Identity(), 1, CPU, "fp32") == "channels_last"  # measured here: contiguous


def test_an_epoch_of_a_stream_is_ended_by_as_many_processes_as_began_it() -> None:
    state = State("x", {}, CPU, epoch=2, step=3, processes=2)
    with pytest.raises(UserError, match=r"^it stopped within epoch 2 of a stream, which 2 processes shared: finish"):
        setup.require_order(state, is_stream=True)
    setup.require_order(state, is_stream=False)
    setup.require_order(replace(state, step=0), is_stream=True)
    setup.require_order(replace(state, processes=1), is_stream=True)


@pytest.mark.parametrize("pays", [False, True])
def test_networks_are_compiled_as_asked_as_before_or_where_it_pays(
    pays: bool, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "pays_to_compile", lambda device, precision, steps: pays and steps == 200 * 25)
    monkeypatch.setattr(setup, "can_compile", lambda device: True)
    for asked, expected in (("auto", pays), ("true", True), ("false", False)):
        plan = setup.Setup(Path("run"), make_recipe("coco", {"compile": asked, "epochs": 200}), "photos", {}, None)
        assert plan.settle_compile(25 * plan.recipe.batch_size, CPU, "fp32") == expected
        stored = replace(read_run(trained), compiled=not pays)
        again = replace(plan, stored=stored)
        assert again.settle_compile(16, CPU, "fp32") == (not pays if asked == "auto" else expected)
        with monkeypatch.context() as patch:
            patch.setattr(setup, "can_compile", lambda device: False)
            assert again.settle_compile(16, CPU, "fp32") == (asked == "true")


@pytest.mark.parametrize(
    ("key", "theirs"), [("epoch", 1), ("batch", 8), ("init", "x.ts"), ("saved state", False), ("steps", 5)]
)
def test_processes_that_would_not_go_on_alike_end(
    trained: Path, key: str, theirs: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where one sees no state yet, or a damaged one."""
    stored = read_run(trained)
    plan = setup.Setup(trained, stored.recipe, stored.data, {}, None, stored)
    monkeypatch.setattr(distributed, "gather", lambda own: [own, {**own, key: theirs}])
    state = build_gan(stored.recipe, CPU, "fp32").state()
    with pytest.raises(UserError, match=f"^process 1 has {key} {theirs}, process 0 has .*: start all with the same"):
        plan.restore(state)


UNLIKE = {"resume": True, "precision": "bf16", "compile": "true", "run folder": "/other/run", "device": "cuda"}


def test_processes_whose_streams_differ_end(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = fit_networks(make_recipe("coco", {"size": 32}))
    plan = setup.Setup(Path("run"), recipe, "pipe:x", {}, None)
    items = Splits(train=[], val=[])
    items.stream = Stream(("pipe:cat a.tar",), 40, frozenset())
    monkeypatch.setattr(setup, "load_images", lambda *_: noise(4, 4))
    for key, theirs in (("shard 0", "pipe:cat b.tar"), ("number of shards", 2), ("pictures in an epoch", 44)):
        monkeypatch.setattr(distributed, "gather", lambda own, key=key, theirs=theirs: [own, {**own, key: theirs}])
        with pytest.raises(UserError, match=f"^process 1 has {key} "):
            plan.load_splits(items, Loading(32, "crop", "none", False))


@pytest.mark.parametrize(("key", "theirs"), UNLIKE.items())
def test_processes_that_were_started_unlike_end(key: str, theirs: object, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = setup.Setup(Path("run"), make_recipe("coco", {}), "photos", {}, None)
    monkeypatch.setattr(distributed, "gather", lambda own: [own, {**own, key: theirs}])
    with pytest.raises(UserError, match=f"^process 1 has {key} {theirs}, process 0 has "):
        plan.settle_format(nn.Identity(), 1, CPU, "fp32")


# fields without effect


@pytest.mark.parametrize(
    ("recipe", "given", "need"),
    [
        ("unet32", {"norm_d": "none"}, "a discriminator"), ("unet32", {"ndf": 8}, "a discriminator"),
        ("coco", {"label_real": 0.9, "gan_mode": "hinge"}, "gan_mode vanilla or lsgan"),
        ("coco", {"lambda_gan": 0.0, "spectral_norm": True}, "a discriminator"),
        ("coco", {"pretrain_lr": 1e-3}, "pretrain_epochs"), ("coco", {"grain": 0.9}, "grain_p above 0"),
        ("coco", {"warmup": 0.1}, "schedule cosine"), ("coco", {"line_share": 0.3}, "input gray"),
        ("coco", {"lr_encoder": 1e-5}, "encoder"), ("coco-resnet", {"dropout": 0.5}, "U-Net"),
        ("coco", {"anime_share": 0.5}, "lambda_perceptual"),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_refused(recipe: str, given: dict[str, Any], need: str) -> None:
    made = fit_networks(make_recipe(recipe, given))
    with pytest.raises(UserError, match=rf"has no effect here: it needs .*{need}.*; leave it out"):
        setup.require_effect(made, given)
    setup.require_effect(made, {key: getattr(Recipe("x"), key) for key in given})  # the default does no harm
    setup.require_effect(made, {})


def test_what_has_an_effect_is_taken() -> None:
    for recipe, given in (
        ("coco", {"norm_d": "none", "label_real": 0.9, "lr_d": 1e-5, "dropout": 0.1, "grain": 0.9, "grain_p": 0.1}),
        ("photo", {"warmup": 0.1, "lr_encoder": 1e-5}), ("manga", {"anime_share": 0.1, "lambda_gan": 0.1}),
        ("coco-resnet", {"pretrain_lr": 1e-3, "lr_encoder": 1e-5, "gan_mode": "hinge"}),
    ):  # fmt: skip
        made = fit_networks(make_recipe(recipe, given))
        assert setup.require_effect(made, given) is None, recipe  # raises nothing


def test_a_field_without_effect_ends_the_call(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="norm_d none has no effect here"):
        train.main(recipe="unet32", data="demo", set_=["norm_d=none"])
    assert list(tmp_path.iterdir()) == []


# a resume where the data has moved


def test_a_run_whose_data_has_moved_goes_on(run: Path, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "disk")
    for path in (tmp_path / "disk").rglob("*.*"):
        os.utime(path, (1, 1))  # as a plain copy has other times
    record = json.loads((run / "recipe.json").read_text())
    record["data"] = "/old/disk"
    (run / "recipe.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"^no /old/disk, on which .* its new place with --data$"):
        train.main(run=run, resume=True, epochs=3, device="cpu")
    train.main(run=run, resume=True, epochs=3, data="disk", device="cpu")
    assert read_run(run).data == str(tmp_path / "disk")
    train.main(run=run, resume=True, epochs=4, device="cpu")
    assert run_folder.saved_epochs(run) == [1, 2, 3, 4]


def test_a_run_does_not_go_on_with_other_data(run: Path, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "disk")
    next((tmp_path / "disk").rglob("*.PNG")).unlink()
    before = (run / "recipe.json").read_bytes()
    with pytest.raises(
        UserError, match=r"^\S+/disk does not hold the images of \S+, with which .* was trained; .*--init"
    ):
        train.main(run=run, resume=True, epochs=3, data="disk", device="cpu")
    assert (run / "recipe.json").read_bytes() == before
    assert run_folder.saved_epochs(run) == [1, 2]


def test_one_picture_is_too_few_for_a_norm_of_one_pixel() -> None:
    setup.require_batch(fit_networks(make_recipe("coco", {"size": 64})), 1)
    for name in ("manga", "cgan"):  # in the generator, in the discriminator
        recipe = fit_networks(make_recipe(name, {} if name == "cgan" else {"size": 64}))
        setup.require_batch(recipe, 2)
        with pytest.raises(UserError, match="1 training picture is too few"):
            setup.require_batch(recipe, 1)


def test_every_process_has_a_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.distributed.world", lambda: 2)
    setup.require_batch(make_recipe("coco", {"batch_size": 6}), 12)
    with pytest.raises(UserError, match="12 training pictures are too few for 2 processes with batches of 8: take a"):
        setup.require_batch(make_recipe("coco", {"batch_size": 8}), 12)


def test_a_share_of_one_picture_is_too_few_for_a_norm_of_one_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.distributed.world", lambda: 4)
    plan = setup.Setup(Path("run"), make_recipe("manga", {"size": 64}), "photos", {}, None)
    assert setup.complete(plan, 8, writes=False).recipe.batch_size == 2
    with pytest.raises(UserError, match="batch_size must be 2 or more"):
        setup.complete(plan, 4, writes=False)
