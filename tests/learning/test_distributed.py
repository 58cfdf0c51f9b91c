"""Several processes train as one: the same weights, one stop, one death, one resume."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import jowa
from jowa.cli import main
from jowa.learning.checkpoint import find, load
from jowa.learning.record import starts
from jowa.models.tokenizer import CodeStatistics

BATCH = 6
JOWA = ("-m", "jowa")
JOBS = Path(__file__).parent / "jobs"
FSDP = "compute.parallel=fsdp"
SIZES = [
    *["tokenizer.hidden=16", "tokenizer.code_width=4", "tokenizer.vocabulary=32"],
    *["tokenizer.patches_per_frame=3", "model.vocabulary=32", "model.codebook_width=4"],
    *["model.reader_width=8", "model.q_width=16", "model.transformer.layers=1"],
    *["model.transformer.width=16", "model.transformer.dropout=0", "model.q_dropout=0"],
    "model.reader_dropout=0",
]
TRAINING = [
    *["stage1.steps=5", "stage2.steps=5", f"stage1.batch_size={BATCH}"],
    *[f"stage2.batch_size={BATCH}", "stage2.target_update_every=2", "log.scalars=1"],
    *["stage1.optimizer.learning_rate=1e-4", "stage2.optimizer.learning_rate=1e-4"],
    *["compute.device=cpu", "compute.dtype=float32", "compute.threads=1"],
]
SHORT = [
    *["log.checkpoint=2", "log.details=2", "log.pictures=100", "log.keep=9"],
    *["data.hold_out=3", "log.validation=3", "log.validation_batches=2"],
]


def command(run: Path, data: Path, *more: str) -> list[str]:
    games = ["data.games=[Pong,Freeway]", f"data.root={data}"]
    return ["pretrain", f"run={run}", *games, *SIZES, *TRAINING, *SHORT, *more]


def launch(
    processes: int,
    arguments: list[str],
    place: tuple[str, ...] = ("--standalone",),
    program: tuple[str, ...] = JOWA,
) -> subprocess.Popen[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", *place]
    return subprocess.Popen(
        [*torchrun, f"--nproc_per_node={processes}", *program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def together(processes: int, arguments: list[str], program: tuple[str, ...] = JOWA) -> None:
    """Runs the command in several processes to its end."""
    job = launch(processes, arguments, program=program)
    output, _ = job.communicate(timeout=240)
    assert job.returncode == 0, output


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """Data of its own, so that no tokens lie beside it yet."""
    root = tmp_path_factory.mktemp("distributed") / "data"
    shutil.copytree(data_root, root, ignore=shutil.ignore_patterns("tokens"))
    return root


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, data: Path) -> str:
    """One whose codes lie apart: rounding decides between those of a fresh one."""
    run = tmp_path_factory.mktemp("tokenizer") / "run"
    arguments = ["tokenize", f"run={run}", "data.games=[Pong,Freeway]", f"data.root={data}"]
    steps = ["training.steps=80", "training.batch_size=16", "compute.device=cpu"]
    assert main([*arguments, *SIZES[:4], *steps, "compute.dtype=float32"]) == 0
    return f"tokenizer_from={run}"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, data: Path, tokenizer: str) -> Path:
    """One process with the whole batch."""
    run = tmp_path_factory.mktemp("alone") / "run"
    assert main(command(run, data, tokenizer)) == 0
    shutil.rmtree(data / "tokens")
    return run


def assert_same_weights(run: Path, other: Path, tolerance: float) -> None:
    ours, theirs = load(find(run)), load(find(other))
    assert ours.step == theirs.step
    for stem in ("model", "tokenizer"):
        for name, tensor in ours.tensors[stem].items():
            torch.testing.assert_close(
                tensor, theirs.tensors[stem][name], rtol=tolerance, atol=tolerance, msg=name
            )


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_train_as_one(
    tmp_path: Path, data: Path, tokenizer: str, alone: Path, processes: int, parallel: str
) -> None:
    """Through both stages: frames with padding, codebook, encoding in parallel, tokens and Q."""
    run = tmp_path / "run"
    together(processes, command(run, data, tokenizer, f"compute.parallel={parallel}"))
    assert_same_weights(run, alone, 1e-6)
    lines = [(path / "metrics.jsonl").read_text().splitlines() for path in (run, alone)]
    assert len(lines[0]) == len(lines[1]) == 10
    for ours, theirs in zip(*(map(json.loads, part) for part in lines), strict=True):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            kinds = ("loss/", "world_model/", "q/", "gradient_norm/", "validation/")
            if name.startswith(kinds) and not name.endswith("codes_in_batch"):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
            if name.startswith("guard/"):
                assert ours[name] == theirs[name], name
    assert shapes(run) == shapes(alone)
    assert jowa.load(run, device="cpu")


def shapes(run: Path) -> dict[str, dict[str, tuple[int, ...]]]:
    """Of all tensors of the newest checkpoint, by file; random state is each process's own."""
    files = sorted(find(run).glob("*.safetensors"))
    return {
        file.name: {n: tuple(t.shape) for n, t in load_file(file).items() if "rng/" not in n}
        for file in files
    }


