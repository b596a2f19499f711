"""gan.py: one step of training moves the right network by the right terms; runs repeat and go on bitwise."""

import io
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from config import CHOICES, Recipe
from imaging import color
from runtime.device import pick_precision
from training.gan import Batch, Training, build_training, train_step

CPU = torch.device("cpu")
TERMS = {"G_gan", "G_l1", "D_real", "D_fake"}


def tiny(**fields: Any) -> Recipe:
    return Recipe("x", **{"size": 32, "ngf": 4, "ndf": 4, "seed": 7, **fields})


def build(recipe: Recipe) -> Training:
    return build_training(recipe, CPU, "fp32")


def batch(recipe: Recipe, seed: int = 0, images: int = 2) -> Batch:
    """Return a batch of random pictures."""
    noise = torch.Generator().manual_seed(seed)
    shape = (images, 3, recipe.size, recipe.size)
    source, target = (torch.randint(0, 256, shape, generator=noise, dtype=torch.uint8) for _ in range(2))
    return Batch(color.encode(source, recipe.input), color.encode(target, recipe.output), target)


def step(training: Training, recipe: Recipe, seed: int = 0, bf16: bool = False) -> dict[str, Tensor]:
    amp = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
    return train_step(training, batch(recipe, seed), recipe, amp)


def weights(network: nn.Module) -> list[Tensor]:
    """Return copies of all parameters."""
    return [parameter.detach().clone() for parameter in network.parameters()]


def floats(network: nn.Module) -> list[Tensor]:
    """Return weights and running statistics."""
    return [value.clone() for value in network.state_dict().values() if value.is_floating_point()]


def changed(network: nn.Module, before: list[Tensor]) -> list[bool]:
    return [not torch.equal(now, then) for now, then in zip(network.parameters(), before, strict=True)]


def bits(state: Any) -> list[bytes | str]:
    """Return a nested state_dict as bytes, to compare exactly."""
    if isinstance(state, Tensor):
        return [state.contiguous().flatten().view(torch.uint8).numpy().tobytes()]
    if isinstance(state, dict):
        return [part for key, value in state.items() for part in [str(key), *bits(value)]]
    if isinstance(state, list | tuple):
        return [part for value in state for part in bits(value)]
    return [repr(state)]


def before_each_update(training: Training, look: Callable[[str], None]) -> None:
    """Call look("d") and look("g") when all gradients of a half are there, just before its update."""
    for name in "dg":
        optimizer = getattr(training, f"optimizer_{name}")
        optimizer.register_step_pre_hook(lambda *_, name=name: look(name))


def grad_norms(network: nn.Module) -> list[float]:
    return [0.0 if p.grad is None else float(p.grad.norm()) for p in network.parameters()]


def gradients(recipe: Recipe) -> dict[str, dict[str, list[float]]]:
    """Return half -> network -> gradient norms of all parameters, in one step."""
    training, seen = build(recipe), {}

    def look(half: str) -> None:
        networks = {"d": training.discriminator, "g": training.generator}
        seen[half] = {name: grad_norms(network) for name, network in networks.items()}

    before_each_update(training, look)
    step(training, recipe)
    return seen


def test_halves_come_in_order_and_leave_the_other_network_alone() -> None:
    recipe = tiny()
    training = build(recipe)
    start = {"d": weights(training.discriminator), "g": weights(training.generator)}
    order, after_d = [], {}

    def look(half: str) -> None:
        order.append(half)
        assert not any(changed(training.generator, start["g"]))
        if half == "d":
            assert not any(changed(training.discriminator, start["d"]))
        else:
            assert all(changed(training.discriminator, start["d"]))
            after_d["d"] = weights(training.discriminator)

    before_each_update(training, look)
    terms = step(training, recipe)
    assert order == ["d", "g"]
    assert all(changed(training.generator, start["g"]))
    assert not any(changed(training.discriminator, after_d["d"]))
    assert set(terms) == TERMS
    assert not any(value.requires_grad or value.ndim for value in terms.values())
    assert not any(grad_norms(training.generator) + grad_norms(training.discriminator))  # none left over


@pytest.mark.parametrize("mode", CHOICES["gan_mode"])
@pytest.mark.parametrize("networks", [("unet", "patch30"), ("unet-reflect", "patch30")], ids=str)
def test_gradients_reach_every_parameter_of_their_own_network(mode: str, networks: tuple[str, str]) -> None:
    seen = gradients(tiny(gan_mode=mode, generator=networks[0], discriminator=networks[1]))
    # hinge: real and fake pull D's last bias equally, to opposite sides
    own = seen["d"]["d"][:-1] if mode == "hinge" else seen["d"]["d"]
    assert all(norm > 0 for norm in own)
    assert not any(seen["d"]["g"])  # the fake is detached
    assert all(norm > 0 for norm in seen["g"]["g"])
    assert not any(seen["g"]["d"])


