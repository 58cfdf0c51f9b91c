"""What an experiment costs on a machine, computed before any of it runs.

    python scripts/costs.py paper_150m --gpus 8 --tflops 790 [--utilisation 0.44] [KEY=VALUE ...]

Hours follow from FLOPs, from what one GPU does in a large bfloat16 matrix product (measure it:
`python scripts/bench/training.py` prints it) and from the share of that which training reaches.
On one H200 of 770 to 790 TFLOP/s (eval/results/gpu.json) that is 0.46 for jowa_150m, compiled,
with 128 segments, a little more than is reckoned with unless told; as one CUDA graph without
compiling, with 64, 0.31, 0.30 (jowa_70m) and 0.19 (jowa_40m).
KEY=VALUE changes options of `jowa pretrain`, such as model=jowa_70m. Fine-tuning takes one GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

from counting import Step, count_step, encoding_flops
from omegaconf import OmegaConf

from jowa.cli import composed, config_folder
from jowa.data.tokens import TOKENS_PER_FRAME
from jowa.errors import UserError
from jowa.models.tokenizer import FRAME_SIZE
from jowa.models.tokenizers import build_tokenizer

DATA_VERBS = ("collect", "convert-dqn_replay")
FRAME_BYTES = FRAME_SIZE * FRAME_SIZE
# Measured on one core (eval/RESULTS.md, "Data"; eval/results/convert.json and loading.json).
COMPRESSION = (157, 22)  # of the game that shrinks most, and of that which shrinks least
LEARNER_STEPS = (420, 240)  # a second, with the small network and with the usual one
CONVERTED_ROWS = 38_000  # a second, of those that are kept
GUNZIP_SECONDS = 1.4e-6  # for each row that is read, kept or not
DECOMPRESSED_BYTES = 3.3e9  # a second, of frames
# Counted: a transition's actions, rewards, segments and their order, in each process.
HOST_BYTES = 33
# Frames are encoded in float32, which is TF32 on a GPU: half of bfloat16's rate by data sheets.
EXACT_SLOWDOWN = 2.0
RUN_ROWS, RUN_CHECKPOINTS = 50_000_000, 50  # of one run of DQN Replay
# A step of so little arithmetic is bound by starting kernels and reading data instead.
SHORT_SECONDS = 0.01


@dataclasses.dataclass(frozen=True)
class Machine:
    """`tflops` is what one GPU does in a second of a large bfloat16 matrix product."""

    gpus: int
    tflops: float
    utilisation: float

    def seconds(self, flops: float, exact_flops: float = 0.0) -> float:
        """Of all GPUs together; `exact_flops` are those of encoding frames."""
        rate = 1e12 * self.tflops * self.utilisation * self.gpus
        return (flops + EXACT_SLOWDOWN * exact_flops) / rate


HEADER = (
    f"{'phase':<10}{'segments':>9}{'MFLOP/token':>13}{'TFLOP/step':>12}{'steps/s':>10}"
    f"{'tokens/s':>13}{'steps':>11}{'hours':>8}{'GB':>7}   (segments and GB on each GPU)"
)
NOTES = """\
Nothing here was run. Hours assume a utilisation of {:g} (0.44: jowa_150m, one H200).
GB are of weights, optimiser and activations in float32, without workspace; bfloat16 takes less.
* longer in fact: steps of so little arithmetic are bound by starting kernels and by reading."""


def row(name: str, steps: int, step: Step, machine: Machine) -> str:
    """A line of the table, under `HEADER`."""
    seconds, flops = machine.seconds(step.flops, step.exact_flops), step.flops + step.exact_flops
    return (
        f"{name:<10}{step.segments / machine.gpus:>9g}{flops / step.tokens / 1e6:>13.1f}"
        f"{flops / 1e12:>12.4g}{1 / seconds:>10.1f}{step.tokens / seconds:>13,.0f}{steps:>11,}"
        f"{steps * seconds / 3600:>8.2f}{step.memory / 1e9:>7.1f}"
        f"{' *' if seconds < SHORT_SECONDS else ''}"
    )


def recipe(verb: str, experiment: str, *overrides: str) -> Any:
    """The filled configuration of a verb, or None where the experiment says nothing of it."""
    if not (config_folder() / "experiment" / experiment / f"{verb}.yaml").exists():
        return None
    overrides = (f"experiment={experiment}", *overrides)
    return OmegaConf.to_object(composed(verb.replace("-", " "), list(overrides)))


def training_costs(experiment: str, pretrain: Any, machine: Machine) -> Iterator[str]:
    """A row for each phase; fine-tuning takes the sizes of pretraining."""
    if (config := recipe("tokenize", experiment, "run=-")) is not None:
        step = count_step(config.training, config.tokenizer, None, machine.gpus)
        yield row("tokenizer", config.training.steps, step, machine)
    if pretrain is None:
        return
    sizes = pretrain.tokenizer, pretrain.model
    step = count_step(pretrain.stage1, *sizes, machine.gpus)
    yield row("stage1", pretrain.stage1.steps, step, machine)
    step = count_step(pretrain.stage2, *sizes, machine.gpus, frames=False)
    yield row("stage2", pretrain.stage2.steps, step, machine)
    config = recipe("finetune", experiment, "run=-", "checkpoint=-", "game=Pong")
    if config is not None:
        step = count_step(config.training, *sizes, 1)
        yield row("finetune", config.training.steps, step, dataclasses.replace(machine, gpus=1))


def data_costs(experiment: str, pretrain: Any, machine: Machine) -> Iterator[str]:
    """Disk, memory and work of the data that the experiment makes, or that it pretrains on."""
    names = sorted(path.name for path in (config_folder() / "experiment").iterdir())
    if experiment not in names:
        raise UserError(f"there is no experiment {experiment!r}: use one of {', '.join(names)}.")
    if any(recipe(verb, experiment) for verb in DATA_VERBS):
        names = [experiment]
    for name in names:
        for config in filter(None, (recipe(verb, name) for verb in DATA_VERBS)):
            read = pretrain is not None and config.root == pretrain.data.root
            if read or name == experiment:
                yield from recipe_costs(name, config)
            if read:
                hours = encoding_seconds(config, pretrain, machine) / 3600
                yield f"  making the tokens: {hours:.2g} hours"


def encoding_seconds(config: Any, pretrain: Any, machine: Machine) -> float:
    """Of all frames, once; each process reads and encodes whole games."""
    rows = -(-len(config.games) // machine.gpus) * config.transitions
    flops = rows * encoding_flops(build_tokenizer(pretrain.tokenizer))
    alone = dataclasses.replace(machine, gpus=1)
    return alone.seconds(0.0, flops) + rows * FRAME_BYTES / DECOMPRESSED_BYTES


def recipe_costs(name: str, config: Any) -> Iterator[str]:
    """What data takes on disk and in memory, and the work of making it in core-hours."""
    games, rows = len(config.games), len(config.games) * config.transitions
    most, least = (rows * FRAME_BYTES / ratio / 1e9 for ratio in COMPRESSION)
    yield (
        f"data of experiment={name}: {games} games, {rows:,} transitions; on disk {most:.3g} to "
        f"{least:.3g} GB of frames and {2 * TOKENS_PER_FRAME * rows / 1e9:.3g} GB of tokens; "
        f"{HOST_BYTES * rows / 1e9:.2g} GB of host memory in each process"
    )
    if hasattr(config, "draw_runs"):
        share = (config.last_checkpoints or RUN_CHECKPOINTS) / RUN_CHECKPOINTS
        read = games * config.draw_runs * RUN_ROWS * share
        hours = (rows / CONVERTED_ROWS + read * GUNZIP_SECONDS) / 3600
        yield f"  conversion: {hours:.2g} core-hours, {read:,.0f} rows to fetch"
    elif steps := games * sum(tier.learner.steps for tier in config.tiers if tier.learner):
        least, most = (steps / rate / 3600 for rate in LEARNER_STEPS)
        yield f"  learners: {steps:,} steps, {least:,.0f} to {most:,.0f} core-hours without a GPU"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--tflops", type=float, required=True)
    parser.add_argument("--utilisation", type=float, default=0.44)
    options = parser.parse_intermixed_args(arguments)
    if options.gpus < 1:
        parser.error(f"--gpus is {options.gpus}: a machine has 1 or more.")
    if options.tflops <= 0:
        parser.error(f"--tflops is {options.tflops:g}: give what one GPU does, more than 0.")
    if not 0 < options.utilisation <= 1:
        parser.error(f"--utilisation is {options.utilisation:g}: it is a share, above 0, up to 1.")
    machine = Machine(options.gpus, options.tflops, options.utilisation)
    try:
        pretrain = recipe("pretrain", options.experiment, "run=-", *options.changes)
        lines = [*data_costs(options.experiment, pretrain, machine)]
        table = [*training_costs(options.experiment, pretrain, machine)]
    except UserError as error:
        print(f"costs.py: {error}", file=sys.stderr)
        return 2
    lines += [HEADER, *table, NOTES.format(machine.utilisation)] if table else []
    print(f"{options.experiment} on {machine.gpus} GPUs of {machine.tflops:g} TFLOP/s in bfloat16")
    print(*lines, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
