"""The authors' fine-tuning data, as zips made of real play: exact, and every damage named."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from jowa.cli import main
from jowa.data.episodes import (
    END_NONE,
    END_TERMINAL,
    END_TRUNCATED,
    EpisodeFile,
)
from jowa.data.store import verify
from jowa.envs import AtariEnv
from jowa.errors import UserError
from jowa.exchange import published_finetune
from jowa.exchange.published_finetune import find_games
from jowa.games import get

Episodes = list[dict[str, np.ndarray]]
LENGTHS = (40, 25, 12)


def _play(name: str, seed: int = 0) -> Episodes:
    """Real random play in the published form; the last episode does not end in a terminal."""
    game, rng = get(name), np.random.default_rng(seed)
    env = AtariEnv(game)
    episodes: Episodes = []
    for number, length in enumerate(LENGTHS):
        frame = env.reset(seed)
        steps: dict[str, list[Any]] = {"observations": [], "actions": [], "rewards": []}
        for _ in range(length):
            action = int(rng.integers(len(game.actions)))
            steps["observations"].append(frame)
            steps["actions"].append(action)
            frame, reward, _, _ = env.step(game.action_ids[action])
            steps["rewards"].append(np.clip(reward, -1, 1))
        episode = {key: np.array(values) for key, values in steps.items()}
        episode["rewards"] = episode["rewards"].astype(np.float32)
        episode["rewards"][::5] = 1.0  # such short play may win nothing
        terminals = np.zeros(length, dtype=np.uint8)
        terminals[-1] = number < len(LENGTHS) - 1
        episodes.append({**episode, "terminals": terminals})
    return episodes


@pytest.fixture(scope="module")
def pong() -> Episodes:
    return _play("Pong")


def _hdf5(episodes: Episodes) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for number, episode in enumerate(episodes):
            for name, values in episode.items():
                file.create_dataset(f"{number}/{name}", data=values)
    return buffer.getvalue()


def _zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr("csv/windows_expert_Pong.csv", "0,8\n")
    return path


def _convert(source: Path, root: Path, *more: str, quality: str = "expert") -> int:
    options = [f"source={source}", f"root={root}", f"quality={quality}", *more]
    return main(["convert", "published_finetune", *options])


@pytest.mark.parametrize("unpacked", [False, True])
def test_a_round_trip_changes_nothing(tmp_path: Path, pong: Episodes, unpacked: bool) -> None:
    source = _zip(tmp_path / "finetune.zip", {"expert/Pong.h5": _hdf5(pong)})
    if unpacked:
        shutil.unpack_archive(source, tmp_path / "folder")
        source = tmp_path / "folder"
    assert _convert(source, tmp_path / "data") == 0
    path = tmp_path / "data" / "Pong.h5"
    verify(path)
    with EpisodeFile(path) as file:
        rows = np.arange(file.num_transitions)
        frames = np.concatenate([episode["observations"] for episode in pong])
        np.testing.assert_array_equal(file.frames(rows), frames)
        actions = np.concatenate([episode["actions"] for episode in pong])
        assert file.actions.tolist() == [get("Pong").action_ids[action] for action in actions]
        rewards = np.concatenate([episode["rewards"] for episode in pong])
        np.testing.assert_array_equal(file.rewards, rewards)
        assert file.raw_rewards is None  # clipped ones are no scores
        assert np.diff(file.episode_starts).tolist() == list(LENGTHS)
        ends = file.ends[file.episode_starts[1:] - 1].tolist()
        assert ends == [END_TERMINAL, END_TERMINAL, END_NONE]
        assert file.tiers == ("expert",)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["Pong.h5"]


def test_unclipped_rewards_are_raw_ones(tmp_path: Path, pong: Episodes) -> None:
    raw = [{**episode, "rewards": episode["rewards"] * 20} for episode in pong]
    source = _zip(tmp_path / "expert.zip", {"Pong.h5": _hdf5(raw)})
    assert _convert(source, tmp_path) == 0
    with EpisodeFile(tmp_path / "Pong.h5") as file:
        assert file.raw_rewards is not None and file.raw_rewards.max() == 20
        assert file.rewards.max() == 1


def test_a_terminal_at_the_cap_is_a_cut(
    tmp_path: Path, pong: Episodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published_finetune, "_CAP_STEPS", LENGTHS[0])
    source = _zip(tmp_path / "expert.zip", {"Pong.h5": _hdf5(pong)})
    assert _convert(source, tmp_path) == 0
    with EpisodeFile(tmp_path / "Pong.h5") as file:
        ends = file.ends[file.episode_starts[1:] - 1].tolist()
        assert ends == [END_TRUNCATED, END_TERMINAL, END_NONE]


@pytest.mark.parametrize(
    ("quality", "chosen"),
    [
        ("expert", "x/MsPacman-expert.hdf5"),
        ("suboptimal", "x/sub_optimal/ms_pacman_10k.h5"),
        ("highly_suboptimal", "x/Highly-Suboptimal/MS-PACMAN/data.h5"),
    ],
)
def test_games_and_qualities_are_found_by_any_spelling(
    tmp_path: Path, quality: str, chosen: str
) -> None:
    names = [
        "x/MsPacman-expert.hdf5",
        "x/sub_optimal/ms_pacman_10k.h5",
        "x/Highly-Suboptimal/MS-PACMAN/data.h5",
        "x/expert/Qbert.csv",
        "x/notes.h5",
        "__MACOSX/x/MsPacman-expert.h5",
    ]
    source = _zip(tmp_path / "all.zip", dict.fromkeys(names, b""))
    found = find_games(source, quality, [], tmp_path)
    assert {game.name: file.member for game, file in found.items()} == {"MsPacman": chosen}


def test_of_several_files_the_one_with_episodes_is_meant(tmp_path: Path, pong: Episodes) -> None:
    other = io.BytesIO()
    with h5py.File(other, "w") as file:
        file["windows"] = np.arange(4)
    members = {"expert/Pong.h5": _hdf5(pong), "expert/Pong_windows.h5": other.getvalue()}
    source = _zip(tmp_path / "a.zip", members)
    (file,) = find_games(source, "expert", ["Pong"], tmp_path).values()
    assert file.member == "expert/Pong.h5"
    source = _zip(tmp_path / "b.zip", {**members, "expert/pong/2.h5": _hdf5(pong)})
    with pytest.raises(UserError, match=r"several files .*expert/Pong\.h5, expert/pong/2\.h5"):
        find_games(source, "expert", ["Pong"], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "b.zip"]


def test_a_stopped_conversion_goes_on_and_nothing_else_is_replaced(
    tmp_path: Path, pong: Episodes, capsys: pytest.CaptureFixture[str]
) -> None:
    members = {"expert/Pong.h5": _hdf5(pong), "expert/Breakout.h5": b"no HDF5"}
    source = _zip(tmp_path / "all.zip", members)
    assert _convert(source, tmp_path, "games=[Pong]") == 0
    before = (tmp_path / "Pong.h5").stat().st_mtime_ns
    assert _convert(source, tmp_path, "games=[Pong,Breakout]") == 2
    assert "expert/Breakout.h5" in capsys.readouterr().err
    assert (tmp_path / "Pong.h5").stat().st_mtime_ns == before
    other = _zip(tmp_path / "other.zip", {"expert/Pong.h5": _hdf5(pong[:1])})
    assert _convert(other, tmp_path) == 2
    assert "overwrite=true" in capsys.readouterr().err
    assert _convert(other, tmp_path, "overwrite=true") == 0
    with EpisodeFile(tmp_path / "Pong.h5") as file:
        assert file.num_episodes == 1


def _with(key: str, change: Callable[[np.ndarray], Any]) -> Callable[[Episodes], bytes]:
    def damage(episodes: Episodes) -> bytes:
        return _hdf5([episodes[0], {**episodes[1], key: change(episodes[1][key])}])

    return damage


def _early(terminals: np.ndarray) -> np.ndarray:
    return np.roll(terminals, 3)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_with("observations", lambda o: o[:, :80]), ["group 1", "(25, 80, 84)"]),
        (_with("observations", lambda o: o.astype(np.float32)), ["group 1", "float32"]),
        (_with("observations", lambda o: o[:-1]), ["group 1", "(24, 84, 84)"]),
        (_with("actions", lambda a: a + 3), ["group 1", "Pong has 6"]),
        (_with("actions", lambda a: a.astype(float)), ["group 1", "float64"]),
        (_with("rewards", lambda r: r * np.nan), ["group 1", "finite"]),
        (_with("terminals", _early), ["group 1", "inside the episode"]),
        (_with("terminals", lambda t: t + 4), ["group 1", "terminals"]),
        (lambda e: _hdf5([e[0], {k: v for k, v in e[1].items() if k != "rewards"}]), ["rewards"]),
        (lambda e: _hdf5([e[0], {k: v for k, v in e[1].items() if k != "actions"}]), ["actions"]),
        (lambda e: _hdf5(e)[:-5000], ["cut short"]),
        (lambda e: b"", ["no HDF5 file"]),
        (lambda e: _hdf5([]), ["has not the groups"]),
    ],
)
def test_damage_is_named_and_leaves_the_store_as_it_was(
    tmp_path: Path,
    pong: Episodes,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Episodes], bytes],
    words: list[str],
) -> None:
    source = _zip(tmp_path / "all.zip", {"expert/Pong.h5": damage(pong)})
    assert _convert(source, tmp_path / "data") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("jowa: error: ") and "expert/Pong.h5" in line
    assert all(word in line for word in words), line
    assert not list((tmp_path / "data").iterdir())


def test_a_torn_zip_is_told(
    tmp_path: Path, pong: Episodes, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _zip(tmp_path / "all.zip", {"expert/Pong.h5": _hdf5(pong)})
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    assert _convert(source, tmp_path / "data") == 2
    assert "cut short" in capsys.readouterr().err
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 255  # within the packed frames
    source.write_bytes(flipped)
    assert _convert(source, tmp_path / "data") == 2
    assert "cannot unpack expert/Pong.h5" in capsys.readouterr().err
    assert not list((tmp_path / "data").iterdir())


def test_what_is_not_there_is_told_with_what_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _zip(tmp_path / "all.zip", {"suboptimal/Pong.h5": b""})
    assert _convert(source, tmp_path) == 2
    assert "there are: suboptimal/Pong.h5" in capsys.readouterr().err
    assert _convert(source, tmp_path, "games=[Qbert]", quality="suboptimal") == 2
    assert "of Qbert" in capsys.readouterr().err
    assert _convert(source, tmp_path, quality="best") == 2
    assert "highly_suboptimal" in capsys.readouterr().err
    assert _convert(tmp_path / "no.zip", tmp_path) == 2
    assert "no.zip" in capsys.readouterr().err
