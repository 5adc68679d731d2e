"""The stages of a run as datatrove pipelines, and the executors that run them: local, Slurm or Ray.

Each stage is a list of steps for a fixed number of tasks, so that no result depends on how many run at a time.
"""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.filtering.counts import Counted, TokenCounter, total
from data_prep.filtering.publish import Publish, check_not_empty
from data_prep.filtering.recipe import Recipe, exact_config, explain, make_block
from data_prep.filtering.steps import IndexNgrams, MinhashSignatures, ReadPieces, ReadShard, WriteShard
from scratchgpt.errors import UserError

_BUCKETS = 14  # of datatrove's MinHash configuration, the one of FineWeb


@dataclasses.dataclass(frozen=True)
class Stage:
    """Steps that ``tasks`` tasks run; ``filters`` are those among them whose counts are complete afterwards."""

    name: str
    steps: list[Any]
    tasks: int
    filters: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Slurm:
    """How the jobs of a stage are submitted."""

    partition: str = ""
    time: str = "24:00:00"
    memory_gb: int = 4
    env_command: str = ""


def stages(recipe: Recipe, tasks: int, text_column: str, tokens: str, samples: int, work: Path) -> list[Stage]:
    """All stages of a run over the ``tasks`` pieces that ``work``/pieces.jsonl lists, in order.

    A deduplication needs all documents, so it ends one pass and begins the next.
    """
    count = TokenCounter(tokens)

    def counted(name: str) -> Counted:
        folder = work / "counts" / name
        return Counted(name, partial(make_block, name, recipe, work), partial(explain, name), count, folder, samples)

    result: list[Stage] = []
    if "decontaminate" in recipe.filters:
        files = [Path(file).resolve() for file in recipe.decontaminate_against]
        index = IndexNgrams(files, text_column, work / "decontaminate")
        result.append(Stage("ngrams", [index], len(files)))
    passes: list[list[str]] = [[]]
    for name in recipe.filters:
        if name in ("exact_dedup", "minhash"):
            passes.append([])
        passes[-1].append(name)
    read: Any = ReadPieces(work / "pieces.jsonl", text_column, count, work / "counts" / "source")
    for number, names in enumerate(passes):
        if number:
            result += _find_duplicates(names[0], read, tasks, work)
        last = number == len(passes) - 1
        written = work / "out" if last else work / f"pass{number}"
        steps = [read, *map(counted, names), WriteShard(written, final=last)]
        result.append(Stage(f"pass{number}", steps, tasks, tuple(names)))
        read = ReadShard(written)
    return result


def _find_duplicates(name: str, read: Any, tasks: int, work: Path) -> list[Stage]:
    folder = work / name
    if name == "exact_dedup":
        from datatrove.pipeline.dedup.exact_dedup import ExactDedupSignature, ExactFindDedups

        signatures, duplicates = str(folder / "signatures"), str(folder / "duplicates")
        return [
            Stage("exact_dedup1", [read, ExactDedupSignature(signatures, exact_config())], tasks),
            Stage("exact_dedup2", [ExactFindDedups(signatures, duplicates, exact_config())], 1),
        ]
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster

    signatures, buckets, remove = (str(folder / part) for part in ("signatures", "buckets", "remove"))
    return [
        Stage("minhash1", [read, MinhashSignatures(folder / "signatures")], tasks),
        Stage("minhash2", [MinhashDedupBuckets(signatures, buckets)], _BUCKETS),
        Stage("minhash3", [MinhashDedupCluster(buckets, remove, save_cluster_id=True)], 1),
    ]


def run_here(
    stages: list[Stage], publish: Publish, work: Path, executor: str, workers: int, log: Callable[[str], None]
) -> None:
    """Run all stages and wait for them: in processes of this machine ("local"), or on a Ray cluster ("ray").

    What datatrove says goes to ``work``/logs. Tasks that an earlier run has completed are not run again. Raises
    UserError if a stage fails for a reason that the user can mend.
    """
    tallies = {}
    for stage in stages:
        logs = work / "logs" / stage.name
        with _said_to(work / "stderr.log"):
            engine = _local(stage, logs, workers) if executor == "local" else _ray(stage, logs, workers)
            engine.run()
            missing = engine.get_incomplete_ranks()
        if missing:  # Ray gives up on a task without an error
            raise UserError(f"the stage {stage.name} failed: see {logs / 'logs' / f'task_{missing[0]:05d}.log'}")
        for name in stage.filters:
            tallies[name] = tally = total(work / "counts" / name, 0)
            log(f"{name}: {tally.documents_out:,} of {tally.documents_in:,} documents pass")
        if stage.filters:
            check_not_empty(total(work / "counts" / "source", 0), tallies)
    publish()


def _local(stage: Stage, logs: Path, workers: int) -> Any:
    from datatrove.executor.local import LocalPipelineExecutor

    return LocalPipelineExecutor(stage.steps, stage.tasks, min(workers, stage.tasks), logging_dir=str(logs))


def _ray(stage: Stage, logs: Path, workers: int) -> Any:
    try:
        import ray
    except ImportError as e:
        raise UserError('--executor=ray needs Ray: pip install "ray[default]"') from e
    from datatrove.executor.ray import RayPipelineExecutor

    if not ray.is_initialized():
        ray.init(log_to_driver=False)  # the cluster of $RAY_ADDRESS, else this machine
    return RayPipelineExecutor(stage.steps, stage.tasks, workers, logging_dir=str(logs))


@contextlib.contextmanager
def _said_to(file: Path) -> Iterator[None]:
    """Let everything that this process and those it starts say to stderr go to ``file`` instead.

    By its descriptor: datatrove logs to stderr in every worker, and fastText and tqdm write there on their own.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    target = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.dup2(target, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(target)


def submit(stages: list[Stage], publish: Publish, work: Path, workers: int, slurm: Slurm) -> int:
    """Submit all stages to Slurm, each after the one before, and the publication last; returns the number of stages.

    Raises UserError without a partition or where there is no `sbatch`.
    """
    import shutil
    import subprocess

    if not slurm.partition:
        raise UserError("--executor=slurm needs --slurm_partition=NAME")
    if not shutil.which("sbatch"):
        raise UserError("--executor=slurm needs the command sbatch: run this on a login node of the cluster")
    from datatrove.executor.slurm import SlurmPipelineExecutor

    last = None
    chain = [*stages, Stage("publish", [publish], 1)]
    for stage in chain:
        last = SlurmPipelineExecutor(
            stage.steps,
            stage.tasks,
            time=slurm.time,
            partition=slurm.partition,
            mem_per_cpu_gb=slurm.memory_gb,
            workers=workers,
            job_name=f"filter-{stage.name}",
            qos="",
            env_command=slurm.env_command or None,
            depends=last,
            logging_dir=str(work / "logs" / stage.name),
        )
    try:
        with _said_to(work / "stderr.log"):
            last.run()
    except (subprocess.CalledProcessError, OSError) as e:
        raise UserError(f"sbatch failed ({e}): see {work / 'stderr.log'}") from e
    return len(chain)
