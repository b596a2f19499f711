"""checkpoint.py: whole files, safe loading, the right epoch and run, and an error for everything else."""

import json
import os
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_models import Glance

import models
from config import Recipe
from evaluation.scores import best_epoch, choose_epochs
from imaging import color
from inference import checkpoint
from inference.checkpoint import infer, load_colorizer, load_exported
from models import GENERATORS, SelfAttention
from runtime import atomic, run_folder
from runtime.device import pick_device
from runtime.run_folder import epoch_path, newest_run, read_run

CPU = torch.device("cpu")
RUN = Path("runs/x")
ABOUT = {"format": 1, "version": "0.2.0", "epoch": 3, "recipe": {"input": "L"}}
FOREIGN = (
    "hello",
    "null",
    "[1]",
    '{"format": 1}',
    '{"format": 2}',
    '{"format": 1, "version": "1", "recipe": 3}',
)
FIELDS = asdict(Recipe("x", size=32, ngf=4, depth=3))
RECORD = {"recipe": FIELDS, "data": "demo", "loading": {}, "fingerprints": {}, "mean_ab": [0, 0]}


def payload() -> dict[str, Any]:
    return {"weights": torch.arange(5.0), "nested": {"epoch": 3, "names": ["a", "b"]}}


def save_epochs(*epochs: int) -> None:
    for epoch in epochs:
        atomic.save(epoch_path(RUN, epoch), {})


def trained_generator(**fields: Any) -> tuple[dict[str, Any], torch.nn.Module]:
    """Return a recipe's fields and a generator whose weights and running statistics are not the initial."""
    torch.manual_seed(0)
    recipe = {**FIELDS, **fields}
    colorizer = checkpoint.build_colorizer(recipe)
    x = torch.rand(4, color.CHANNELS[recipe["input"]], 32, 32)
    colorizer.generator(x)
    return recipe, colorizer.generator


def test_save_and_load() -> None:
    path = Path("deep/er/x.pt")
    atomic.save(path, payload())
    back = atomic.load(path)
    assert torch.equal(back.pop("weights"), payload()["weights"])
    assert back == {"nested": payload()["nested"]}
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("write", [atomic.save, atomic.write_json])
def test_writing_is_whole_or_not_at_all(write: Any) -> None:
    path = Path("x.file")
    write(path, {"epoch": 1})
    before = path.read_bytes()
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        write(path, {"a": list(range(1000)), "b": lambda: None})
    assert path.read_bytes() == before


def test_write_json() -> None:
    atomic.write_json(Path("x.json"), {"a": [1, 2]})
    assert json.loads(Path("x.json").read_text()) == {"a": [1, 2]}
    assert list(Path().iterdir()) == [Path("x.json")]


