"""`jowa VERB [key=value ...]`: composes the verb's configuration and runs it."""

from __future__ import annotations

import difflib
import os
import re
import select
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from jowa.errors import UserError
from jowa.verbs import VERBS


def _split_verb(arguments: list[str]) -> tuple[str, list[str]]:
    """The verb, of one word or two, and what follows it; UserError where there is no such verb."""
    two = " ".join(arguments[:2])
    if two in VERBS:
        return two, arguments[2:]
    first = arguments[0]
    if first in VERBS:
        return first, arguments[1:]
    second = [verb for verb in VERBS if verb.startswith(f"{first} ")]
    if second:
        raise UserError(f"`jowa {first}` needs one more word: {', '.join(second)}.")
    raise UserError(f"there is no command {first!r}{_near(first, list(VERBS))}")


def _file(verb: str) -> str:
    """Name of the verb's configuration file, without its ending."""
    return verb.replace(" ", "-")


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0, 2 for a user's mistake, 130 when stopped, 141 when
    nobody reads on what it says."""
    try:
        code = _answer(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"jowa: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _unread():
            return 141  # as a shell says of what SIGPIPE ended
        if error.filename is None:
            raise
        print(f"jowa: error: {error.filename}: {error.strerror}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"jowa: stopped{f': {stop}' if str(stop) else ''}", file=sys.stderr)
        return 130


def _answer(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0 if arguments else 2
    verb, overrides = _split_verb(arguments)
    if "-h" in overrides or "--help" in overrides:
        print(describe(verb, [o for o in overrides if o not in ("-h", "--help")]))
    else:
        run(verb, overrides)
    return 0


def _unread() -> bool:
    """Whether whatever read the standard output, such as `head`, has ended; then nothing more is
    written to it, not at the interpreter's end either."""
    output = select.poll()
    output.register(sys.stdout.fileno())
    ended = any(event & select.POLLERR for _, event in output.poll(0))
    if ended:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ended


def run(verb: str, overrides: list[str]) -> None:
    """Composes the configuration and calls the verb's function."""
    config = composed(verb, overrides)
    missing = OmegaConf.missing_keys(config)
    if missing:
        raise UserError(
            f"`jowa {verb}` needs {', '.join(f'{key}=...' for key in sorted(missing))}; "
            f"`jowa {verb} -h` explains."
        )
    function: Callable[[Any], Any] = VERBS[verb].load()
    target = OmegaConf.select(config, "run") or OmegaConf.select(config, "out")
    target = target or OmegaConf.select(config, "root")
    if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        print(f"jowa {verb}" + (f" -> {target}" if target else ""), flush=True)
    function(OmegaConf.to_object(config))


def composed(verb: str, overrides: list[str]) -> Any:
    """The verb's configuration; UserError in one sentence for anything Hydra refuses."""
    from jowa.models.tokenizers import KINDS

    schema = VERBS[verb].schema
    files, overrides = _split_files(schema, overrides)
    store = ConfigStore.instance()
    store.store(f"{_file(verb)}_schema", schema)
    for kind, sizes in KINDS.items():
        store.store(f"{kind}_schema", sizes, group="tokenizer")
    folder = config_folder()
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            config = compose(
                _file(verb), overrides=[_experiment(verb, o, folder) for o in overrides]
            )
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
    if not (folder / "experiment" / match[1] / f"{_file(verb)}.yaml").exists():
        having = sorted(
            p.parent.name for p in (folder / "experiment").glob(f"*/{_file(verb)}.yaml")
        )
        raise UserError(
            f"no experiment {match[1]!r} says anything of `jowa {verb}`; "
            f"there are: {', '.join(having) or 'none'}."
        )
    return f"+experiment={match[1]}/{_file(verb)}"


def explain(verb: str, error: Exception, folder: Path) -> str:
    """Hydra's error as one sentence."""
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        inner = re.search(r"Key '([^']+)' not in", str(error.__cause__))
        if inner and inner[1] != match[1].rpartition(".")[2]:  # within the value of an option
            return f"{inner[1]!r} is no key of {match[1]}; `jowa {verb} -h` explains."
        known = _keys(verb)
        return f"{match[1]!r} is not an option of `jowa {verb}`{_near(match[1], known)}"
    if match := re.search(r"Could not find '([^']+)'", text):
        group = folder / match[1].rpartition("/")[0]
        there = ", ".join(sorted(p.stem for p in group.glob("*.yaml"))) or "nothing"
        return f"there is no configuration {match[1]!r}; {group.name}/ has: {there}."
    if "mismatched input" in text or "LexerNoViable" in text:
        return (
            f"an option is not of the form key=value, or has a value that needs quotes, such as "
            f"label=\"'a=b'\" where = or a parenthesis is part of it; `jowa {verb} -h` lists them."
        )
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
    width = max(len(name) for name in VERBS)
    rows = "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items())
    return (
        f"usage: jowa VERB [key=value ...]\n\n{rows}\n\n"
        f"`jowa VERB -h` shows a verb's options; experiment=NAME takes a whole recipe, such as "
        f"experiment=demo."
    )


def describe(verb: str, overrides: list[str]) -> str:
    """The text of `jowa VERB -h`: what it does, and every option with its value."""
    from jowa.learning.run import flatten

    schema = VERBS[verb].schema
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
