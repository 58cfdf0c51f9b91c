"""What `jowa report` does: gathers what the named files hold."""

from __future__ import annotations

from pathlib import Path

from jowa.errors import UserError
from jowa.evaluation.config import ReportConfig
from jowa.evaluation.report import Comparison, ReportInput, write_report
from jowa.evaluation.scores import ScoreFile

# What the report draws of a run's log, in this order.
CURVES = (
    "tokenizer/foreground_kept",
    "world_model/observation",
    "accuracy/tokens",
    "accuracy/changed_tokens",
    "accuracy/nonzero_rewards",
    "q/td",
    "q/data_actions",
    "q/greedy_is_data_action",
    "speed/tokens_per_second",
)


def report(config: ReportConfig) -> Path:
    """Writes the report; returns the HTML file's path."""
    files = [ScoreFile.load(path) for path in config.scores]
    runs = [Path(run) for run in config.runs]
    for run in runs:
        if not (run / "metrics.jsonl").exists():
            raise UserError(f"{run} is not a run directory (no metrics.jsonl): mend runs=[...].")
    data_means: dict[str, float | None] = {}
    for file in files:
        data_means |= file.data_means
    timings = read_timings(Path(config.timings)) if config.timings else {}
    pictures = [
        (f"{run.name}: {caption}", run / "images" / f"{name}.png")
        for run in runs
        for name, caption in (
            ("reconstructions", "frames (above) and what the tokenizer keeps of them (below)"),
            ("dream", "what happened (above) and what the model dreams from two frames (below)"),
        )
        if (run / "images" / f"{name}.png").exists()
    ]
    page = write_report(
        ReportInput(
            title=config.title,
            evaluations=[e for file in files for e in file.evaluations],
            baselines={name: b for file in files for name, b in file.baselines.items()},
            data_means=data_means,
            curves=[(run.name, run / "metrics.jsonl") for run in runs],
            metrics=CURVES,
            images=pictures,
            film=config.film,
            timings=timings,
            comparisons=[_comparison(pair) for pair in config.compare],
        ),
        config.out,
    )
    print(f"report: {page}")
    return page


def read_timings(path: Path) -> dict[str, float]:
    """Seconds by stage from lines such as `72 tokenize`; a stage named twice is summed."""
    timings: dict[str, float] = {}
    try:
        for line in path.read_text().splitlines():
            seconds, _, name = line.partition(" ")
            timings[name] = timings.get(name, 0.0) + float(seconds)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} does not hold timings ({error}): write a line `SECONDS STAGE` each."
        ) from error
    return timings


def _comparison(pair: str) -> Comparison:
    first, bar, second = pair.partition("|")
    if not bar:
        raise UserError(f'compare has {pair!r}: write two labels as "first|second".')
    return Comparison(f"{second} against {first}", first, second)