def contents() -> dict[str, bytes]:
    atomic.save(Path("whole.pt"), payload())
    torch.save([1, 2], "list.pt")
    whole = Path("whole.pt").read_bytes()
    return {
        "whole": whole,
        "empty": b"",
        "text": b"hello",
        "json": b"{}",
        "binary": bytes(range(256)),
        "cut": whole[: len(whole) // 2],
        "damaged": whole[:60] + b"\xff" * 20 + whole[80:],
        "a list": Path("list.pt").read_bytes(),
        "zip": b"PK\x03\x04",
        "jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
    }


@pytest.mark.parametrize(
    "name", ["empty", "text", "json", "binary", "cut", "damaged", "a list", "zip", "jpeg"]
)
def test_load_refuses_what_is_no_checkpoint(name: str) -> None:
    path = Path("x.pt")
    path.write_bytes(contents()[name])
    with pytest.raises(ValueError, match=r"^x.pt is not a checkpoint of this project, or it is damaged$"):
        atomic.load(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_load_refuses_damaged_bytes_in_one_sentence() -> None:
    path, rng, messages = Path("x.pt"), np.random.default_rng(0), []
    whole = np.frombuffer(contents()["whole"], np.uint8)
    for _ in range(150):
        damaged = whole.copy()
        damaged[rng.integers(0, len(whole), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            atomic.load(path)
        except ValueError as error:
            messages.append(str(error))
    assert set(messages) == {"x.pt is not a checkpoint of this project, or it is damaged"}


def test_load_names_a_missing_file() -> None:
    with pytest.raises(ValueError, match=r"^no checkpoint gone.pt$"):
        atomic.load(Path("gone.pt"))


class Bomb:
    """Touches a file when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_load_runs_no_code_from_the_file(form: str) -> None:
    path = Path("x.pt")
    if form == "torch":
        torch.save({"weights": Bomb()}, path)
    else:
        path.write_bytes(pickle.dumps({"weights": Bomb()}))
    with pytest.raises(ValueError, match="is not a checkpoint"):
        atomic.load(path)
    assert not Path("exploded").exists()


def test_saved_epochs_are_in_numerical_order() -> None:
    save_epochs(5, 20, 9999, 12345, 100)
    for name in ("state.pt", "epoch_x.pt", "epoch_0007.pt.tmp"):
        (RUN / "checkpoints" / name).touch()
    assert run_folder.saved_epochs(RUN) == [5, 20, 100, 9999, 12345]
    assert epoch_path(RUN, 5) == RUN / "checkpoints/epoch_0005.pt"
    assert run_folder.state_path(RUN) == RUN / "checkpoints/state.pt"


@pytest.mark.parametrize(
    ("epoch", "all_epochs", "chosen"), [(None, False, [10]), (5, False, [5]), (None, True, [5, 10])]
)
def test_choose_epochs(epoch: int | None, all_epochs: bool, chosen: list[int]) -> None:
    save_epochs(10, 5)
    atomic.write_json(RUN / "recipe.json", RECORD)
    assert choose_epochs(RUN, epoch, all_epochs) == chosen


def test_choose_epochs_errors() -> None:
    atomic.write_json(RUN / "recipe.json", RECORD)
    with pytest.raises(ValueError, match=r"^no saved epoch in runs/x; .*train.py --resume --run runs/x$"):
        choose_epochs(RUN, None, False)
    save_epochs(10, 5)
    with pytest.raises(ValueError, match=r"^epoch 7 is not saved in runs/x; saved: 5 10$"):
        choose_epochs(RUN, 7, False)


@pytest.mark.parametrize("epoch", [5, "10", 7, "best", "soon", 0])
def test_all_epochs_and_one_are_not_chosen_together(epoch: str | int) -> None:
    save_epochs(10, 5)
    atomic.write_json(RUN / "recipe.json", RECORD)
    with pytest.raises(
        ValueError, match=r"^--all-epochs and --epoch ask for different things; give one of them$"
    ):
        choose_epochs(RUN, epoch, True)


@pytest.mark.parametrize("epoch", ["10", "0010", 10])
def test_an_epoch_may_come_as_text(epoch: str | int) -> None:
    save_epochs(10, 5)
    atomic.write_json(RUN / "recipe.json", RECORD)
    assert choose_epochs(RUN, epoch, False) == [10]


@pytest.mark.parametrize("epoch", ["0", 0, "-5", -5, "soon", "5.0", "", "Best", " 5"])
def test_what_is_no_epoch(epoch: str | int) -> None:
    save_epochs(5)
    atomic.write_json(RUN / "recipe.json", RECORD)
    with pytest.raises(ValueError, match=rf"^an epoch is a number from 1, or best; got {epoch}$"):
        choose_epochs(RUN, epoch, False)


def write_best(**changes: Any) -> dict[str, Any]:
    """Save epochs 5, 10 and 15, and scores by which 10 is the best; returns the scores."""
    save_epochs(5, 10, 15)
    atomic.write_json(RUN / "recipe.json", RECORD)
    rows: dict[str, Any] = {"gray": {"ssim": 0.9, "fid": "unavailable: no pictures"}}
    for epoch in (5, 10, 15):
        stamp = run_folder.stamp(RUN, epoch, "key")
        rows[f"epoch_{epoch:04d}"] = {"ssim": 0.5, "fid": "unavailable: no pictures", "stamp": stamp}
    stored = {
        "metric": "ssim",
        "best": {"ssim": "epoch_0010", "psnr_db": "epoch_0005"},
        "rows": rows,
        **changes,
    }
    atomic.write_json(RUN / "scores.json", stored)
    return stored


AGAIN = r"python eval\.py --all-epochs --run runs/x$"


def test_the_best_epoch_is_that_of_the_scores() -> None:
    write_best()
    assert best_epoch(RUN) == 10
    assert choose_epochs(RUN, "best", False) == [10]
    assert choose_epochs(RUN, None, False) == [15]
    write_best(metric="psnr_db")
    assert best_epoch(RUN) == 5


def test_no_scores_and_no_best_epoch() -> None:
    save_epochs(5)
    atomic.write_json(RUN / "recipe.json", RECORD)
    with pytest.raises(ValueError, match=rf"^no scores in runs/x, so no best epoch; score first: {AGAIN}"):
        choose_epochs(RUN, "best", False)


@pytest.mark.parametrize(
    ("metric", "reason"), [("fid", "unavailable: no pictures"), ("lpips_alex", "not scored")]
)
def test_no_best_epoch_by_a_metric_that_is_missing(metric: str, reason: str) -> None:
    write_best(metric=metric)
    with pytest.raises(
        ValueError, match=rf"^no best epoch by {metric} in runs/x: {reason}; score again: {AGAIN}"
    ):
        best_epoch(RUN)


@pytest.mark.parametrize("change", ["weights", "gone", "format"])
def test_scores_that_are_older_than_the_best_checkpoint(change: str) -> None:
    write_best()
    path = epoch_path(RUN, 10)
    if change == "gone":
        path.unlink()
    else:
        atomic.save(path, {"weights": torch.ones(3)} if change == "weights" else {"epoch": 1})
    with pytest.raises(ValueError, match=rf"^the scores in runs/x are older than its checkpoints; .*{AGAIN}"):
        best_epoch(RUN)


DAMAGED_SCORES = [
    b"", b"{", b"[]", b"3", b"null", b"{}", b"\xff\xfe", b'{"metric": "ssim"}',
    b'{"metric": "ssim", "best": {"ssim": "epoch_0010"}, "rows": {}}',
    b'{"metric": "ssim", "best": {"ssim": "epoch_0010"}, "rows": {"epoch_0010": {}}}',
    b'{"metric": "ssim", "best": {"ssim": "epoch_0010"}, "rows": {"epoch_0010": {"stamp": 3}}}',
    b'{"metric": "ssim", "best": {"ssim": "soon"}, "rows": {"soon": {"stamp": ""}}}',
    b'{"metric": "ssim", "best": {"ssim": 10}, "rows": {"epoch_0010": {"stamp": ""}}}',
    b'{"metric": ["ssim"], "best": {"ssim": "epoch_0010"}, "rows": {}}',
    b'{"metric": "ssim", "best": {}, "rows": []}',
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED_SCORES)
def test_damaged_scores_name_no_best_epoch(content: bytes) -> None:
    write_best()
    (RUN / "scores.json").write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"^runs/x/scores\.json is damaged; delete it and score again: {AGAIN}"
    ):
        best_epoch(RUN)


def test_a_stamp_tells_checkpoints_apart_by_what_is_in_them() -> None:
    path = epoch_path(RUN, 5)
    atomic.save(path, {"weights": torch.zeros(4)})
    first = run_folder.stamp(RUN, 5, "key")
    assert first.startswith("key ")
    assert run_folder.stamp(RUN, 5, "").strip() == first.removeprefix("key ")
    os.utime(path, (1, 1))  # a copy of the run is scored as the run is
    assert run_folder.stamp(RUN, 5, "key") == first
    atomic.save(path, {"weights": torch.tensor([0.0, 0.0, 1.0, 0.0])})  # of the same length
    assert run_folder.stamp(RUN, 5, "key") != first
    path.write_bytes(b"hello")
    with pytest.raises(
        ValueError, match=r"epoch_0005\.pt is not a checkpoint of this project, or it is damaged$"
    ):
        run_folder.stamp(RUN, 5, "key")


def test_newest_run() -> None:
    with pytest.raises(ValueError, match=r"^no run in runs/; train one first: python train.py"):
        newest_run(Path("runs"))
    for i, name in enumerate(["b", "c", "a"]):
        path = Path("runs", name, "recipe.json")
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (i, i))
    Path("runs/empty").mkdir()
    assert newest_run(Path("runs")) == Path("runs/a")


def test_read_run() -> None:
    atomic.write_json(RUN / "recipe.json", RECORD)
    assert read_run(RUN) == RECORD


@pytest.mark.parametrize("content", ["", "{", "[]", '{"recipe": {}}', '{"data": "demo"}', b"\xff\xfe"])
def test_read_run_refuses_damaged_records(content: str | bytes) -> None:
    RUN.mkdir(parents=True)
    (RUN / "recipe.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"^runs/x/recipe.json is damaged"):
        read_run(RUN)


def test_read_run_refuses_other_folders() -> None:
    with pytest.raises(ValueError, match=r"^runs/x is not a run folder: it has no recipe.json$"):
        read_run(RUN)


@pytest.mark.parametrize(
    ("cuda", "mps", "device"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_pick_device_auto(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto") == torch.device(device)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "no device gpu: use auto, cpu, cuda or mps"),
        ("cpu:x", "no device cpu:x"),
        ("", "no device : use"),
        ("cuda:2", "cuda:2 asked for, but torch sees 2 CUDA devices; use --device cpu"),
        ("mps", "mps asked for, but torch does not see it on this machine; use --device cpu"),
    ],
)
def test_pick_device_errors(monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match=f"^{message}"):
        pick_device(name)


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"input": "sketch", "output": "rgb", "generator": "unet-reflect"}, {"norm_stats": "batch"},
        {"output": "Lab"}, {"input": "gray", "output": "rgb", "generator": "unet-att", "attention": 16},
        {"input": "gray+line", "output": "rgb", "generator": "unet-bn"}, {"input": "line", "output": "rgb"},
        {"generator": "resnet"}, {"generator": "unet32", "depth": 4}, {"generator": "resunet", "depth": 5},
        {"output": "rgb", "generator": "convgen", "depth": 5},
    ],
    ids=str,
)  # fmt: skip
def test_colorizer_round_trip(fields: dict[str, Any]) -> None:
    recipe, generator = trained_generator(**fields)
    checkpoint.save_generator(RUN, 4, recipe, generator)
    colorizer = load_colorizer(RUN, 4, CPU)
    assert (colorizer.size, colorizer.multiple) == (32, 2 ** recipe["depth"])
    assert (colorizer.x_kind, colorizer.y_kind) == (recipe["input"], recipe["output"])
    assert not any(module.training for module in colorizer.modules())
    assert not any(p.requires_grad for p in colorizer.parameters())
    for key, value in colorizer.generator.named_parameters():
        assert torch.equal(value, dict(generator.named_parameters())[key])
    x = torch.rand(2, color.CHANNELS[recipe["input"]], 32, 32)
    if recipe["norm_stats"] == "batch":
        for module in generator.modules():
            module.training = not isinstance(module, torch.nn.Dropout)
    else:
        generator.eval()
    with torch.no_grad():
        assert torch.equal(colorizer.generator(x), generator(x))


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("halvings", [0, 1, 2, 3, 4])
def test_attention_stands_at_its_side(size: int, halvings: int) -> None:
    side = size >> halvings if halvings else 0
    fields = {"size": size, "input": "gray", "output": "rgb", "generator": "unet-att", "attention": side}
    recipe = asdict(Recipe("x", ngf=4, depth=4, batch_size=2, **fields))
    torch.manual_seed(0)
    generator, seen = checkpoint.build_colorizer(recipe).generator, []
    (module,) = (m for m in generator.modules() if isinstance(m, SelfAttention))
    module.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape[2:])))
    with torch.no_grad():
        module.gamma.fill_(0.5)
    generator(torch.rand(2, 1, size, size)).square().mean().backward()
    assert seen == [(side or size >> 4,) * 2]
    for conv in (module.query, module.key):
        assert conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("generator", GENERATORS)
def test_narrow_pictures_fit_every_generator(generator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "DanbooruFeatures", Glance)
    given = {"input": "gray", "output": "rgb"} if generator.startswith("unet-") else {}
    size = 96 if generator == "unet224" else 64
    recipe = Recipe("x", ngf=4, size=size, batch_size=2, generator=generator, **given)
    colorizer = checkpoint.build_colorizer(asdict(recipe)).eval()
    with torch.no_grad():
        for shape in ((1, 400), (300, 7), (1, 1)):
            assert colorizer(torch.rand(1, 3, *shape)).shape == (1, 3, *shape)


def test_loading_leaves_the_random_state_alone() -> None:
    recipe, generator = trained_generator()
    checkpoint.save_generator(RUN, 1, recipe, generator)
    state = torch.get_rng_state()
    load_colorizer(RUN, 1, CPU)
    assert torch.equal(torch.get_rng_state(), state)


def test_load_colorizer_errors() -> None:
    with pytest.raises(ValueError, match=r"^no checkpoint runs/x/checkpoints/epoch_0003.pt$"):
        load_colorizer(RUN, 3, CPU)
    atomic.save(epoch_path(RUN, 3), {"format": "other", "weights": torch.zeros(1)})
    with pytest.raises(
        ValueError, match=r"epoch_0003.pt is not a generator in the format tinct-generator-2$"
    ):
        load_colorizer(RUN, 3, CPU)


def test_weights_that_do_not_fit_their_recipe() -> None:
    recipe, generator = trained_generator()
    checkpoint.save_generator(RUN, 3, {**recipe, "ngf": 8}, generator)
    with pytest.raises(ValueError, match=r"epoch_0003.pt is damaged: its weights do not fit its recipe$"):
        load_colorizer(RUN, 3, CPU)


def script(path: str, **files: str) -> torch.nn.Module:
    colorizer = checkpoint.build_colorizer(trained_generator()[0]).eval()
    torch.jit.script(colorizer).save(
        path, _extra_files={name.replace("_", "."): f for name, f in files.items()}
    )
    return colorizer


def test_load_exported() -> None:
    colorizer = script("x.ts", tinct_json=json.dumps(ABOUT))
    model, metadata = load_exported(Path("x.ts"), CPU)
    image = torch.randint(0, 256, (1, 3, 20, 30), dtype=torch.uint8)
    assert metadata == ABOUT
    assert not model.training
    with torch.no_grad():
        assert torch.equal(model(image), colorizer(image))


def test_infer_runs_without_gradients_and_gives_what_the_model_gives() -> None:
    colorizer = script("x.ts", tinct_json=json.dumps(ABOUT))
    image = torch.rand(2, 3, 20, 30, requires_grad=True)
    result = infer(load_exported(Path("x.ts"), CPU)[0], image)
    assert not result.requires_grad
    assert torch.equal(result, colorizer(image))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"no model x.ts; write one with: python export.py"),
        ("text", r"x.ts is not a TorchScript file, or it is damaged"),
        ("checkpoint", r"x.ts is not a TorchScript file, or it is damaged"),
        ("cut", r"x.ts is not a TorchScript file, or it is damaged"),
        ("foreign", r"x.ts is a TorchScript file, but not one written by export.py"),
        ("newer", r"x.ts is of the newer version 9.9.9 of this project; export it again with this one"),
        *((text, r"x.ts is a TorchScript file, but not one written by export.py") for text in FOREIGN),
        ("older", r"x.ts is of an older version of this project; export it again with this one"),
    ],
)
def test_load_exported_errors(kind: str, message: str) -> None:
    path = Path("x.ts")
    if kind == "text":
        path.write_bytes(b"hello")
    elif kind == "checkpoint":
        atomic.save(path, payload())
    elif kind in ("newer", "older"):
        about = {**ABOUT, "format": 2 if kind == "newer" else 0, "version": "9.9.9"}
        script("x.ts", tinct_json=json.dumps(about))
    elif kind.startswith("{") or kind in ("null", "[1]", "hello"):
        script("x.ts", tinct_json=kind)
    elif kind != "missing":
        script("x.ts")
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=f"^{message}$"):
        load_exported(path, CPU)
