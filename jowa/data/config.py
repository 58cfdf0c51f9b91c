"""The typed configuration of the commands that look at stored episodes."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class InfoConfig:
    """Says what an episode store holds: a line a game, and everything about a single game.

    Episodes, returns and lengths, ends, tiers, actions, rewards, size, tokens and what was found
    while the data was made. Frames are not read, so it is quick.

    root               folder of the data
    games              names; empty is all that are there
    details            everything about each game, however many there are
    out                a .json file for the same as data; empty writes none
    """

    root: str = MISSING
    games: list[str] = field(default_factory=list)
    details: bool = False
    out: str = ""


@dataclass
class VerifyConfig:
    """Checks every array and every frame of an episode store against its hash.

    Every damaged file is named and what to do about it; the exit code is then 2. What interrupted
    writers left behind is named too, but is no damage.

    root               folder of the data
    games              names; empty is all that are there
    workers            files checked at once, each in a process of its own; 0 is as many as pay, at
                       most one a core
    """

    root: str = MISSING
    games: list[str] = field(default_factory=list)
    workers: int = 0


@dataclass
class SampleConfig:
    """Draws a contact sheet of recorded play: strips of consecutive frames from random places.

    Under each frame stand the action that followed it, its reward, and how the episode ended.

    root               folder of the data
    game               name, as `jowa games` lists them
    out                the picture to write, a .png file
    number             strips, one below the other
    length             frames in a strip
    tier               only play of this tier; empty is all
    seed               another one draws other strips
    """

    root: str = MISSING
    game: str = MISSING
    out: str = MISSING
    number: int = 8
    length: int = 8
    tier: str = ""
    seed: int = 0
