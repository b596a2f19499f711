"""Streams of shards: dealt to processes, each image once an epoch, damage is told and survived, training is exact."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TINY, log_of, run_stage, same_tensors, saved_weights, stop_in
from PIL import Image

import train
import train_classifier
from config import ROOT, Recipe, UserError
from data import find_loading, load_images, training_batches
from dataset import streams
from dataset.folders import Splits, list_items, open_tree
from dataset.packing import pack
from dataset.shards import MANIFEST
from runtime import atomic
from runtime.run_folder import read_run, state_path
from training import gan, setup

CACHE = Path("cache")
RECIPE = Recipe("x", size=16, val_fraction=0.3)


def write_shards(count: int = 40, most: int = 8_000, pairs: bool = False) -> str:
    """Pack coloured noise into shards of about `most` bytes; returns the pattern of a stream of them."""
    noise = np.random.default_rng(0)
    for i in range(count):
        image = noise.integers(0, 256, (12, 12, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        for folder in ("color", "sketch")[: 1 + pairs]:
            path = Path("photos", folder, f"p{i:02d}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dataset.packing.MB", most)
        shards = pack(open_tree("photos", CACHE, []), Path("shards"), None, 1).shards
    return f"pipe:cat {Path('shards').resolve()}/train-{{00000..{len(shards) - 1:05d}}}.tar"


def test_without_webdataset_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    for data in ("pipe:cat a.tar", "https://example.org/{000..099}.tar"):
        with pytest.raises(UserError, match=r"needs webdataset: pip install -r requirements-scale.txt"):
            list_items(data, RECIPE, CACHE)


NAMES = """
import sys
from pathlib import Path
from config import Recipe
from dataset.folders import list_items
stream = list_items(sys.argv[1], Recipe("x", size=16, val_fraction=0.3), Path("cache")).stream
print(*(blob.name for blob in stream.images(7, 1, int(sys.argv[2]), 2)))
"""


def test_two_processes_see_each_image_once_an_epoch() -> None:
    pytest.importorskip("webdataset")
    data = write_shards()
    options = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, "-c", NAMES, data, rank], **options) for rank in "01"]
    seen = [process.communicate()[0].splitlines()[-1].split() for process in both]
    held = {item.target.name for item in list_items(data, RECIPE, CACHE)["val"]}
    assert Counter(seen[0] + seen[1]) == Counter({f"color/p{i:02d}.png" for i in range(40)} - held)


@pytest.mark.parametrize(("most", "whole"), [(8_000, False), (10_000, True)])
def test_ranks_see_each_image_once_in_an_order_of_the_epoch(
    most: int, whole: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("webdataset")
    splits = list_items(write_shards(most=most), RECIPE, CACHE)
    stream = splits.stream
    assert (len(stream.urls) % 2 == 0) == whole  # else every process reads the one that is left
    asked: list[str] = []
    real = streams.read_shard
    monkeypatch.setattr(streams, "read_shard", lambda url, report: (asked.append(url), real(url, report))[1])
    assert stream.count == 40 - len(splits["val"])
    seen = [[[blob.name for blob in stream.images(7, epoch, rank, 2)] for rank in (0, 1)] for epoch in (1, 2, 1)]
    for ranks in seen:
        assert Counter(ranks[0] + ranks[1]) == Counter({f"color/p{i:02d}.png" for i in range(40)} - stream.held)
    assert seen[0] == seen[2]
    assert seen[0] != seen[1]
    assert len(asked) == 3 * (len(stream.urls) + (not whole))
    assert ("each reads 1 of them" in capsys.readouterr().out) != whole


def test_a_damaged_head_is_read_again() -> None:
    pytest.importorskip("webdataset")
    data = write_shards()
    head, count = streams.take_head(data, CACHE)
    content = head.read_bytes()
    for damaged in (content[: len(content) // 2], content[:-3] + b"abc"):
        head.write_bytes(damaged)
        assert streams.take_head(data, CACHE) == (head, count)
        assert head.read_bytes() == content
    head.unlink()
    assert streams.take_head(data, CACHE) == (head, count)


def test_two_ranks_of_local_shards_see_each_image_once_an_epoch() -> None:
    write_shards()
    splits = list_items("shards", RECIPE, CACHE)
    images = load_images(splits["train"], find_loading(RECIPE, splits["train"]), CACHE, "train")
    whole = list(training_batches(images, 4, 16, 0.5, 1, 3))
    ranks = [list(training_batches(images, 2, 16, 0.5, 1, 3, rank=rank, world=2)) for rank in (0, 1)]
    assert len(whole) == len(ranks[0]) == len(ranks[1])
    for batch, *halves in zip(whole, *ranks, strict=True):
        assert torch.equal(batch[1], torch.cat([half[1] for half in halves]))


def test_batches_are_those_of_the_pictures_and_go_on_where_they_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("webdataset")
    data = write_shards()
    splits = list_items(data, RECIPE, CACHE)
    plan = setup.Setup(Path("run"), RECIPE, data, {}, None)
    images = plan.load_splits(splits, find_loading(RECIPE, splits["train"]))["train"]
    first = list(training_batches(images, 4, 16, 0.5, 1, 3))
    assert len(first) == images.per_epoch // 4
    again = list(training_batches(images, 4, 16, 0.5, 1, 3, 2))
    assert all(torch.equal(one[1], other[1]) for one, other in zip(first[2:], again, strict=True))
    known = {images.picture(i).tobytes() for i in range(len(images))}  # of the head, which is all of it
    shown = torch.cat([target for _, target in training_batches(images, 4, 16, 0.0, 1, 3)])
    assert {picture.permute(1, 2, 0).numpy().tobytes() for picture in shown} <= known
    assert len(shown.flatten(1).unique(dim=0)) == len(shown)
    told = "a process has fewer pictures than its part of an epoch: it reads its shards again"
    assert told not in capsys.readouterr().out
    longer = replace(images, stream=replace(images.stream, count=2 * images.per_epoch))
    assert len(list(training_batches(longer, 4, 16, 0.5, 1, 3))) == 2 * images.per_epoch // 4
    assert capsys.readouterr().out.count(told) == 1


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl, by which WebDataset reads an address")
def test_what_a_server_sends_is_what_a_program_gives() -> None:
    pytest.importorskip("webdataset")
    piped = write_shards()

    class Server(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Be silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory="shards")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sent = f"http://127.0.0.1:{server.server_port}/{piped.rpartition('/')[2]}"
        found = []
        for data in (piped, sent):
            splits = list_items(data, RECIPE, CACHE)
            plan = setup.Setup(Path("run"), RECIPE, data, {}, None)
            images = plan.load_splits(splits, find_loading(RECIPE, splits["train"]))["train"]
            found.append([target for _, target in training_batches(images, 4, 16, 0.5, 1, 3)])
        server.shutdown()
    assert len(found[0]) == images.per_epoch // 4
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.usefixtures("no_curves")
def test_training_on_a_stream_needs_no_cache_of_it_and_resumes_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("webdataset")
    monkeypatch.setattr(streams, "HEAD", 16)  # a part of it
    data = write_shards()
    options = {"recipe": "coco", "data": data, "epochs": 2, "save_every": 1, **TINY}
    whole, parts = train.main(run=Path("whole"), **options), Path("parts")
    stop_in(gan, 4, lambda: train.main(run=parts, **options))
    train.main(run=parts, resume=True, device="cpu")
    assert same_tensors(saved_weights(whole, 2), saved_weights(parts, 2))
    assert log_of(whole) == log_of(parts)
    images = read_run(whole).images
    assert images["train"] + images["val"] == 40
    assert log_of(whole)[-1]["steps"] == 2 * (images["train"] // 4)


@pytest.mark.usefixtures("no_curves")
def test_a_signal_saves_though_the_stream_has_stalled(monkeypatch: pytest.MonkeyPatch, time_limit: None) -> None:
    pytest.importorskip("webdataset")
    data = f"{write_shards()}; test ! -e stall || kill -TERM $PPID; while test -e stall; do sleep 0.1; done"
    options = {"recipe": "coco", "data": data, "epochs": 2, "save_every": 2, **TINY}
    whole, real, parts = train.main(run=Path("whole"), **options), gan.train_step, Path("parts")

    def step(*args: Any, **how: Any) -> Any:
        Path("stall").touch()  # of what comes after this epoch, all of which is in the buffer
        return real(*args, **how)

    with monkeypatch.context() as patch:
        patch.setattr(gan, "train_step", step)
        with pytest.raises(SystemExit) as stopped:
            train.main(run=parts, **options)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert Path("stall").exists()
    Path("stall").unlink()
    assert log_of(parts)[-1]["epoch"] == 1
    train.main(run=parts, resume=True, device="cpu")
    assert same_tensors(saved_weights(whole, 2), saved_weights(parts, 2))


@pytest.mark.usefixtures("no_curves")
def test_what_was_learnt_is_saved_where_a_stream_ends_for_good(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("webdataset")
    monkeypatch.setattr("data.WAITS", (0.0, 0.0))
    data = write_shards()
    options = {"recipe": "coco", "data": data, "epochs": 2, "save_every": 2, **TINY}
    whole, parts = train.main(run=Path("whole"), **options), Path("parts")
    away, save = Path("away"), setup.Setup.load_splits

    def load_splits(*args: Any) -> Any:
        images = save(*args)
        Path("shards").rename(away)
        return images

    with monkeypatch.context() as patch:
        patch.setattr(setup.Setup, "load_splits", load_splits)
        with pytest.raises(UserError, match=r"none of the images .*: left out: .*exit 1"):
            train.main(run=parts, **options)
    assert atomic.load(state_path(parts))["epoch"] == 1
    away.rename("shards")
    train.main(run=parts, resume=True, device="cpu")
    assert same_tensors(saved_weights(whole, 2), saved_weights(parts, 2))


def test_every_process_tells_its_own_problems(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("webdataset")
    stream = list_items(write_shards(), RECIPE, CACHE).stream
    Path("shards/train-00001.tar").unlink()
    monkeypatch.setattr("runtime.distributed.rank", lambda: 1)
    list(stream.images(1, 1))
    assert capsys.readouterr().err.count("left out: what cannot be read of") == 1


def test_shards_in_folders_that_count_them_are_all_counted() -> None:
    pytest.importorskip("webdataset")
    write_shards(most=10**6)
    for folder, images in (("a", 30), ("b", 10)):
        shutil.copytree("shards", folder)
        path = Path(folder, MANIFEST)
        content = json.loads(path.read_text())
        content["shards"][0]["images"] = images
        path.write_text(json.dumps(content))
    here = Path.cwd()
    assert streams._listed_images([f"pipe:cat {here}/{folder}/train-00000.tar" for folder in "ab"]) == 40
    (here / "b" / MANIFEST).unlink()
    assert streams._listed_images([f"pipe:cat {here}/{folder}/train-00000.tar" for folder in "ab"]) is None


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    middle = content.index(b"ustar", len(content) // 2) - 257  # of a header
    spoilt = content[:middle] + b"x" * 512 + content[middle + 512 :]
    path.write_bytes(spoilt if how == "header" else content[: middle + 700])


@pytest.mark.parametrize("how", ["header", "cut", "command"])
def test_what_of_a_shard_cannot_be_read_is_told_once_and_the_rest_is_seen(
    how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("webdataset")
    data = write_shards()
    stream = list_items(data, RECIPE, CACHE).stream
    every = {blob.name for blob in stream.images(1, 1)}
    second = Path("shards/train-00001.tar")
    own = {blob.name for blob in streams.read_shard(f"pipe:cat {second.resolve()}", print)}
    second.unlink() if how == "command" else damage(second, how)
    capsys.readouterr()
    for epoch in (1, 2):
        left = {blob.name for blob in stream.images(1, epoch)}
        assert every - own <= left < every
        assert (left & own == set()) == (how == "command")
    said = capsys.readouterr().out
    assert said.count("left out: what cannot be read of pipe:cat") == 1
    assert "train-00001.tar" in said


@pytest.mark.parametrize("ended", [True, False])
def test_what_a_failing_command_has_written_is_read_whichever_of_both_is_faster(
    ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gopen = pytest.importorskip("webdataset") and import_module("webdataset.gopen")
    write_shards()
    shard, problems, real = Path("shards/train-00001.tar").resolve(), [], gopen.gopen

    def opened(url: str) -> Any:
        stream = real(url)
        if ended:  # what the command has written waits in the pipe
            stream.proc.wait()
        return stream

    whole = [blob.name for blob in streams.read_shard(str(shard), problems.append)]
    assert shard.stat().st_size < 2**16
    monkeypatch.setattr(gopen, "gopen", opened)
    assert [blob.name for blob in streams.read_shard(f"pipe:cat {shard}; exit 3", problems.append)] == whole
    assert len(problems) == 1
    assert "exit 3" in problems[0]


def test_a_damaged_picture_is_skipped_and_a_stream_without_pictures_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], time_limit: None
) -> None:
    pytest.importorskip("webdataset")
    monkeypatch.setattr("data.WAITS", ())
    data = write_shards()
    splits = list_items(data, RECIPE, CACHE)
    plan = setup.Setup(Path("run"), RECIPE, data, {}, None)
    images = plan.load_splits(splits, find_loading(RECIPE, splits["train"]))["train"]
    path = Path("shards/train-00001.tar")
    content = path.read_bytes()
    parts = content.split(b"IDAT")
    path.write_bytes(b"IDAT".join([parts[0], *(part[:20] + bytes(99) + part[119:] for part in parts[1:])]))
    assert len(list(training_batches(images, 4, 16, 0.5, 1, 3))) == images.per_epoch // 4
    assert "skipped " in capsys.readouterr().out
    for shard in Path("shards").glob("*.tar"):
        shard.unlink()
    with pytest.raises(UserError, match="none of the images of the stream"):
        list(training_batches(images, 4, 16, 0.5, 1, 3))
    with pytest.raises(UserError, match=r"no image in the stream .*train-00000.tar"):
        list_items(data.replace("cat ", "cat  "), RECIPE, CACHE)


def test_a_shard_that_is_away_for_a_moment_is_not_missing_for_ever(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("webdataset")
    data, second = write_shards(), Path("shards/train-00001.tar")
    second.rename("away.tar")
    with pytest.raises(UserError, match=r"lacks what cannot be read of .*train-00001.tar.*: try again"):
        list_items(data, RECIPE, CACHE)
    Path("away.tar").rename(second)
    splits = list_items(data, RECIPE, CACHE)
    assert len(splits["train"]) + len(splits["val"]) == 40
    second.rename("away.tar")
    monkeypatch.setattr(streams, "HEAD", 16)  # which the other shards fill
    capsys.readouterr()
    list_items(data.replace("cat ", "cat  "), RECIPE, CACHE)
    assert "left out: what cannot be read of pipe:cat" in capsys.readouterr().out


def test_how_long_a_stream_is_stands_in_the_manifest_or_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("webdataset")
    monkeypatch.setattr(streams, "HEAD", 8)
    data = write_shards()

    def count(data: str, **fields: int) -> int:
        splits: Splits = list_items(data, Recipe("x", size=16, val_fraction=0.3, **fields), CACHE)
        return splits.stream.count + (0 if fields else len(splits["val"]))

    assert count(data) == 40
    assert count(data.replace("pipe:cat ", "file://")) == 40
    assert count(data, limit=20) == 20
    for number, content in enumerate(
        (Path("shards", MANIFEST).read_bytes()[:-9], b"<html>no such file", b'{"error": 4}')
    ):
        Path("shards", MANIFEST).write_bytes(content)
        with pytest.raises(UserError, match="--limit N" if number else "manifest.json is damaged, or no manifest"):
            count(data.replace("cat ", f"cat {' ' * (number + 2)}"))
    Path("shards", MANIFEST).unlink()
    other = data.replace("cat ", "cat  ")
    with pytest.raises(UserError, match="--limit N"):
        count(other)
    assert count(other, limit=20) == 20


@pytest.mark.parametrize("args", [("--check",), ("out", "--pack")])
def test_a_stream_is_neither_checked_nor_packed(
    args: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only its head would be, and a manifest of that would call itself complete."""
    pytest.importorskip("webdataset")
    monkeypatch.setattr(streams, "HEAD", 16)
    data = write_shards()
    assert run_stage("data", *args, data) == 2
    assert "is a stream, of which only the head is looked at: copy its shards to a disk" in capsys.readouterr().err
    assert not Path("out").exists()


def test_pairs_in_two_folders_cannot_be_learnt_from_a_stream() -> None:
    pytest.importorskip("webdataset")
    data = write_shards(pairs=True)
    with pytest.raises(UserError, match="pairs in two folders cannot be learnt"):
        list_items(data, Recipe("x", input="sketch", output="rgb", size=16), CACHE)


def test_classes_cannot_be_learnt_from_a_stream() -> None:
    pytest.importorskip("webdataset")
    data = write_shards()
    with pytest.raises(UserError, match="classes cannot be learnt"):
        train_classifier.main(data=data, device="cpu")
