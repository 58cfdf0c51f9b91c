"""Which checkpoints of a run stay: the last ones, the best ones, and the ends of phases."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Score:
    """The mean of one logged scalar over the logged steps since the last scheduled checkpoint.

    A checkpoint that a stop makes between two scheduled ones carries the sum so far, so that the
    next one has the mean it would have had without the stop; it has no mean of its own.
    """

    metric: str
    total: float = 0.0
    steps: int = 0

    @classmethod
    def going_on(cls, metric: str, saved: dict[str, Any] | None) -> Score:
        """The score to go on with after a checkpoint whose state.json holds `saved`."""
        if saved is None or saved["metric"] != metric or saved["mean"] is not None:
            return cls(metric)
        return cls(metric, saved["total"], saved["steps"])

    def add(self, values: dict[str, float]) -> None:
        """Counts a logged step, if it holds the metric."""
        if self.metric in values:
            self.total += values[self.metric]
            self.steps += 1

    def state(self, scheduled: bool) -> dict[str, Any]:
        """What state.json holds of it."""
        mean = self.total / self.steps if scheduled and self.steps else None
        return {"metric": self.metric, "mean": mean, "total": self.total, "steps": self.steps}


def kept(complete: list[Path], keep: int, keep_best: int) -> set[Path]:
    """Of a run's complete checkpoints, oldest first, those that stay.

    The last `keep`, the best `keep_best` of each phase, and every one that ends a phase, for other
    runs to start from.
    """
    assert keep >= 1 and keep_best >= 0
    states = {path: _state(path) for path in complete}
    stay = {*complete[-keep:], *(path for path in complete if ends_phase(states[path]))}
    for ranked in _ranked(states).values():
        stay |= set(ranked[:keep_best])
    return stay


def best(complete: list[Path]) -> Path | None:
    """The best of these checkpoints, oldest first, by the newest one's phase and metric; None if
    none of them has a score."""
    states = {path: _state(path) for path in complete}
    kind = _kind(states[complete[-1]]) if complete else None
    return next(iter(_ranked(states).get(kind, [])), None)


def ends_phase(state: dict[str, Any]) -> bool:
    """Whether a checkpoint of this state.json was made at the end of its phase."""
    return _phase(state) in state.get("position", {}).get("done", [])


def _ranked(states: dict[Path, dict[str, Any]]) -> dict[object, list[Path]]:
    """Scored checkpoints, best first, the earlier first of equals, by what can be compared."""
    groups: dict[object, list[tuple[float, Path]]] = {}
    for path, state in states.items():
        mean = _score(state).get("mean")
        if mean is not None:
            groups.setdefault(_kind(state), []).append((mean, path))
    return {kind: [path for _, path in sorted(group)] for kind, group in groups.items()}


def _kind(state: dict[str, Any]) -> tuple[str, str]:
    """Phase and metric: only scores that share both can be compared."""
    return _phase(state), _score(state).get("metric", "")


def _score(state: dict[str, Any]) -> dict[str, Any]:
    return state.get("score") or {}


def _phase(state: dict[str, Any]) -> str:
    return state.get("position", {}).get("phase", "")


def _state(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's state.json; nothing for a damaged one, which no score can save."""
    try:
        state = json.loads((checkpoint / "state.json").read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}