@pytest.mark.parametrize("mode", CHOICES["gan_mode"])
@pytest.mark.parametrize("term", ["lambda_gan", "lambda_l1", "lambda_mse"])
def test_each_term_alone_reaches_the_generator(mode: str, term: str) -> None:
    alone = {"lambda_gan": 0.0, "lambda_l1": 0.0, "lambda_mse": 0.0, term: 1.0}
    recipe = tiny(gan_mode=mode, **alone)
    training = build(recipe)
    start = weights(training.generator)
    step(training, recipe)
    assert all(changed(training.generator, start))
    assert (training.discriminator is None) == (term != "lambda_gan")


def test_the_discriminator_minimises_half_the_sum_of_both_verdicts() -> None:
    recipe = tiny(dropout=0.0)
    training, grads, x, y = build(recipe), [], batch(recipe).x, batch(recipe).y
    generator, discriminator = deepcopy(training.generator), deepcopy(training.discriminator)
    training.optimizer_d.register_step_pre_hook(
        lambda *_: grads.extend(p.grad.clone() for p in training.discriminator.parameters())
    )
    step(training, recipe)
    real, fake = discriminator(x, y), discriminator(x, generator(x).detach())
    softplus = nn.functional.softplus
    (0.5 * (softplus(-real).mean() + softplus(fake).mean())).backward()
    torch.testing.assert_close(grads, [p.grad for p in discriminator.parameters()], atol=1e-6, rtol=1e-3)


def test_terms_are_the_losses_of_the_batch() -> None:
    recipe = tiny(dropout=0.0)
    training, x, y = build(recipe), batch(recipe).x, batch(recipe).y
    generator, discriminator = deepcopy(training.generator), deepcopy(training.discriminator)
    terms, softplus = step(training, recipe), nn.functional.softplus
    with torch.no_grad():
        fake = generator(x)
        real_logits, fake_logits = discriminator(x, y), discriminator(x, fake)
        later = training.discriminator(x, fake)  # the generator meets the discriminator's new weights
        expected = {"D_real": real_logits, "D_fake": -fake_logits, "G_gan": later}
    for name, logits in expected.items():
        torch.testing.assert_close(terms[name], softplus(-logits).mean(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(terms["G_l1"], (fake - y).abs().mean())


def test_one_batch_can_be_learned() -> None:
    recipe = tiny(lr=1e-2, ngf=8, dropout=0.0)
    training = build(recipe)
    history = [float(step(training, recipe)["G_l1"]) for _ in range(40)]
    assert sum(history[-5:]) / 5 < 0.6 * history[0]


def test_a_step_in_bf16_keeps_losses_and_weights_in_float32() -> None:
    recipe = tiny(dropout=0.0)
    full, half = (build(recipe) for _ in range(2))
    expected, terms = step(full, recipe), step(half, recipe, bf16=True)
    for name in TERMS:
        assert terms[name].dtype == torch.float32
        torch.testing.assert_close(terms[name], expected[name], atol=0.02, rtol=0)
    assert {p.dtype for p in half.generator.parameters()} == {torch.float32}


def test_networks_follow_the_recipe() -> None:
    training = build(tiny(lr=3e-4, beta1=0.4, beta2=0.9))
    for optimizer in (training.optimizer_g, training.optimizer_d):
        group = optimizer.param_groups[0]
        assert (group["lr"], group["betas"], group["weight_decay"]) == (3e-4, (0.4, 0.9), 0)
    for network in (training.generator, training.discriminator):
        big = [p for p in network.parameters() if p.ndim == 4]
        assert torch.cat([p.flatten() for p in big]).std().item() == pytest.approx(0.02, rel=0.1)
    assert next(build(tiny(init="default")).generator.parameters()).std() > 0.1


def test_runs_are_bitwise_the_same_from_their_seed() -> None:
    recipe = tiny(ema=0.9)

    def run(recipe: Recipe) -> list[bytes | str]:
        training = build(recipe)
        for seed in range(3):
            step(training, recipe, seed)
        return bits(training.state_dict())

    reference = run(recipe)
    torch.manual_seed(999)  # what ran before must not matter
    assert run(recipe) == reference
    assert run(replace(recipe, seed=8)) != reference


def test_a_resumed_run_goes_on_bitwise_dropout_included() -> None:
    recipe = tiny(ema=0.9, dropout=0.5)
    training = build(recipe)
    for seed in range(3):
        step(training, recipe, seed)
    training.epoch, training.step, training.steps = 2, 1, 3
    file = io.BytesIO()
    torch.save(training.state_dict(), file)
    file.seek(0)
    last = [step(training, recipe, seed) for seed in (3, 4)]
    resumed = build(replace(recipe, seed=8))
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.progress() == {"epoch": 2, "step": 1, "steps": 3}
    assert bits([step(resumed, recipe, seed) for seed in (3, 4)]) == bits(last)
    assert bits(resumed.state_dict()) == bits(training.state_dict())


def test_averaged_generator_follows_slowly() -> None:
    recipe = tiny(ema=0.9)
    training = build(recipe)
    expected: list[Tensor] = []
    for i in range(4):
        step(training, recipe, i)
        now = floats(training.generator)
        expected = [0.9 * e + 0.1 * n for e, n in zip(expected, now, strict=True)] if i else now
    averaged = training.generator_for_use()
    assert all(changed(training.generator, weights(averaged)))
    torch.testing.assert_close(floats(averaged), expected)  # BatchNorm's running statistics included
    plain = build(tiny(ema=0.0))
    assert plain.generator_for_use() is plain.generator


@pytest.mark.parametrize(
    ("schedule", "factors"), [("constant", [1, 1, 1, 1, 1]), ("linear", [1, 1, 1, 0.5, 0.02])]
)
@pytest.mark.parametrize("lr_d", [0.0, 3e-4])
def test_learning_rate_schedule(schedule: str, factors: list[float], lr_d: float) -> None:
    recipe = tiny(schedule=schedule, lr=1e-3, lr_d=lr_d, epochs=100)
    training = build(recipe)
    for progress, factor in zip((0, 25, 50, 75, 99), factors, strict=True):
        training.epoch, training.steps = progress + 1, 7 * progress
        training.set_learning_rate(recipe, 7)
        for optimizer, lr in ((training.optimizer_g, 1e-3), (training.optimizer_d, lr_d or 1e-3)):
            assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(lr * factor)]


@pytest.mark.parametrize("pretrain_lr", [0.0, 5e-3])
def test_learning_rates_of_two_stages(pretrain_lr: float) -> None:
    fields = {"lr": 1e-3, "lr_d": 4e-4, "epochs": 14, "pretrain_epochs": 4, "pretrain_lr": pretrain_lr}
    recipe = tiny(schedule="linear", **fields)
    training = build(recipe)
    for epoch in range(1, 15):  # the schedule is that of the ten epochs with the discriminator
        factor = min(1.0, (15 - epoch) / 5)
        training.epoch, training.steps = epoch, 3 * (epoch - 1)
        training.set_learning_rate(recipe, 3)
        lr_g = training.optimizer_g.param_groups[0]["lr"]
        assert lr_g == pytest.approx((pretrain_lr or 1e-3) if epoch <= 4 else 1e-3 * factor)
        if epoch > 4:
            assert training.optimizer_d.param_groups[0]["lr"] == pytest.approx(4e-4 * factor)


def test_the_schedule_is_the_generators_own_where_it_is_alone() -> None:
    recipe = tiny(discriminator="none", schedule="linear", lr=1e-3, epochs=10)
    training = build(recipe)
    training.epoch, training.steps = 9, 16
    training.set_learning_rate(recipe, 2)
    assert training.optimizer_g.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.4)


