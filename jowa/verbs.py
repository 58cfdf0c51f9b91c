"""The commands of `jowa`, each with its configuration class and function."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Verb:
    """A command: its configuration class and function, as "module:name" so that help is quick."""

    config: str
    function: str
    summary: str

    @property
    def schema(self) -> type:
        """The configuration class."""
        schema: type = _named(self.config)
        return schema

    def load(self) -> Callable[[Any], Any]:
        """The function, which takes the filled configuration."""
        function: Callable[[Any], Any] = _named(self.function)
        return function


def _named(place: str) -> Any:
    """What "module:name" names."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


# A verb may be of two words; its configuration file has a hyphen between them.
VERBS = {
    "collect": Verb(
        "jowa.data.config:CollectConfig", "jowa.data.commands:collect", "play games and record data"
    ),
    "tokenize": Verb(
        "jowa.learning.config:TokenizeConfig",
        "jowa.learning.tokenize:tokenize",
        "train a tokenizer, encode the data",
    ),
    "pretrain": Verb(
        "jowa.learning.config:PretrainConfig",
        "jowa.learning.pretrain:pretrain",
        "train world model and Q on many games",
    ),
    "evaluate": Verb(
        "jowa.evaluation.config:EvaluateConfig",
        "jowa.evaluation.evaluate:evaluate",
        "play for scores, greedy or planned",
    ),
    "finetune": Verb(
        "jowa.learning.config:FinetuneConfig",
        "jowa.learning.finetune:finetune",
        "learn a held-out game from few games",
    ),
    "import-weights": Verb(
        "jowa.learning.config:ImportWeightsConfig",
        "jowa.learning.import_weights:import_weights",
        "make a checkpoint of published weights",
    ),
    "watch": Verb(
        "jowa.evaluation.config:WatchConfig",
        "jowa.evaluation.watch:watch",
        "film an agent at play",
    ),
    "report": Verb(
        "jowa.evaluation.config:ReportConfig",
        "jowa.evaluation.commands:report",
        "write a report about finished runs",
    ),
    "runs": Verb(
        "jowa.learning.config:RunsConfig",
        "jowa.learning.runs:list_runs",
        "list runs and how far they are",
    ),
    "games": Verb(
        "jowa.data.config:GamesConfig", "jowa.data.commands:list_games", "list the 60 games"
    ),
}
