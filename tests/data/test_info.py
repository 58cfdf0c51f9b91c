"""`jowa data info` gives the right numbers, within a terminal's width, without reading frames."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jowa.cli import main
from jowa.data.episodes import END_NONE, END_TERMINAL, END_TRUNCATED, EpisodeFile, EpisodeWriter
from jowa.data.info import distribution, game_info
from jowa.data.info_text import size, sparkline
from jowa.data.tokens import encode_store, stored_tokens
from jowa.games import GAMES, get

# length, raw reward of the last step, end, tier, full
EPISODES = [
    (10, 5.0, END_TERMINAL, 0, True),
    (20, -2.0, END_TRUNCATED, 0, True),
    (30, 9.0, END_TERMINAL, 1, False),
    (40, 7.0, END_NONE, 1, True),
]


def _write(path: Path, raw: bool = True, scale: float = 1.0) -> Path:
    rng = np.random.default_rng(0)
    game = get(path.stem)
    with EpisodeWriter(path, game, source="a test", tiers=("low", "high")) as writer:
        for length, reward, end, tier, full in EPISODES:
            rewards = np.zeros(length, np.float32)
            rewards[-1] = reward * scale
            writer.add(
                rng.integers(0, 256, (length, 84, 84), dtype=np.uint8),
                np.full(length, game.action_ids[tier]),
                rewards if raw else None,
                end,
                tier,
                full,
                rewards=None if raw else np.clip(rewards, -1, 1),
            )
        writer.facts["dropped"] = {"rows": 3}
    return path


def _spoil_frames(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = slice(len(content) // 3, len(content) // 2)
    content[middle] = bytes(len(content[middle]))
    path.write_bytes(content)


def _tokens(path: Path) -> list[Path]:
    with EpisodeFile(path) as file:
        encode_store(
            [file],
            lambda frames, _: np.zeros((len(frames), 36), np.int64),
            "ab" * 32,
            path.parent / "tokens",
        )
    return list(path.parent.glob("tokens/*/*.npy"))


def test_every_number_is_that_of_the_data(tmp_path: Path) -> None:
    path = _write(tmp_path / "Pong.h5")
    _tokens(path)
    with EpisodeFile(path) as file:
        found = game_info(file, stored_tokens(tmp_path / "tokens"))
    assert (found["transitions"], found["episodes"], found["full_games"]) == (100, 4, 2)
    assert found["ends"] == {"game over": 2, "cut at the cap": 1, "recording stopped": 1}
    assert (found["lengths"]["min"], found["lengths"]["median"]) == (10, 25)
    # Neither the episode from mid-game nor the one that stopped has a score.
    assert (found["returns"]["count"], found["returns"]["mean"]) == (2, 1.5)
    assert (found["returns"]["min"], found["returns"]["max"]) == (-2, 5)
    assert found["tiers"]["low"]["returns"]["mean"] == 1.5
    assert found["tiers"]["high"]["returns"] is None
    assert found["tiers"]["high"]["transitions"] == 70
    assert (found["positive_rewards"], found["negative_rewards"]) == (3, 1)
    assert found["actions"] == {
        "NOOP": 30,
        "FIRE": 70,
        "RIGHT": 0,
        "LEFT": 0,
        "RIGHTFIRE": 0,
        "LEFTFIRE": 0,
    }
    assert found["frame_bytes"] == 100 * 84 * 84 and found["disk_bytes"] == path.stat().st_size
    assert found["compression"] == found["frame_bytes"] / found["disk_bytes"]
    (tokens,) = found["tokens"]
    assert (tokens["tokenizer"], tokens["usable"]) == (("ab" * 32)[:16], True)
    assert found["token_bytes"] > 100 * 36 * 2
    assert found["facts"] == {"dropped": {"rows": 3}}


def test_tokens_of_other_episodes_are_not_usable(tmp_path: Path) -> None:
    _tokens(_write(tmp_path / "Pong.h5"))
    with EpisodeFile(_write(tmp_path / "Pong.h5", scale=2.0)) as file:
        (tokens,) = game_info(file, stored_tokens(tmp_path / "tokens"))["tokens"]
    assert not tokens["usable"]


def test_clipped_rewards_give_no_returns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "Pong.h5", raw=False)
    assert main(["data", "info", f"root={tmp_path}"]) == 0
    assert "unknown: only clipped rewards" in capsys.readouterr().out


def test_spoilt_frames_do_not_matter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _write(tmp_path / "Pong.h5")
    _spoil_frames(path)
    assert main(["data", "info", f"root={tmp_path}"]) == 0
    assert "100 transitions" in capsys.readouterr().out
    assert main(["data", "verify", f"root={tmp_path}"]) == 2  # they are spoilt indeed


def test_it_fits_a_terminal_with_one_game_and_with_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    names = sorted(GAMES, key=len)[-20:]
    for name in names:
        _write(root / f"{name}.h5", scale=1e6)
    out = tmp_path / "info.json"
    assert main(["data", "info", f"root={root}", f"out={out}"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert max(map(len, lines)) <= 100
    assert all(any(line.startswith(f"{name} ") for line in lines) for name in names)
    assert any(line.startswith("20 games: 2,000 transitions in 80 episodes") for line in lines)
    found: dict[str, Any] = json.loads(out.read_text())
    assert set(found["games"]) == set(names) and found["total"]["episodes"] == 80
    assert main(["data", "info", f"root={root}", f"games=[{names[0]}]"]) == 0
    one = capsys.readouterr().out
    assert "recording stopped" in one and 'dropped={"rows": 3}' in one
    assert main(["data", "info", f"root={root}", "details=true"]) == 0
    everything = capsys.readouterr().out
    assert everything.count("recording stopped") == 20
    rows = [row for row in everything.splitlines()[1:] if "  file " not in row]
    assert max(map(len, rows)) <= 100


def test_a_damaged_file_does_not_hide_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "Pong.h5")
    (tmp_path / "Qbert.h5").write_bytes(b"not HDF5")
    assert main(["data", "info", f"root={tmp_path}"]) == 0
    text = capsys.readouterr().out
    assert "Pong: 100 transitions" in text and "Qbert.h5 is damaged" in text


def test_distributions() -> None:
    assert distribution(np.array([])) is None
    same = distribution(np.array([4.0, 4.0]))
    assert same is not None and same["histogram"] == [2]
    spread = distribution(np.arange(240))
    assert spread is not None
    assert spread["histogram"] == [10] * 24 and spread["q25"] == pytest.approx(59.75)
    assert sparkline([0, 1, 4, 8]) == " ▂▅█"
    assert [size(n) for n in (999, 1536, 150 * 2**20)] == ["999 B", "1.5 KiB", "150 MiB"]
