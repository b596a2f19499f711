"""Score saved epochs against the ground truth, and name the best epoch by each metric.

    python eval.py --all-epochs                           # newest run; renders what is missing
    python eval.py --epoch 50 --run runs/coco
    python eval.py --all-epochs --metric lpips_alex --metric fid      # downloads the networks they need
    python eval.py --all-epochs --classifier runs/classifier          # are the images recognised?
    python eval.py --run runs/a --against runs/b          # best against best, image by image: these two runs
    python eval.py --run runs/a1 runs/a2 --against runs/b1 runs/b2    # two recipes, by runs of several seeds
    python eval.py --epoch 50 --against 25                # two epochs of one run
    python eval.py --report-only                          # writes the report of a scored run again

Baselines, both with the lightness of the ground truth: `gray` has no colour, `mean_ab` the mean a and b of
the training images. Upper bounds: `jpeg90`, the ground truth as a JPEG of quality 90; with a classifier also
`truth`, the ground truth itself.
The best epoch is that of the recipe's metric; unless the recipe names one, of lpips_alex where it is computed, else
of color_error. It is chosen on the pictures that it is scored on.
Writes scores.json, scores.csv, scores_per_image.csv, curves.png and report.html into the run folder; --against writes
comparison.json and the report of the first run.
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from config import CACHE, METRICS, UserError, closest
from runtime import cli

MetricOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A metric to insist on: its network is downloaded. Repeatable."),
]
ClassifierOption = Annotated[
    Path | None, typer.Option(metavar="RUN|imagenet-lite0", help="A classifier's run: are the pictures recognised?")
]
RunsOption = Annotated[
    list[Path] | None,
    typer.Option("--run", "--run-dir", metavar="DIR", help="Run folder; several of them with --against."),
]
AgainstOption = Annotated[
    list[str] | None,
    typer.Option(metavar="RUN[:N]|N", help="Compare with another run or epoch, or several runs with several."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Compare in spite of different protocols.")]
ReportOption = Annotated[bool, typer.Option("--report-only", help="Write the report of a scored run again, and stop.")]


def one_each(words: Sequence[str]) -> list[str]:
    """Return a command line in which "--run A B" is "--run A --run B", and so --against: typer takes them so."""
    found, option, has_value = [], None, False
    for word in words:
        if word.startswith("-"):
            name, equals, _ = word.partition("=")
            option, has_value = name if name in ("--run", "--run-dir", "--against") else None, bool(equals)
        elif option is not None:
            found += [option] if has_value else []
            has_value = True
        found.append(word)
    return found


def main(
    run: RunsOption = None,
    epoch: cli.EpochOption = None,
    all_epochs: cli.AllEpochsOption = False,
    data: cli.DataOption = None,
    metric: MetricOption = None,
    classifier: ClassifierOption = None,
    weights: cli.WeightsOption = None,
    against: AgainstOption = None,
    force: ForceOption = False,
    report_only: ReportOption = False,
    cache_gb: cli.CacheOption = None,
    device: cli.DeviceOption = "auto",
) -> Any:
    """Score one or all saved epochs; returns a ScoreFile. With `against`, returns a Comparison.

    `run` and `against` may be one or a list. With `report_only`, returns the scores that the report was written from.
    Of several processes all but the first return None.
    """
    from runtime import distributed
    from runtime.progress import say
    from runtime.run_folder import newest_run, read_run, rendering
    from runtime.weights import require_folder

    folders = [Path(each) for each in ([run] if isinstance(run, str | Path) else run or [newest_run()])]
    folder = folders[0]
    scoring = bool(all_epochs or data or metric or classifier or weights)
    if report_only and (scoring or epoch or against or force):
        raise UserError("--report-only writes a report of what is scored already: with it, only --run")
    if against is not None and scoring:
        raise UserError("--against compares what is scored already: with it, only --epoch and --force")
    if (report_only or against is not None) and distributed.rank():
        return None  # of several processes one writes
    if against is not None:
        from evaluation.compare import compare, parse_opponent
        from reporting.page import write_report

        texts = [against] if isinstance(against, str) else against
        found = compare([(each, epoch) for each in folders], [parse_opponent(text, folder) for text in texts], force)
        say(f"report: {write_report(folder)}")
        return found
    if len(folders) > 1:
        raise UserError("several runs are for comparing with --against; score one run at a time")
    if force:
        raise UserError("--force is for comparing with --against RUN")
    metric = [name.replace("colour", "color") for name in metric or []]  # both spellings
    for name in metric:
        if name not in METRICS:
            raise UserError(f"no metric {name}{closest(name, list(METRICS))}")
    weights, classifier = require_folder(weights), Path(classifier) if classifier else None

    from evaluation.best_epoch import choose_epochs
    from evaluation.scores import read_scores
    from reporting.curves import plot_scores
    from reporting.page import write_report
    from reporting.summary import model_words, score_table

    if not report_only:
        import torch

        from data import open_split
        from evaluation.deep_metrics import load_metrics
        from evaluation.scoring import evaluate
        from runtime.device import pick_device

        on = pick_device(device)
        epochs = choose_epochs(folder, epoch, all_epochs)
        record = read_run(folder)
        say(f"scoring {folder}: {model_words(record, epochs, on)}")
        with distributed.in_turn():
            images = open_split(record, data, "test", CACHE, cache_gb)
        distributed.require_same({"run": str(folder), "epochs": epochs, "pictures": images.key})
        scorer = on if on.type == "cuda" else torch.device("cpu")  # MPS has no float64
        with distributed.in_turn():
            metrics = load_metrics(images, record.recipe.test_size, scorer, metric, classifier, weights)
        named = [sorted(each) for each in (metrics.per_image, metrics.of_truth, metrics.per_folder)]
        distributed.require_same({"metrics": named, "weights": metrics.weights, "device": scorer.type})
        with nullcontext() if distributed.rank() else rendering(folder):
            scores = evaluate(folder, epochs, images, metrics, on)
        if scores is None:  # of another process, which goes on with it
            return None
        say("\n".join([score_table(scores), *scores.notes]))
    report = write_report(folder)
    scores = read_scores(folder)
    plot_scores(folder / "curves.png", scores)
    say(f"scores: {folder / 'scores.csv'}, report: {report}")
    return scores


if __name__ == "__main__":
    sys.argv[1:] = one_each(sys.argv[1:])
    cli.command(main, shared=True)
