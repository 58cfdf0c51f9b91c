"""`jowa VERB [key=value ...]`: composes the verb's configuration and runs it."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from jowa.errors import UserError


@dataclass(frozen=True)
class Verb:
    """A command: its configuration class and function, by name so that help is quick."""

    config: str
    function: str
    summary: str


VERBS = {
    "collect": Verb("CollectConfig", "jowa.commands:collect", "play games and record data"),
    "tokenize": Verb(
        "TokenizeConfig", "jowa.learning.tokenize:tokenize", "train a tokenizer, encode the data"
    ),
    "pretrain": Verb(
        "PretrainConfig", "jowa.learning.pretrain:pretrain", "train world model and Q on many games"
    ),
    "evaluate": Verb(
        "EvaluateConfig", "jowa.evaluation.evaluate:evaluate", "play for scores, greedy or planned"
    ),
    "finetune": Verb(
        "FinetuneConfig", "jowa.learning.finetune:finetune", "learn a held-out game from few games"
    ),
    "import-weights": Verb(
        "ImportWeightsConfig",
        "jowa.learning.import_weights:import_weights",
        "make a checkpoint of published weights",
    ),
    "watch": Verb("WatchConfig", "jowa.evaluation.evaluate:watch", "film an agent at play"),
    "report": Verb("ReportConfig", "jowa.commands:report", "write a report about finished runs"),
    "runs": Verb("RunsConfig", "jowa.learning.runs:list_runs", "list runs and how far they are"),
    "games": Verb("GamesConfig", "jowa.commands:list_games", "list the 60 games"),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0, 2 for a user's mistake, 130 when stopped."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(overview())
            return 0 if arguments else 2
        verb, overrides = arguments[0], arguments[1:]
        if verb not in VERBS:
            raise UserError(f"there is no command {verb!r}{_near(verb, list(VERBS))}")
        if "-h" in overrides or "--help" in overrides:
            rest = [o for o in overrides if o not in ("-h", "--help")]
            print(describe(verb, rest))
            return 0
        run(verb, overrides)
    except UserError as error:
        print(f"jowa: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"jowa: stopped{f': {stop}' if str(stop) else ''}", file=sys.stderr)
        return 130
    return 0


def run(verb: str, overrides: list[str]) -> None:
    """Composes the configuration and calls the verb's function."""
    config = composed(verb, overrides)
    missing = OmegaConf.missing_keys(config)
    if missing:
        raise UserError(
            f"`jowa {verb}` needs {', '.join(f'{key}=...' for key in sorted(missing))}; "
            f"`jowa {verb} -h` explains."
        )
    module, _, name = VERBS[verb].function.partition(":")
    function: Callable[[Any], Any] = getattr(importlib.import_module(module), name)
    target = OmegaConf.select(config, "run") or OmegaConf.select(config, "out")
    target = target or OmegaConf.select(config, "root")
    if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        print(f"jowa {verb}" + (f" -> {target}" if target else ""), flush=True)
    function(OmegaConf.to_object(config))


def composed(verb: str, overrides: list[str]) -> Any:
    """The verb's configuration; UserError in one sentence for anything Hydra refuses."""
    from jowa.models.tokenizers import KINDS

    schema = getattr(importlib.import_module("jowa.config"), VERBS[verb].config)
    files, overrides = _split_files(schema, overrides)
    store = ConfigStore.instance()
    store.store(f"{verb}_schema", schema)
    for kind, sizes in KINDS.items():
        store.store(f"{kind}_schema", sizes, group="tokenizer")
    folder = config_folder()
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            config = compose(verb, overrides=[_experiment(verb, o, folder) for o in overrides])
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(verb, error, folder)) from error
    for key, value in files.items():
        OmegaConf.update(config, key, value)
    return config


