"""What `jowa report` does: gathers what the named files hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jowa.errors import UserError
from jowa.evaluation.config import ReportConfig
from jowa.evaluation.report import ReportInput, write_report
from jowa.evaluation.scores import ScoreFile
from jowa.evaluation.sections import Comparison, run_entry
from jowa.learning.record import starts

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
    scores, remarks = merged({path: ScoreFile.load(path) for path in config.scores})
    runs = {_name(run, config.runs): Path(run) for run in config.runs}
    for run in runs.values():
        if not (run / "metrics.jsonl").exists():
            raise UserError(f"{run} is not a run directory (no metrics.jsonl): mend runs=[...].")
    timings = read_timings(Path(config.timings)) if config.timings else {}
    pictures = [
        (f"{name}: {caption}", run / "images" / f"{picture}.png")
        for name, run in runs.items()
        for picture, caption in (
            ("reconstructions", "frames (above) and what the tokenizer keeps of them (below)"),
            ("dream", "what happened (above) and what the model dreams from two frames (below)"),
        )
        if (run / "images" / f"{picture}.png").exists()
    ]
    started = {name: starts(run) for name, run in runs.items()}
    page = write_report(
        ReportInput(
            title=config.title,
            evaluations=scores.evaluations,
            baselines=scores.baselines,
            data_means=scores.data_means,
            curves=[(name, run / "metrics.jsonl") for name, run in runs.items()],
            metrics=CURVES,
            images=pictures,
            film=config.film,
            timings=timings,
            remarks=remarks,
            comparisons=[_comparison(pair) for pair in config.compare],
            references=config.references,
            provenance={f"run {name}": run_entry(s) for name, s in started.items() if s},
        ),
        config.out,
    )
    print(f"report: {page}")
    return page


def merged(files: Mapping[str, ScoreFile]) -> tuple[ScoreFile, list[str]]:
    """The scores of all files (by path) as one, and in words where they contradict each other.

    Of two baselines of a game the one of more episodes counts, of two data means the first. Raises
    UserError where two files hold the same label.
    """
    whole, remarks, homes = ScoreFile(), list[str](), dict[str, str]()
    for path, file in files.items():
        for evaluation in file.evaluations:
            if (home := homes.setdefault(evaluation.label, path)) != path:
                raise UserError(
                    f"{home} and {path} both hold an evaluation called {evaluation.label!r}: "
                    "change the label in one of the files."
                )
        whole.evaluations += file.evaluations
        for name, baselines in file.baselines.items():
            kept = whole.baselines.setdefault(name, baselines)
            if kept != baselines:
                if len(baselines.random.scores) > len(kept.random.scores):
                    whole.baselines[name] = baselines
                remarks.append(
                    f"Random and constant play of {name} differ among the scores files; "
                    "those of most episodes are shown."
                )
        for name, mean in file.data_means.items():
            if whole.data_means.setdefault(name, mean) != mean:
                remarks.append(
                    f"The data's mean of {name} differs among the scores files; the first is shown."
                )
    return whole, list(dict.fromkeys(remarks))


def _name(run: str, runs: Sequence[str]) -> str:
    """The run's folder name, or its whole path where another run's folder is called the same."""
    name = Path(run).name
    return name if [Path(other).name for other in runs].count(name) == 1 else run


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
