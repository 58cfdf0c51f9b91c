"""Exchange with Minari: exact both ways, and a sentence for what is of another form."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from jowa.cli import main
from jowa.data.episodes import (
    END_NONE,
    END_TERMINAL,
    END_TRUNCATED,
    EpisodeFile,
    EpisodeWriter,
)
from jowa.data.store import verify
from jowa.games import get

LENGTHS, ENDS = (5, 1, 7, 3), (END_TERMINAL, END_NONE, END_TRUNCATED, END_TERMINAL)
RAW = [-2.5, 0.0, 1.0, 400.0]


@pytest.fixture(autouse=True)
def minari_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "minari"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    return root


def _store(root: Path, raw: bool = True, any_action: bool = False) -> Path:
    rng = np.random.default_rng(0)
    path, game = root / "Breakout.h5", get("Breakout")
    actions = list(range(18)) if any_action else list(game.action_ids)
    with EpisodeWriter(path, game, source="a test", tiers=("low", "high", "unused")) as writer:
        for number, (length, end) in enumerate(zip(LENGTHS, ENDS, strict=True)):
            rewards = rng.choice(RAW, length).astype(np.float32)
            writer.add(
                rng.integers(0, 256, (length, 84, 84), dtype=np.uint8),
                rng.choice(actions, length),
                rewards if raw else None,
                end,
                tier=number % 2,
                full=number != 1,
                rewards=None if raw else np.clip(rewards, -1, 1),
            )
        writer.facts["found"] = 3
    return path


def _export(root: Path, *more: str) -> int:
    return main(["data", "export", f"root={root}", "game=Breakout", "id=test/breakout-v0", *more])


def _import(root: Path, *more: str) -> int:
    return main(["data", "import", f"root={root}", "game=Breakout", "id=test/breakout-v0", *more])


@pytest.mark.parametrize("actions", ["minimal", "full"])
@pytest.mark.parametrize("raw", [True, False])
def test_a_round_trip_changes_nothing(tmp_path: Path, actions: str, raw: bool) -> None:
    path = _store(tmp_path / "a", raw)
    assert _export(tmp_path / "a", f"actions={actions}") == 0
    assert _import(tmp_path / "b") == 0
    verify(tmp_path / "b" / "Breakout.h5")
    with EpisodeFile(path) as before, EpisodeFile(tmp_path / "b" / "Breakout.h5") as after:
        assert after.fingerprint == before.fingerprint  # of all arrays, tiers and ends among them
        assert (after.tiers, after.source) == (before.tiers, before.source)
        assert after.facts["found"] == 3 and after.facts["minari"]["action_set"] == actions
        assert after.provenance["exported"] == before.provenance
        assert after.provenance != before.provenance  # so that nothing takes it for its own


def test_minari_reads_what_was_played(tmp_path: Path) -> None:
    path = _store(tmp_path)
    assert _export(tmp_path) == 0
    dataset = minari.load_dataset("test/breakout-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (4, sum(LENGTHS))
    assert dataset.action_space == gymnasium.spaces.Discrete(4)
    assert "last frame is repeated" in dataset.storage.metadata["description"]
    assert dataset.storage.metadata["jowa"]["action_set"] == "minimal"
    with EpisodeFile(path) as file:
        for number, episode in enumerate(dataset.iterate_episodes()):
            start, stop = file.episode_starts[number : number + 2]
            frames = file.frames(np.arange(start, stop))
            np.testing.assert_array_equal(episode.observations[:-1], frames)
            np.testing.assert_array_equal(episode.observations[-1], frames[-1])
            assert dataset.observation_space.contains(episode.observations[0])
            names = [get("Breakout").action_ids[action] for action in episode.actions]
            assert names == file.actions[start:stop].tolist()
            assert file.raw_rewards is not None
            np.testing.assert_array_equal(episode.rewards, file.raw_rewards[start:stop])
            last = len(names) - 1
            ended = [last] if ENDS[number] == END_TERMINAL else []
            assert np.flatnonzero(episode.terminations).tolist() == ended
            assert np.flatnonzero(episode.truncations).tolist() == ([] if ended else [last])


def _foreign(
    shape: tuple[int, ...] = (84, 84),
    actions: int = 18,
    jpeg: bool = False,
    **changes: Any,
) -> np.ndarray:
    """A Minari dataset of one episode of six steps that jowa did not write; its observations."""
    frames = np.random.default_rng(1).integers(0, 256, (7, *shape), dtype=np.uint8)
    parts: dict[str, Any] = {
        "observations": frames,
        "actions": np.array([0, 1, 2, 3, 0, 1]),
        "rewards": np.array([0.0, 7.0, 0.0, -1.0, 0.0, 0.0]),
        "terminations": np.array([False] * 6),
        "truncations": np.array([False] * 5 + [True]),
    }
    minari.create_dataset_from_buffers(
        "test/breakout-v0",
        [EpisodeBuffer(**{**parts, **changes})],
        observation_space=gymnasium.spaces.Box(0, 255, shape, np.uint8),
        action_space=gymnasium.spaces.Discrete(actions),
        jpeg_encoding=jpeg,
    )
    return frames


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("shape", [(84, 84), (84, 84, 1), (1, 84, 84)])
@pytest.mark.parametrize("actions", [4, 18])
def test_a_dataset_of_others(tmp_path: Path, shape: tuple[int, ...], actions: int) -> None:
    frames = _foreign(shape, actions)
    assert _import(tmp_path) == 0
    with EpisodeFile(tmp_path / "Breakout.h5") as file:
        np.testing.assert_array_equal(file.frames(np.arange(6)), frames[:6].reshape(6, 84, 84))
        # In Breakout's own set 2 and 3 are right and left; among all 18 they are up and right.
        played = [0, 1, 3, 4, 0, 1] if actions == 4 else [0, 1, 2, 3, 0, 1]
        assert file.actions.tolist() == played
        assert file.raw_rewards is not None and file.raw_rewards.tolist() == [0, 7, 0, -1, 0, 0]
        assert file.ends.tolist() == [END_NONE] * 5 + [END_TRUNCATED]
        assert (file.tiers, file.episode_full.tolist()) == (("all",), [1])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shape": (4, 84, 84)}, ["(4, 84, 84)", "(84, 84)", "frame stacking"]),
        ({"shape": (210, 160, 3)}, ["(210, 160, 3)"]),
        ({"actions": 6}, ["Discrete(6)", "Discrete(4)", "another game"]),
        ({"actions": 4, "rewards": np.full(6, np.nan)}, ["episode 0", "finite"]),
        ({"actions": 4, "actions_": np.full(6, 5)}, ["episode 0", "outside 0 to 3"]),
        ({"terminations": np.array([True] + [False] * 5)}, ["episode 0", "inside"]),
    ],
)
def test_other_forms_are_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], words: list[str]
) -> None:
    if "actions_" in options:
        _foreign(actions=options["actions"])
        _damage_actions(tmp_path)
    else:
        _foreign(**options)
    assert _import(tmp_path / "store") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("jowa: error: ") and all(word in line for word in words), line
    assert not list((tmp_path / "store").glob("*"))


def _damage_actions(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "minari/test/breakout-v0/data/main_data.hdf5", "a") as file:
        file["episode_0/actions"][:] = 5


@pytest.mark.parametrize("damage", ["cut", "no metadata", "bad metadata"])
def test_a_damaged_dataset_leaves_no_file(
    tmp_path: Path, minari_root: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    _store(tmp_path / "a")
    assert _export(tmp_path / "a") == 0
    folder = minari_root / "test" / "breakout-v0" / "data"
    if damage == "cut":
        content = (folder / "main_data.hdf5").read_bytes()
        (folder / "main_data.hdf5").write_bytes(content[: len(content) // 2])
    elif damage == "no metadata":
        (folder / "metadata.json").unlink()
    else:
        metadata = json.loads((folder / "metadata.json").read_text())
        (folder / "metadata.json").write_text(json.dumps({**metadata, "jowa": 3}))
    assert _import(tmp_path / "b") == 2
    assert "breakout-v0 cannot be read" in capsys.readouterr().err
    assert not list((tmp_path / "b").glob("*"))


def test_jpeg_frames_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    _foreign(jpeg=True)
    assert _import(tmp_path) == 0
    assert "JPEG" in capsys.readouterr().out
    with EpisodeFile(tmp_path / "Breakout.h5") as file:
        assert file.facts["minari"]["jpeg"] is True


def test_an_export_that_fails_leaves_nothing(
    tmp_path: Path, minari_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _store(tmp_path, any_action=True)
    assert _export(tmp_path) == 2
    assert "actions=full" in capsys.readouterr().err
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # a frame, found only on the way
    path.write_bytes(content)
    assert _export(tmp_path, "actions=full") == 2
    assert "is damaged" in capsys.readouterr().err
    assert not (minari_root / "test" / "breakout-v0").exists()


def test_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _store(tmp_path)
    assert _export(tmp_path) == 0
    assert _export(tmp_path) == 2
    assert "another id" in capsys.readouterr().err
    assert _import(tmp_path) == 2
    assert "overwrite=true" in capsys.readouterr().err
    assert _import(tmp_path, "overwrite=true") == 0
    assert main(["data", "import", f"root={tmp_path}", "game=Pong", "id=test/pong-v0"]) == 2
    assert "there: test/breakout-v0" in capsys.readouterr().err
    assert main(["data", "import", f"root={tmp_path}", "game=Pong", "id=pong"]) == 2
    assert "NAME-v0" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "minari", None)
    assert _export(tmp_path) == 2
    assert 'pip install "jowa[minari]"' in capsys.readouterr().err