def _split_files(schema: type, overrides: list[str]) -> tuple[dict[str, str], list[str]]:
    """What the overrides say of the keys of a verb that are files though other verbs have groups
    of that name (which Hydra would look into), and the other overrides."""
    keys = {f.name for f in fields(schema) if f.type == "str"} & {"model", "tokenizer"}
    split = [override.partition("=") for override in overrides]
    files = {key: value for key, equals, value in split if key in keys and equals}
    return files, [override for override in overrides if override.partition("=")[0] not in files]


def _experiment(verb: str, override: str, folder: Path) -> str:
    """`experiment=NAME` takes what experiment NAME says of this verb."""
    match = re.fullmatch(r"\+?experiment=(.+)", override)
    if match is None:
        return override
    if not (folder / "experiment" / match[1] / f"{verb}.yaml").exists():
        having = sorted(p.parent.name for p in (folder / "experiment").glob(f"*/{verb}.yaml"))
        raise UserError(
            f"no experiment {match[1]!r} says anything of `jowa {verb}`; "
            f"there are: {', '.join(having) or 'none'}."
        )
    return f"+experiment={match[1]}/{verb}"


def explain(verb: str, error: Exception, folder: Path) -> str:
    """Hydra's error as one sentence."""
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        known = _keys(verb)
        return f"{match[1]!r} is not an option of `jowa {verb}`{_near(match[1], known)}"
    if match := re.search(r"Could not find '([^']+)'", text):
        group = folder / match[1].rpartition("/")[0]
        there = ", ".join(sorted(p.stem for p in group.glob("*.yaml"))) or "nothing"
        return f"there is no configuration {match[1]!r}; {group.name}/ has: {there}."
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in f"{text}\n{cause}".splitlines() if line.strip()]
    unique = list(dict.fromkeys(line for line in lines if "hydra.cc" not in line))
    if isinstance(cause, MissingMandatoryValue):
        unique = unique[-1:]
    return f"{' / '.join(unique[:3])}; write options as key=value, `jowa {verb} -h` lists them."


def _keys(verb: str) -> list[str]:
    """All options of a verb, dotted."""
    from jowa.learning.run import flatten

    plain = OmegaConf.to_container(composed(verb, []))
    assert isinstance(plain, dict)
    return list(flatten({str(key): value for key, value in plain.items()}))


def _near(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=2) or [
        key for key in known if key.rpartition(".")[2] == word.rpartition(".")[2]
    ]
    if near:
        return f": did you mean {' or '.join(near[:3])}?"
    shown = ", ".join(known) if len(known) < 12 else "`-h` lists them"
    return f": choose from {shown}." if len(known) < 12 else f"; {shown}."


def overview() -> str:
    """The text of `jowa -h`."""
    rows = "\n".join(f"  {name:<15} {verb.summary}" for name, verb in VERBS.items())
    return (
        f"usage: jowa VERB [key=value ...]\n\n{rows}\n\n"
        f"`jowa VERB -h` shows a verb's options; experiment=NAME takes a whole recipe, such as "
        f"experiment=demo."
    )


def describe(verb: str, overrides: list[str]) -> str:
    """The text of `jowa VERB -h`: what it does, and every option with its value."""
    from jowa.learning.run import flatten

    schema = getattr(importlib.import_module("jowa.config"), VERBS[verb].config)
    plain = OmegaConf.to_container(composed(verb, overrides))
    assert isinstance(plain, dict)
    flat = flatten({str(key): value for key, value in plain.items()})
    rows = "\n".join(
        f"  {key}={'null' if value is None else value}".replace("=???", "=... (required)")
        for key, value in flat.items()
    )
    return (
        f"usage: jowa {verb} [key=value ...]\n\n{schema.__doc__}\n\n"
        f"Options and their values here:\n{rows}"
    )


def config_folder() -> Path:
    """The folder of YAML files: inside an installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "pretrain.yaml").exists():
            return folder
    raise UserError("jowa's configs/ folder is missing: install jowa again.")


if __name__ == "__main__":
    sys.exit(main())
