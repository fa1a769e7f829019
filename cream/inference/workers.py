"""Long work in chunks, by this process or spread by Ray Data over GPUs or processors, of one machine or of many."""

import json
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process

from tqdm import tqdm

from cream.data.errors import InputError
from cream.data.parts import in_parts


def work_on(make, chunks, workers, progress, kept=None, apart=False):
    """`[work(chunk) for chunk in chunks]` where `work = make()`, by this process, by one of its own (`apart`), or by several
    Ray workers. The folder `kept` holds the results that are done (see cream/data/parts.py)."""

    def compute(missing):
        if workers > 1:
            yield from spread(make, missing, workers, progress)
        elif apart:
            yield from _apart(make, missing)
        else:
            work = make()
            for number, chunk in missing.items():
                yield number, work(chunk)

    return in_parts(chunks, compute, kept)


def _apart(make, chunks):
    """(number, work(chunk)) of {number: chunk}, by a new process, whose memory comes back when it ends."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_end_with_parent) as pool:
        for number, chunk in chunks.items():
            yield number, pool.submit(_work_apart, make, chunk).result()


def _end_with_parent():
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def _work_apart(make, chunk):
    global _work
    _work = _work or make()
    return _work(chunk)


_work = None  # of a process that works apart


def spread(make, chunks, workers, progress):
    """(number, work(chunk)) of {number: chunk}, as they are done, where each Ray worker has made its own `work = make()` once.

    Chunks and results are what JSON can hold. The workers take a GPU each, or an equal share of the processors where the
    cluster has no GPU. The cluster is the one that RAY_ADDRESS names, or else this machine. A worker that dies is
    started again and does its chunk again. An InputError says so if the cluster has fewer GPUs than workers are asked
    for, and hands on what a worker says of bad input.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # When a worker's refusal ends the work, a thread of Ray Data goes on for a moment. By default its next call would start
    # another cluster, and a minute after the end of that one Ray ends the whole process.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    import ray

    # Without an address Ray would join whatever cluster was started on this machine last.
    address = os.environ.get("RAY_ADDRESS") or "local"
    with ray.init(address, include_dashboard=False, log_to_driver=False, logging_level="ERROR"):
        resources = _resources_of_one(ray.cluster_resources(), workers)
        ray.data.DataContext.get_current().enable_progress_bars = False  # one bar is enough
        rows = ray.data.from_items(
            [{"number": number, "chunk": json.dumps(chunk)} for number, chunk in chunks.items()],
            override_num_blocks=len(chunks),
        )
        pool = ray.data.ActorPoolStrategy(size=workers)
        done = rows.map(_Worker, fn_constructor_args=(make,), compute=pool, **resources).iter_rows()
        for row in tqdm(done, progress, len(chunks), unit="chunk"):
            if row["refusal"]:
                raise InputError(row["refusal"])
            yield row["number"], json.loads(row["result"])


def _resources_of_one(cluster, workers):
    """What of the cluster one worker takes."""
    gpus, cpus = int(cluster.get("GPU", 0)), int(cluster.get("CPU", 0))
    if max(gpus, cpus) < workers or 0 < gpus < workers:
        raise InputError(
            f"params.yaml: scale.workers: the Ray cluster has {gpus} GPUs and {cpus} processors, too few for {workers} "
            "workers: ask for fewer, or name a larger cluster in RAY_ADDRESS"
        )
    return {"num_gpus": 1} if gpus else {"num_cpus": cpus // workers}


class _Worker:
    """Hands an InputError on as a sentence; Ray would wrap it in errors of its own."""

    def __init__(self, make):
        self.make, self.work = make, None

    def __call__(self, row):
        done = {"number": row["number"], "result": "", "refusal": ""}
        try:
            self.work = self.work or self.make()
            return {**done, "result": json.dumps(self.work(json.loads(row["chunk"])))}
        except InputError as error:
            return {**done, "refusal": str(error)}
