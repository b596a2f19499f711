"""checkpoint.py: a generator comes back from its file, exported or not, and every other file is refused."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CPU, Glance, ask_for_an_unknown_operator, randomise, write_model
from torch import Tensor, nn

import models
from config import Recipe, UserError
from imaging import color
from inference import checkpoint
from inference.checkpoint import METADATA, ExportRecord, build_colorizer, infer, load_colorizer, load_exported
from models import GENERATORS, fit_networks
from runtime import atomic
from runtime.run_folder import epoch_path

RUN = Path("runs/x")
SMALL = Recipe("coco", size=32, ngf=4, depth=3)
RECORD = ExportRecord(SMALL, 3, "fp32")


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"work_size": 16}, {"norm_stats": "batch"}, {"output": "Lab", "generator": "resnet"},
        {"input": "gray", "output": "rgb", "generator": "unet-att", "attention": 16},
    ],
    ids=str,
)  # fmt: skip
def test_a_saved_generator_comes_back(fields: dict[str, Any]) -> None:
    recipe = replace(SMALL, **fields)
    torch.manual_seed(0)
    generator = randomise(build_colorizer(recipe).generator)
    checkpoint.save_generator(RUN, 4, recipe, generator)
    state = torch.get_rng_state()
    colorizer = load_colorizer(RUN, 4, CPU)
    assert torch.equal(torch.get_rng_state(), state)  # a training run does not notice
    assert (colorizer.size, colorizer.multiple) == (fields.get("work_size", 32), 2**recipe.depth)
    assert (colorizer.x_kind, colorizer.y_kind) == (recipe.input, recipe.output)
    assert not any(module.training for module in colorizer.modules())
    assert not any(p.requires_grad for p in colorizer.parameters())
    for module in generator.modules():
        module.training = recipe.norm_stats == "batch" and not isinstance(module, nn.Dropout)
    x = torch.rand(2, color.CHANNELS[recipe.input], 32, 32)
    with torch.no_grad():
        assert torch.equal(colorizer.generator(x), generator(x))


@pytest.mark.parametrize("generator", GENERATORS)
def test_narrow_pictures_fit_every_generator(generator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "DanbooruFeatures", Glance)
    given = {"input": "gray", "output": "rgb"} if generator.startswith("unet-") else {}
    size = 96 if generator == "unet224" else 64
    recipe = fit_networks(Recipe("x", ngf=4, size=size, batch_size=2, generator=generator, **given))
    colorizer = build_colorizer(recipe).eval()
    with torch.no_grad():
        for shape in ((1, 400), (300, 7), (1, 1)):
            assert colorizer(torch.rand(1, 3, *shape)).shape == (1, 3, *shape)


def test_what_is_no_saved_generator_is_refused() -> None:
    with pytest.raises(UserError, match=r"no checkpoint runs/x/checkpoints/epoch_0003.pt"):
        load_colorizer(RUN, 3, CPU)
    atomic.save(epoch_path(RUN, 3), {"format": "other", "weights": torch.zeros(1)})
    with pytest.raises(UserError, match=r"epoch_0003.pt is not a generator in the format tinct-generator-2"):
        load_colorizer(RUN, 3, CPU)
    checkpoint.save_generator(RUN, 3, replace(SMALL, ngf=8), build_colorizer(SMALL).generator)
    with pytest.raises(UserError, match=r"epoch_0003.pt is damaged: its weights do not fit its recipe"):
        load_colorizer(RUN, 3, CPU)


def script(told: str | None) -> nn.Module:
    """Write x.ts with some metadata; returns the eager module."""
    colorizer = build_colorizer(SMALL).eval()
    torch.jit.script(colorizer).save("x.ts", _extra_files={} if told is None else {METADATA: told})
    return colorizer


def test_an_exported_file_comes_back_with_its_record() -> None:
    record = asdict(RECORD)
    del record["recipe"]["ema"]  # an older version of the format has fewer fields
    record["recipe"]["sharpness"] = record["license"] = 3  # a newer one has more
    for told in (RECORD.to_json(), json.dumps(record)):
        colorizer = script(told)
        module, found = load_exported(Path("x.ts"), CPU)
        assert found == RECORD
    image = torch.rand(2, 3, 20, 30, requires_grad=True)
    result = infer(module, image)
    assert not module.training
    assert not result.requires_grad
    assert torch.equal(result, colorizer(image))


FOREIGN = "is a TorchScript file, but not one written by export.py$"
OURS = "x.ts is not as export.py writes it"
DAMAGED = "is not a TorchScript file, or it is damaged"


def told(**changes: Any) -> Callable[[Path], Any]:
    fields = {key: value for key, value in {**asdict(RECORD), **changes}.items() if value is not None}
    return lambda path: script(json.dumps(fields))


def damage(path: Path) -> None:
    content = bytearray(write_model(path).read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = bytes(3000)
    path.write_bytes(content)


MODELS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, "no model x.ts; write one with: python export.py"),
    "empty": (lambda path: path.write_bytes(b""), DAMAGED),
    "checkpoint": (lambda path: atomic.save(path, {"a": torch.zeros(1)}), DAMAGED),
    "cut": (lambda path: path.write_bytes(write_model(path).read_bytes()[:5000]), DAMAGED),
    "damaged": (damage, DAMAGED),
    "of a newer torch": (lambda path: ask_for_an_unknown_operator(write_model(path)), "lacks: update torch"),
    "somebody's": (lambda path: script(None), FOREIGN),
    **{text: (lambda path, text=text: script(text), FOREIGN) for text in ("hello", "[1]", "{}")},
    "no recipe": (told(recipe=3), FOREIGN),
    "no number": (told(format="two"), FOREIGN),
    "no epoch": (told(epoch=None), f"{OURS}: 'epoch'"),
    "bad recipe": (told(recipe={"name": "x", "input": "smell"}), f"{OURS}: input must be one of"),
    "older": (told(format=None, recipe={}), "is of an older version of this project; export it again"),
    **{f"newer, {form!r}": (told(format=form, version="9.9"), "is of the newer version 9.9 .*; export it again")
       for form in (3, "3")},
}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_no_exported_file_is_refused(kind: str) -> None:
    make, words = MODELS[kind]
    make(Path("x.ts"))
    with pytest.raises(UserError, match=words) as caught:
        load_exported(Path("x.ts"), CPU)
    assert "x.ts" in str(caught.value)


class Witness(nn.Module):
    """Tells how it is run."""

    def forward(self, image: Tensor) -> Tensor:
        if len(image) == 0:
            raise ValueError("nothing to see")
        optimised = torch._C._get_graph_executor_optimize()
        return image.new_tensor([optimised, torch.is_inference_mode_enabled()])


@pytest.mark.parametrize("optimised", [True, False])
def test_infer_puts_the_executor_back(optimised: bool) -> None:
    before = torch._C._get_graph_executor_optimize()
    torch._C._set_graph_executor_optimize(optimised)
    try:
        assert infer(Witness(), torch.zeros(1)).tolist() == [0, 1]
        with pytest.raises(ValueError, match="nothing to see"):
            infer(Witness(), torch.zeros(0))
        assert torch._C._get_graph_executor_optimize() == optimised
        assert not torch.is_inference_mode_enabled()
    finally:
        torch._C._set_graph_executor_optimize(before)


def test_infer_does_not_profile(tmp_path: Path) -> None:
    infer(load_exported(write_model(tmp_path / "x.ts"), CPU).module, torch.rand(1, 3, 20, 40))
    assert "prim::profile" not in str(torch.jit.last_executed_optimized_graph())
