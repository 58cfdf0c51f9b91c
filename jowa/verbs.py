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
        "jowa.collecting.config:CollectConfig",
        "jowa.collecting.commands:collect",
        "play games and record data",
    ),
    "convert dqn_replay": Verb(
        "jowa.exchange.config:ConvertDqnReplayConfig",
        "jowa.exchange.convert:convert_dqn_replay",
        "make data of the DQN Replay files",
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
    "tune": Verb(
        "jowa.evaluation.config:TuneConfig",
        "jowa.evaluation.tune:tune",
        "choose the planner's numbers by play",
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
    "export-weights": Verb(
        "jowa.learning.config:ExportWeightsConfig",
        "jowa.learning.export_weights:export_weights",
        "make one small file of a checkpoint",
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
        "jowa.collecting.config:GamesConfig",
        "jowa.collecting.commands:list_games",
        "list the 60 games",
    ),
    "data info": Verb(
        "jowa.data.config:InfoConfig",
        "jowa.data.commands:info",
        "say what an episode store holds",
    ),
    "data verify": Verb(
        "jowa.data.config:VerifyConfig",
        "jowa.data.commands:verify",
        "check every array and frame",
    ),
    "data sample": Verb(
        "jowa.data.config:SampleConfig",
        "jowa.data.commands:sample",
        "draw strips of recorded frames",
    ),
    "data export": Verb(
        "jowa.exchange.config:ExportConfig",
        "jowa.exchange.commands:export_minari",
        "write episodes as a Minari dataset",
    ),
    "data import": Verb(
        "jowa.exchange.config:ImportConfig",
        "jowa.exchange.commands:import_minari",
        "make an episode file of a Minari dataset",
    ),
    "convert published_finetune": Verb(
        "jowa.exchange.config:PublishedFinetuneConfig",
        "jowa.exchange.commands:convert_published_finetune",
        "make episode files of the authors' data",
    ),
    "data probe": Verb(
        "jowa.evaluation.config:ProbeConfig",
        "jowa.evaluation.probe:probe",
        "measure what play can be cloned from data",
    ),
}
