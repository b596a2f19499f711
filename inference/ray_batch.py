"""Colourise files with Ray Data, on the cores, GPUs and machines that Ray has: `colorize.py --engine ray --workers N`.

Paths are dealt to workers, not pixels. Each worker holds the model, and writes its results itself, complete or not at
all. One that is lost is started again, and its files are given out again; those that it had written are there by then.
So a call that was cut off as a whole can be repeated, too. Machines have to share the folders, and this project's.

    RAY_ADDRESS=auto python colorize.py scans/ --engine ray     # on a cluster that runs already
"""

import logging
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from config import ROOT, UserError
from imaging.metadata import Scan
from inference.pipeline import Job, Pipeline
from inference.runner import Runner, one_line
from inference.tasks import Task

BATCH = 16  # files that a worker is given at a time, and does again where it was lost
RETRIES = 3  # of the same files, before the call ends
START_S = 600  # for which the first worker is waited for, as on a cluster that is busy


class Worker:
    """Colours the files that it is given; Ray makes one per process."""

    def __init__(self, folder: str, runner: Mapping[str, Any], pipeline: Mapping[str, Any]) -> None:
        """Load the model. `folder`: to which paths are relative; the others: arguments of Runner and Pipeline."""
        os.chdir(folder)
        self.pipeline = Pipeline(Runner(**runner), **pipeline)

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the finished jobs of the tasks in `batch`, both pickled: names of files need not be text."""
        jobs = []
        for job in self.pipeline.run(pickle.loads(task) for task in batch["task"]):
            job.scan = job.scan and Scan(job.task.path, count=job.scan.count)  # all that is reported
            jobs.append(pickle.dumps(job))
        return {"job": np.array(jobs, object)}


def colour_files(
    tasks: Sequence[Task], workers: int | None, device: str, runner: Mapping[str, Any], pipeline: Mapping[str, Any]
) -> Iterator[Job]:
    """Yield every task as a finished job, in the order in which they end.

    Args:
        workers: processes; None: as many as there are GPUs, or cores.
        device: auto, cpu or cuda: a worker has one GPU where there are some, else one core.
        runner, pipeline: arguments of Runner and of Pipeline, but for the device and the runner.

    Raises:
        UserError: Ray is not installed, does not answer, has not enough for the workers, or loses them again and again.
        ray.exceptions.RayTaskError: a bug in a worker, with its traceback.
    """
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray needs Ray: pip install -r requirements-scale.txt") from None
    if not tasks:  # as of a small share
        return
    there = {task.output for task in tasks if task.output.is_file()}
    was_running = ray.is_initialized()
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(ignore_reinit_error=True, runtime_env={"env_vars": {"PYTHONPATH": paths}}, **quiet)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:  # as for another version
        problem = f"Ray cannot be reached ({one_line(error)})"
        raise UserError(f"{problem}: start it with ray start --head, or take RAY_ADDRESS away") from error
    try:
        kind, workers = _share(ray.cluster_resources(), workers, device)
        given = ({**runner, "device": torch.device("cuda" if kind == "GPU" else "cpu")}, pipeline)
        for job in _run(ray, tasks, workers, kind, given):
            if job.status == "skipped" and job.task.output not in there:
                job.status = "done"  # by a worker that was lost before it could say so
            yield job
    except ray.exceptions.RayTaskError:  # also a RayError
        raise
    except ray.exceptions.RayError as error:
        problem = "Ray has lost its workers, as for want of memory, or they could not start"
        remedy = "what is done is kept: repeat it with fewer --workers"
        raise UserError(f"{problem} ({one_line(error)}); {remedy}") from error
    finally:
        if not was_running:
            ray.shutdown()


def _share(resources: Mapping[str, float], workers: int | None, device: str) -> tuple[str, int]:
    """Return what a worker has one of, GPU or CPU, and how many workers there are. Raises UserError."""
    kind = "GPU" if device == "cuda" or (device == "auto" and resources.get("GPU", 0) >= 1) else "CPU"
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--engine ray works on auto, cpu or cuda, not on {device}")
    has = int(resources.get(kind, 0))
    if not has or (workers or 1) > has:
        raise UserError(f"Ray has {has} {kind}s here, too few for {workers or 1} workers; name fewer --workers")
    return kind, workers or has


def _run(ray: Any, tasks: Sequence[Task], workers: int, kind: str, given: tuple[Any, ...]) -> Iterator[Job]:
    """Yield finished jobs from `workers` processes, each with one CPU or GPU."""
    import ray.data as ray_data  # also makes it an attribute of ray

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray_data.DataContext.get_current()
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = START_S
    rows = [{"task": pickle.dumps(task)} for task in tasks]
    files = ray_data.from_items(rows, override_num_blocks=-(-len(rows) // BATCH))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of max_task_retries, which has no other name yet
        found = files.map_batches(
            Worker,
            batch_size=BATCH,
            batch_format="numpy",
            compute=ray_data.ActorPoolStrategy(size=workers),
            fn_constructor_args=(str(Path.cwd()), *given),
            num_cpus=1,
            num_gpus=int(kind == "GPU"),
            max_task_retries=RETRIES,
        )
    for row in found.iter_rows():
        yield pickle.loads(row["job"])
