"""What `jowa data info` prints: a line a game, or all about one; within 100 columns."""

from __future__ import annotations

import json
import textwrap
from typing import Any

_WIDTH = 100
_INDENT = 14
_BLOCKS = "▁▂▃▄▅▆▇█"
_HEAD = (
    f"{'game':<16} {'transitions':>11} {'episodes':>8} {'full':>6} {'mean return':>11} "
    f"{'range':>19} {'rewards':>7} {'size':>8} {'ratio':>5}"
)


def text(info: dict[str, Any], all_details: bool = False) -> str:
    """What `jowa.data.info.store_info` found: everything about a single game, else a table.

    With `all_details` everything about every game. Files that cannot be read come last.
    """
    games = list(info["games"].values())
    if games and (all_details or len(games) == 1):
        parts = [_details(game) for game in games]
    else:
        parts = [_table(info)]
    if info["damaged"]:
        parts.append("\n".join(info["damaged"].values()))
    return "\n\n".join(parts)


def _table(info: dict[str, Any]) -> str:
    total = info["total"]
    summary = (
        f"{len(info['games'])} games: {total['transitions']:,} transitions in "
        f"{total['episodes']:,} episodes, {size(total['disk_bytes'])} on disk for "
        f"{size(total['frame_bytes'])} of frames, {size(total['token_bytes'])} of tokens"
    )
    rows = [_row(game) for game in info["games"].values()]
    return "\n".join([_HEAD, *rows, textwrap.fill(summary, _WIDTH)])


def _row(game: dict[str, Any]) -> str:
    returns = game["returns"]
    mean = f"{returns['mean']:,.1f}" if returns else "-"
    span = f"{_short(returns['min'])} .. {_short(returns['max'])}" if returns else "-"
    rewards = (game["positive_rewards"] + game["negative_rewards"]) / game["transitions"]
    return (
        f"{game['game']:<16} {game['transitions']:>11,} {game['episodes']:>8,} "
        f"{game['full_games']:>6,} {mean:>11} {span:>19} {rewards:>7.2%} "
        f"{size(game['disk_bytes']):>8} {game['compression']:>4.0f}x"
    )


def _short(points: float) -> str:
    return f"{points:,.0f}" if abs(points) < 1e6 else f"{points / 1e6:,.1f}M"


def _details(game: dict[str, Any]) -> str:
    rows = [
        ("source", game["source"]),
        ("file", game["path"]),
        ("fingerprint", game["fingerprint"][:16]),
        ("size", _sizes(game)),
        ("ends", ", ".join(f"{number:,} {name}" for name, number in game["ends"].items())),
        ("lengths", _distribution(game["lengths"], "steps")),
        ("returns", _returns(game)),
        ("tiers", _tiers(game["tiers"])),
        ("actions", _shares(game["actions"])),
        ("rewards", _rewards(game)),
        ("tokens", "\n".join(_token_line(part) for part in game["tokens"]) or "none"),
        ("made with", _plain(game["provenance"])),
        ("facts", _plain(game["facts"])),
    ]
    title = (
        f"{game['game']}: {game['transitions']:,} transitions in {game['episodes']:,} episodes, "
        f"{game['full_games']:,} of them full games"
    )
    return "\n".join([title, *(_field(name, text) for name, text in rows)])


def _field(name: str, text: str) -> str:
    """A name and its text, whose lines are wrapped and hang together."""
    wrapped = [
        part
        for line in text.splitlines()
        for part in textwrap.wrap(line, _WIDTH - _INDENT, drop_whitespace=True) or [""]
    ]
    lines = [
        f"  {name:<{_INDENT - 2}}{wrapped[0]}",
        *(" " * _INDENT + part for part in wrapped[1:]),
    ]
    return "\n".join(lines)


def _sizes(game: dict[str, Any]) -> str:
    return (
        f"{size(game['disk_bytes'])} on disk for {size(game['frame_bytes'])} of frames, "
        f"{game['compression']:.0f}x smaller"
    )


def _returns(game: dict[str, Any]) -> str:
    if not game["raw_rewards_known"]:
        return "unknown: only clipped rewards are stored"
    if game["returns"] is None:
        return "unknown: no full game was played to its end"
    return _distribution(game["returns"], f"points, {game['full_games']:,} full games")


def _distribution(values: dict[str, Any], unit: str) -> str:
    shown = ", ".join(f"{name} {values[name]:,.6g}" for name in ("min", "q25", "median", "q75"))
    return (
        f"{shown}, max {values['max']:,.6g}; mean {values['mean']:,.1f} ({unit})\n"
        f"{values['min']:,.6g} |{sparkline(values['histogram'])}| {values['max']:,.6g}"
    )


def sparkline(counts: list[int]) -> str:
    """One block a count, its height as the count's part of the largest; a blank for none."""
    top = max(counts)
    steps = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round(steps * n / top)] if n else " " for n in counts)


def _tiers(tiers: dict[str, Any]) -> str:
    lines = []
    for name, tier in tiers.items():
        returns = tier["returns"]
        spread = "no return known"
        if returns:
            spread = (
                f"return {returns['mean']:,.1f}, {returns['min']:,.6g} to {returns['max']:,.6g}"
            )
        counts = (
            f"{tier['transitions']:>11,} transitions {tier['episodes']:>6,} episodes "
            f"{tier['full_games']:>5,} full"
        )
        lines.append(f"{name:<10} {counts}  {spread}")
    return "\n".join(lines)


def _shares(actions: dict[str, int]) -> str:
    total = sum(actions.values())
    return "  ".join(f"{name}\N{NO-BREAK SPACE}{n / total:.1%}" for name, n in actions.items())


def _rewards(game: dict[str, Any]) -> str:
    up, down = game["positive_rewards"], game["negative_rewards"]
    steps = game["transitions"]
    known = "raw" if game["raw_rewards_known"] else "clipped"
    return (
        f"{(up + down) / steps:.2%} of the steps ({up / steps:.2%} positive, {down / steps:.2%} "
        f"negative); {known} values are stored"
    )


def _token_line(part: dict[str, Any]) -> str:
    other = "" if part["usable"] else ", of other episodes or damaged: can be deleted"
    return f"{part['tokenizer']} {size(part['bytes'])}{other}"


def _plain(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in values.items()) or "nothing"


def size(number: float) -> str:
    """Bytes as text, such as `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.{0 if number >= 100 or unit == 'B' else 1}f} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"
