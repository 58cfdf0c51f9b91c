"""Public name of the score statistics: `jowa.scores.normalise`, `iqm` and `interval`."""

from jowa.evaluation.scores import interval, iqm, normalise

__all__ = ["interval", "iqm", "normalise"]
