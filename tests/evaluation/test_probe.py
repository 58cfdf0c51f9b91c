"""`jowa data probe` on real play, and the clone as a player."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from jowa.cli import main
from jowa.evaluation.probe import ClonePolicy
from jowa.evaluation.scores import ScoreFile
from jowa.games import get
from jowa.models.pixel_clone import PixelClone


class _Seen(PixelClone):
    """Remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__(torch.zeros(84, 84), 6)
        self.shown: list[torch.Tensor] = []

    def forward(self, frames_BTHW: torch.Tensor) -> torch.Tensor:
        self.shown.append(frames_BTHW[:, :, 0, 0].clone())
        return torch.arange(6.0).repeat(len(frames_BTHW), 1)


def _frames(*values: int) -> np.ndarray:
    return np.stack([np.full((84, 84), value, dtype=np.uint8) for value in values])


def test_a_clone_at_play_sees_its_own_episode_only() -> None:
    clone, games = _Seen(), np.array([get("Pong").id] * 2)
    policy = ClonePolicy(clone, torch.device("cpu"), None)
    policy.reset(np.array([True, True]))
    for first, second in [(1, 11), (2, 12)]:
        actions = policy.act(_frames(first, second), games)
    policy.reset(np.array([False, True]))
    policy.act(_frames(3, 21), games)
    assert clone.shown[0].tolist() == [[1, 1, 1, 1], [11, 11, 11, 11]]
    assert clone.shown[1].tolist() == [[1, 1, 1, 2], [11, 11, 11, 12]]
    assert clone.shown[2].tolist() == [[1, 1, 2, 3], [21, 21, 21, 21]]
    assert actions.tolist() == [get("Pong").action_ids[-1]] * 2  # the highest logit


def test_a_sampling_clone_follows_its_probabilities() -> None:
    clone, games = _Seen(), np.array([get("Pong").id] * 400)
    policy = ClonePolicy(clone, torch.device("cpu"), sample_seed=0)
    policy.reset(np.ones(400, dtype=bool))
    actions = policy.act(np.zeros((400, 84, 84), dtype=np.uint8), games)
    shares = np.array([(actions == action).mean() for action in get("Pong").action_ids])
    expected = torch.arange(6.0).softmax(0).numpy()
    assert np.abs(shares - expected).max() < 0.08
    assert shares[-1] < 1


def test_the_precision_that_is_asked_for_is_computed_in(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[torch.dtype] = set()
    linear = torch.nn.functional.linear

    def watched(*args: torch.Tensor) -> torch.Tensor:
        result = linear(*args)
        seen.add(result.dtype)
        return result

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    command = ["data", "probe", f"root={data_root}", "games=[Freeway]", "steps=2", "episodes=1"]
    command += ["max_frames=40", "batch_size=4", "sample=true", "compute.threads=1"]
    for dtype in ("float32", "bfloat16"):
        seen.clear()
        assert main([*command, f"compute.dtype={dtype}"]) == 0
        assert seen == {getattr(torch, dtype)}


def test_the_command_scores_a_clone_beside_trivial_players(
    data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.json"
    command = ["data", "probe", f"root={data_root}", "games=[Freeway]", "steps=5", "episodes=2"]
    command += ["max_frames=200", "batch_size=8", f"out={out}", "compute.threads=1"]
    assert main(command) == 0
    (line,) = [row for row in capsys.readouterr().out.splitlines() if row.startswith("Freeway")]
    assert line.split()[1] == "good"
    scores = ScoreFile.load(out)
    (evaluation,) = scores.evaluations
    assert evaluation.label == "pixel clone" and not evaluation.is_protocol
    assert len(evaluation.games["Freeway"].scores) == 2
    assert scores.baselines["Freeway"].constant_means.keys() == {"NOOP", "UP", "DOWN"}
    assert main(command) == 0  # again: the same clone, in its place
    again = ScoreFile.load(out)
    assert len(again.evaluations) == 1
    predicted = [
        json.dumps(file.evaluations[0].provenance["predictions"]) for file in (scores, again)
    ]
    assert predicted[0] == predicted[1]
    assert again.evaluations[0].games == evaluation.games
    alone = tmp_path / "alone.json"
    assert main([*command[:-2], f"out={alone}", "compute.threads=1", "baselines=false"]) == 0
    assert ScoreFile.load(alone).evaluations[0].games == evaluation.games
    assert not ScoreFile.load(alone).baselines


def test_a_file_that_cannot_be_kept_is_refused_before_anything_is_cloned(
    data_root: Path, tmp_path: Path, complaint: Callable[[list[str]], str]
) -> None:
    """A million steps would take hours."""
    command = ["data", "probe", f"root={data_root}", "games=[Freeway]", "steps=1000000"]
    garbage, file = tmp_path / "garbage.json", tmp_path / "file"
    garbage.write_text("{")
    file.touch()
    for out in (garbage, file / "scores.json"):
        assert str(out if out == garbage else file) in complaint([*command, f"out={out}"])