@pytest.mark.parametrize("name", ["generator", "discriminator"])
@pytest.mark.parametrize("kind", ["parameters", "buffers"])
def test_check_finite(name: str, kind: str) -> None:
    training = build(tiny())
    training.check_finite()
    tensors = [t for t in getattr(getattr(training, name), kind)() if t.is_floating_point()]
    with torch.no_grad():
        tensors[-1][(0,) * tensors[-1].ndim] = float("nan" if kind == "buffers" else "inf")
    with pytest.raises(ValueError, match=f"^the {name} has weights that are not finite"):
        training.check_finite()


@pytest.mark.parametrize(
    ("feature", "auto"), [("avx2", "fp32"), ("amx_bf16", "bf16"), ("avx512_bf16", "bf16")]
)
def test_pick_precision_auto(monkeypatch: pytest.MonkeyPatch, feature: str, auto: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {feature: True})
    assert pick_precision("auto", CPU) == auto


def test_fp16_needs_cuda() -> None:
    with pytest.raises(ValueError, match=r"^precision fp16 needs CUDA, this is cpu; use bf16, fp32 or auto$"):
        pick_precision("fp16", CPU)
    assert pick_precision("fp16", torch.device("cuda")) == "fp16"
    assert [pick_precision(precision, CPU) for precision in ("fp32", "bf16")] == ["fp32", "bf16"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_on_cuda(precision: str) -> None:
    cuda, recipe = torch.device("cuda"), tiny()
    training = build_training(recipe, cuda, precision)
    start = weights(training.generator)
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    amp = torch.autocast("cuda", dtype, enabled=precision != "fp32")
    given = batch(recipe)
    on_device = Batch(given.x.to(cuda), given.y.to(cuda), given.target.to(cuda))
    for _ in range(20):  # a scaler may leave out its first steps
        terms = train_step(training, on_device, recipe, amp)
    assert all(value.isfinite() for value in terms.values())
    assert all(changed(training.generator, start))