def test_processes_agree_on_what_is_wrong() -> None:
    """Spikes, a diverging Q and a loss that is not finite, as one process with the whole batch
    sees them."""
    together(2, [], program=(str(JOBS / "guard.py"),))


def test_a_sharded_model_lies_in_parts() -> None:
    """Weights, gradients and the optimiser's state."""
    together(2, [], program=(str(JOBS / "sharding.py"),))


def cut(run: Path, step: int, copy: Path) -> Path:
    """A copy of a run, as it was when it had written the checkpoint of that step."""
    shutil.copytree(run, copy)
    for folder in copy.glob("checkpoints/step_*"):
        if int(folder.name.removeprefix("step_")) > step:
            shutil.rmtree(folder)
    assert load(find(copy)).step == step
    return copy


def test_a_run_goes_on_however_it_is_parallel(
    tmp_path: Path, data: Path, tokenizer: str, alone: Path
) -> None:
    """From one process to two that shard, in stage 1, and back to one in stage 2."""
    sharded = cut(alone, 2, tmp_path / "sharded")
    together(2, command(sharded, data, tokenizer, FSDP))
    assert_same_weights(sharded, alone, 1e-6)
    again = cut(sharded, 7, tmp_path / "again")
    assert main(command(again, data, tokenizer)) == 0
    assert_same_weights(again, alone, 1e-6)


def test_a_sharded_run_goes_on_bit_for_bit(tmp_path: Path, data: Path, tokenizer: str) -> None:
    """In stage 2, with dropout and with what each process imagined."""
    straight = tmp_path / "straight"
    arguments = [tokenizer, *LONG, "stage1.steps=3", "stage2.steps=9", "log.pictures=4", FSDP]
    together(2, command(straight, data, *arguments))
    broken = cut(straight, 9, tmp_path / "broken")
    together(2, command(broken, data, *arguments))
    assert_same_state(straight, broken)


