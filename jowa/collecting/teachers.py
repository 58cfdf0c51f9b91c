"""Scripted teachers: players that read the RAM and react to what is on the screen.

A teacher is a pure function of the RAM now and one step ago, so that its play can be learned from
a few frames: positions, and their motion since the frame before, decide; there is no hidden state
and no knowledge of the emulator's future. Scores in the docstrings are means of full games under
sticky actions 0.25. RAM addresses follow the annotations of Anand et al., "Unsupervised State
Representation Learning in Atari", and were checked against play.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from jowa.errors import UserError
from jowa.games import FULL_ACTION_SET, Game

Ram = NDArray[np.uint8]
Teacher = Callable[[Ram, Ram], int]

_NOOP = FULL_ACTION_SET.index("NOOP")
_FIRE = FULL_ACTION_SET.index("FIRE")
_UP = FULL_ACTION_SET.index("UP")
_RIGHT = FULL_ACTION_SET.index("RIGHT")
_LEFT = FULL_ACTION_SET.index("LEFT")
_DOWN = FULL_ACTION_SET.index("DOWN")
_RIGHT_FIRE = FULL_ACTION_SET.index("RIGHTFIRE")
_LEFT_FIRE = FULL_ACTION_SET.index("LEFTFIRE")
_DOWN_RIGHT_FIRE = FULL_ACTION_SET.index("DOWNRIGHTFIRE")
_DOWN_LEFT_FIRE = FULL_ACTION_SET.index("DOWNLEFTFIRE")


def teacher(game: Game) -> Teacher:
    """The teacher of a game; UserError naming the games that have one if it has none."""
    if game.name not in TEACHERS:
        raise UserError(
            f"{game.name} has no scripted teacher; use random tiers for it or one of the games "
            f"that have a teacher: {', '.join(TEACHERS)}."
        )
    return TEACHERS[game.name]


def _towards(now: float, goal: float, tolerance: float, less: int, more: int) -> int:
    """The action that moves `now` to within `tolerance` of `goal`."""
    if now < goal - tolerance:
        return more
    return less if now > goal + tolerance else _NOOP


def pong(ram: Ram, before: Ram) -> int:
    """Keeps the paddle at the ball's height. Mean -11.2 of 6 games.

    Aiming for where the ball will land wins (10.5), but stands still most of the time, so that a
    pupil learns to stand still. Like Breakout's, this one fires whenever it need not move.
    """
    ball, paddle = int(ram[54]), int(ram[51])  # heights, grow downwards; ball 0 when out of play
    move = _towards(paddle, ball - 10, 6, less=_RIGHT, more=_LEFT)
    return _FIRE if ball == 0 or move == _NOOP else move


def breakout(ram: Ram, before: Ram) -> int:
    """Keeps the paddle's middle below the ball. Mean 50 of 10 games.

    Waiting where the ball will land scores twice that, but is far harder to learn from frames: it
    hangs on the ball's exact velocity and not only on where things are. It fires whenever it need
    not move, which serves and is harmless in play: a player that serves only where no ball is to
    be seen teaches the serve by too few examples, and its pupils wait for ever.
    """
    x, y = int(ram[99]), int(ram[101])  # ball, to the right and downwards; y is 0 out of play
    middle = int(ram[72]) + 8  # of the paddle
    move = _towards(middle, x, 4, less=_LEFT, more=_RIGHT)
    return _FIRE if y == 0 or move == _NOOP else move


# Pixels a step at which the cars of Freeway's ten lanes move, from the chicken's start upwards.
_FREEWAY_SPEEDS = (0.75, 1.0, 1.33, 2.0, 4.0, -4.0, -2.0, -1.33, -1.0, -0.75)
_FREEWAY_HORIZON = 10  # steps looked ahead


def freeway(ram: Ram, before: Ram) -> int:
    """Walks up; waits or steps back if a car would be hit on the way. Mean 30.8 of 5 games."""
    y = int(ram[14])  # chicken, grows upwards from 6; 4 pixels a step
    cars = ram[108:118].astype(float)  # one a lane, x grows to the right, wraps at 160
    plans = {  # heights over the next steps
        _UP: [y + 4 * step for step in range(1, _FREEWAY_HORIZON + 1)],
        _NOOP: [y + 4 * (step - 1) for step in range(1, _FREEWAY_HORIZON + 1)],
        _DOWN: [max(6, y + 4 * (step - 2)) for step in range(1, _FREEWAY_HORIZON + 1)],
    }
    # The first plan that stays free longest; ties go to moving up.
    return max(plans, key=lambda action: _free_steps(plans[action], cars))


def _free_steps(heights: list[int], cars: NDArray[np.float64]) -> int:
    """How many steps the chicken can take through these heights before a car hits it."""
    for step, height in enumerate(heights, start=1):
        for lane, speed in enumerate(_FREEWAY_SPEEDS):
            touches_lane = abs(height - (14 + 16 * lane)) <= 8
            if touches_lane and 38 <= (cars[lane] + speed * step) % 160 <= 54:
                return step
    return len(heights) + 1


def space_invaders(ram: Ram, before: Ram) -> int:
    """Shoots from below the nearest column, steps aside for bombs. Mean 575 of 10 games."""
    x = int(ram[28])  # cannon, 35 to 91, about 2 pixels a step
    bomb_y, bomb_x = ram[81:83].astype(int), ram[83:85].astype(int)  # y grows downwards
    low = [int(bx) for bx, by in zip(bomb_x, bomb_y, strict=True) if 75 < by < 200]  # 246: none
    alive = int(np.bitwise_or.reduce(ram[18:24]))  # bit k of each row: its invader in column k
    # ram[26] is the left end of the formation; columns are 16 pixels apart.
    columns = [int(ram[26]) + 6 + 16 * k for k in range(6) if alive >> k & 1]
    goal = min(columns, key=lambda column: abs(column - x)) if columns else x
    aligned = abs(goal - x) <= 3
    wanted = 0 if aligned else 1 if goal > x else -1
    move = next((m for m in (wanted, 0, 1, -1) if _clear(x + 2 * m, low)), None)
    if move is None:  # bombs all around: away from the nearest, unless at the wall
        nearest = min(low, key=lambda bomb: abs(bomb - x - 2))
        move = 1 if (x + 2 >= nearest and x < 90) or x <= 35 else -1
    name = {0: "", 1: "RIGHT", -1: "LEFT"}[move] + ("FIRE" if aligned else "")
    return FULL_ACTION_SET.index(name or "NOOP")


def _clear(cannon_x: int, bombs: list[int]) -> bool:
    return all(abs(bomb - cannon_x - 2) > 6 for bomb in bombs)


def boxing(ram: Ram, before: Ram) -> int:
    """Steps beside the opponent and punches when off its row. Mean 68.5 of 8 games."""
    across = int(ram[33]) - int(ram[32])  # opponent's x less own x
    down = int(ram[35]) - int(ram[34])  # opponent's y less own y
    side = 1 if across >= 0 else -1
    below = 1 if down >= 0 else -1
    # Straight opposite, both arms pass the head by: stand 17 pixels to its side, 6 off its row.
    across_off, down_off = across - side * 17, down - below * 6
    horizontal = 0 if abs(across_off) <= 3 else 1 if across_off > 0 else -1
    vertical = 0 if abs(down_off) <= 6 else 1 if down_off > 0 else -1
    punch = abs(across) <= 26 and 6 <= abs(down) <= 18
    name = ("UP", "", "DOWN")[vertical + 1] + ("LEFT", "", "RIGHT")[horizontal + 1]
    return FULL_ACTION_SET.index((name + "FIRE" if punch else name) or "NOOP")


def demon_attack(ram: Ram, before: Ram) -> int:
    """Fires from below the nearest demon, steps aside for shots. Mean 3695 of 10 games."""
    x, shot = _pixels(ram[16]) + 15, _pixels(ram[20]) + 16  # cannon, lowest demon's shots
    demons = [_pixels(ram[17 + k]) + 12 for k in range(3)]
    moved = [now - _pixels(ram_x) - 12 for now, ram_x in zip(demons, before[17:20], strict=True)]
    # A demon that jumped is another one than before.
    aims = [at + 1.5 * by if abs(by) < 12 else at for at, by in zip(demons, moved, strict=True)]
    goal = min(aims, key=lambda aim: abs(aim - x))
    if abs(shot - x) < 10:
        right = x < 20 or (x <= 140 and x >= shot)
        return _RIGHT_FIRE if right else _LEFT_FIRE
    step = _towards(x, goal, 4, less=_LEFT_FIRE, more=_RIGHT_FIRE)
    into_shot = abs(shot - (x + (4 if step == _RIGHT_FIRE else -4))) < 10
    return _FIRE if step == _NOOP or into_shot else step


def tennis(ram: Ram, before: Ram) -> int:
    """Meets the ball with the racket's edge, away from where the opponent stands. Mean -3.8 of 4
    games."""
    x, ball, opponent = int(ram[26]), int(ram[16]), int(ram[27])
    goal = ball - (4 if opponent > 80 else 12)
    step = _towards(x, goal, 1, less=_LEFT_FIRE, more=_RIGHT_FIRE)
    return _FIRE if step == _NOOP else step


def enduro(ram: Ram, before: Ram) -> int:
    """Accelerates always; passes the next car on its free side, else keeps to the middle. Mean 380
    of 6 games.

    Steering by cars farther away, within narrower limits, scores 700, but they are specks in a
    frame of 84 pixels, and its pupils hit more cars.
    """
    across = (int(ram[46]) ^ 128) - 128  # of the road, 25 (left) to -27 (right)
    # From ram[27], the car beside us, to ram[33] at the horizon: 0 or a car, in the right lane if
    # it is odd. The one beside us can no longer be hit.
    near = [int(car) for car in ram[28:30] if car]
    goal = 0 if not near else 15 if near[0] % 2 else -15
    step = _towards(across, goal, 4, less=_RIGHT_FIRE, more=_LEFT_FIRE)
    return _FIRE if step == _NOOP else step


_FROSTBITE_ROWS = (27, 51, 78, 105, 131)  # heights of the shore and of four rows of floes
_FROSTBITE_DOOR = 127  # of the igloo


def frostbite(ram: Ram, before: Ram) -> int:
    """Jumps to the next row of white floes when one will be below; builds the igloo and enters it.
    Mean 3026 of 8 games.

    While there is no floe to jump to it walks towards the nearest. It goes for white rows farther
    down first, and lets birds and crabs push it.
    """
    x, y = int(ram[102]) + 4, int(ram[100])
    row = min(range(5), key=lambda k: abs(_FROSTBITE_ROWS[k] - y))
    white = [k for k in range(1, 5) if ram[47 - k] == 12]  # all four become white again together
    built = ram[77] == 15
    if built and row == 0:
        step = _towards(x, _FROSTBITE_DOOR, 3, less=_LEFT, more=_RIGHT)
        return _UP if step == _NOOP else step
    down = not built and row < 4 and (not white or max(white) > row)
    goal = row + 1 if down else row - 1
    if goal == 0:
        return _UP
    # A row's floes are 32 pixels apart, 24 wide; half a pixel a step for the 7 steps of a jump.
    first, moved = int(ram[35 - goal]), int(ram[35 - goal]) - int(before[35 - goal])
    drift = 0.0 if abs(moved) >= 5 else 3.5 * np.sign(moved)
    floes = [(first + 4 + 32 * k + drift) % 160 for k in range(3)]
    floe = min(floes, key=lambda at: abs(at - x))
    step = _towards(x, floe, 7, less=_LEFT, more=_RIGHT)
    return (_DOWN if down else _UP) if step == _NOOP else step


# Columns of the copies that the TIA chip draws of a player's sprite, by their mode.
_COPIES = {1: (0, 16), 2: (0, 32), 3: (0, 16, 32), 4: (0, 64), 6: (0, 32, 64)}


def kung_fu_master(ram: Ram, before: Ram) -> int:
    """Walks to the left; kicks low at the nearest enemy within reach, and stands up before it kicks
    again. Mean 4925 of 8 games.

    A kick needs a fresh press of the button. Who crouches has pressed it, so standing up with the
    button released is told by the picture; one who is held kicks however he stands.
    """
    x, first = int(ram[74]), int(ram[72])  # own, first enemy of a row of up to three
    away = min((x - first - copy for copy in _COPIES.get(int(ram[63]) & 7, (0,))), key=abs)
    crouches = ram[93] in (1, 4)  # the second while he kicks
    if abs(away) > 20:
        return _LEFT
    if crouches and abs(away) > 8:
        return _LEFT if away >= 0 else _RIGHT
    return _DOWN_LEFT_FIRE if away >= 0 else _DOWN_RIGHT_FIRE


def _pixels(motion: int) -> int:
    """Column of an object whose position is kept as the TIA chip takes it: 15 pixels for each of
    the low four bits, less the high four as a signed number."""
    coarse, fine = int(motion) & 15, int(motion) >> 4
    return 15 * coarse - ((fine ^ 8) - 8)


TEACHERS: dict[str, Teacher] = {
    "Boxing": boxing,
    "Breakout": breakout,
    "DemonAttack": demon_attack,
    "Enduro": enduro,
    "Freeway": freeway,
    "Frostbite": frostbite,
    "KungFuMaster": kung_fu_master,
    "Pong": pong,
    "SpaceInvaders": space_invaders,
    "Tennis": tennis,
}