def test_hosts_train_as_one(tmp_path: Path, data: Path, tokenizer: str, alone: Path) -> None:
    """Two launchers that meet at an address, each with an address of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", 0))
        port = probe.getsockname()[1]
    run = tmp_path / "run"
    jobs = []
    for host in (2, 3):
        meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.2:{port}", "--rdzv-id=x"]
        place = ("--nnodes=2", *meeting, f"--local-addr=127.0.0.{host}")
        jobs.append(launch(1, command(run, data, tokenizer), place))
    for job in jobs:
        output, _ = job.communicate(timeout=240)
        assert job.returncode == 0, output
    assert_same_weights(run, alone, 1e-6)


def assert_same_state(run: Path, other: Path) -> None:
    """Bit for bit: weights, optimiser, random states, and what each of two processes imagined."""
    assert_same_weights(run, other, 0.0)
    ours, theirs = (load(find(path), ("training",)).tensors["training"] for path in (run, other))
    assert {"rng/cpu/0", "rng/cpu/1"} <= ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    first, second = (ours[f"imagination/{rank}/keys"].tolist() for rank in (0, 1))
    assert len(first) == len(second) == 5 and not set(first) & set(second)


IMAGINING = ["share=0.34", "segments=3", "buffer=5", "every=3", "start=1"]
LONG = [
    *["stage1.steps=30", "stage2.steps=40", "model.transformer.dropout=0.1"],
    *[f"stage2.imagination.{value}" for value in IMAGINING],
]


def workers(job: subprocess.Popen[str]) -> list[int]:
    """The processes that a launcher has started."""
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    return [int(child) for child in children]


def reaches(run: Path, step: int, job: subprocess.Popen[str]) -> None:
    """Waits until the run has logged the step."""
    log, start = run / "metrics.jsonl", time.monotonic()
    while not log.exists() or len(log.read_text().splitlines()) < step:
        assert job.poll() is None and time.monotonic() - start < 120, "the job ended early"
        time.sleep(0.02)


def test_a_dead_process_ends_the_job_and_the_run_goes_on_bit_for_bit(
    tmp_path: Path, data: Path, tokenizer: str
) -> None:
    """Killed in stage 1, told to stop in stage 2, then finished: as if nothing had happened, with
    dropout and with what each process imagined."""
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    together(2, command(straight, data, tokenizer, *LONG))
    job = launch(2, command(broken, data, tokenizer, *LONG))
    reaches(broken, 11, job)
    os.kill(workers(job)[1], signal.SIGKILL)
    killed = time.monotonic()
    output, _ = job.communicate(timeout=120)
    assert job.returncode != 0 and time.monotonic() - killed < 60
    assert "lost the others of its job" in output or "SIGKILL" in output, output
    assert load(find(broken)).step >= 10
    job = launch(2, command(broken, data, tokenizer, *LONG))
    reaches(broken, 45, job)
    os.kill(workers(job)[1], signal.SIGTERM)  # one alone: they agree on where to stop
    output, _ = job.communicate(timeout=120)
    assert "the same command goes on" in output, output
    together(2, command(broken, data, tokenizer, *LONG))
    # Written down by the first process alone.
    assert [(start["processes"], start["step"] > 0) for start in starts(broken)] == [
        (2, False),
        (2, True),
        (2, True),
    ]
    assert_same_state(straight, broken)


def test_a_batch_smaller_than_the_processes_is_refused(tmp_path: Path, data: Path) -> None:
    job = launch(2, [*command(tmp_path / "run", data), "stage1.batch_size=1"])
    output, _ = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "batch_size 1 cannot be split over 2 processes" in output, output
    assert not (tmp_path / "run").exists() or not list(tmp_path.glob("run/checkpoints/*"))


def test_merged_statistics_are_those_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> CodeStatistics:
        priority = torch.rand(count, generator=generator).sort(descending=True).values
        vectors = torch.rand(count, 2, generator=generator)
        sums = torch.rand(4, 2, generator=generator)
        numbers = torch.rand(4, generator=generator)
        return CodeStatistics(numbers, sums, numbers[:2], priority, vectors, vectors[:, 0])

    parts = [part(3), part(3)]
    merged = CodeStatistics.merge(parts)
    torch.testing.assert_close(merged.counts, parts[0].counts + parts[1].counts)
    torch.testing.assert_close(merged.sums, parts[0].sums + parts[1].sums)
    everything = [
        (float(p), v) for q in parts for p, v in zip(q.priority, q.candidates, strict=True)
    ]
    best = sorted(everything, key=lambda item: -item[0])[:4]
    assert merged.priority.tolist() == [priority for priority, _ in best]
    assert torch.equal(merged.candidates, torch.stack([vector for _, vector in best]))
