"""What a world model foresees on episodes that were held out, and what that does to decisions.

    python scripts/foresight.py CHECKPOINT... --root DATA_ROOT --out eval/results/foresight.json

For each checkpoint and game: the share of tokens that is foreseen (given the true tokens before
them), of all and of those that change; of the steps with a reward those whose likeliest reward is
the true one (recall), and of those with one foreseen those that have it (precision). Then, on
whole contexts, how a plan of W=2, H=1 differs from greedy play: how often the two best actions lead
to the same imagined frame, how often the plan takes the second, and how often greedy and planned
actions are those of the data. `hold_out` is that of the checkpoint's training.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import jowa
from jowa.agent import Agent
from jowa.data.segments import Batch, SegmentDataset
from jowa.data.store import open_store
from jowa.errors import UserError
from jowa.learning.accuracy import world_model_accuracy
from jowa.learning.checkpoint import find, load
from jowa.planning.beam import plan
from jowa.planning.trace import Trace

CONTEXT = 4
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--root", required=True, help="folder of the data")
    parser.add_argument("--segments", type=int, default=2048, help="of each game, at most")
    parser.add_argument("--gamma", type=float, help="of the plan; by default as in training")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        rows = foresee(args.checkpoints, args.root, args.segments, args.gamma)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    args.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def foresee(
    checkpoints: list[str], root: str, segments: int, gamma: float | None
) -> list[dict[str, Any]]:
    """All shares by checkpoint and game; UserError where nothing was held out."""
    rows: list[dict[str, Any]] = []
    for checkpoint in checkpoints:
        agent, state = jowa.load(checkpoint), load(find(checkpoint)).state
        hold_out = state.get("config", {}).get("data", {}).get("hold_out", 0)
        if hold_out == 0:
            raise UserError(f"{checkpoint} is no pretraining run that held episodes out.")
        used = agent.planner.gamma if gamma is None else gamma
        assert used is not None
        for file in open_store(root, state["games"]):
            dataset = SegmentDataset([file], stride=8, hold_out=hold_out, held_out=True)
            if not dataset.num_segments:
                raise UserError(
                    f"hold_out={hold_out} of {checkpoint} holds out none of the "
                    f"{file.num_episodes} episodes of {file.path}."
                )
            row = {"checkpoint": checkpoint, "game": file.game.name, "gamma": used}
            rows.append(row | measure(agent, dataset, segments, used))
            print(json.dumps(rows[-1]), flush=True)
    return rows


def measure(agent: Agent, dataset: SegmentDataset, count: int, gamma: float) -> dict[str, float]:
    """All shares of one game, over `count` segments that are drawn evenly from the dataset."""
    count = min(count, dataset.num_segments)
    chosen = np.linspace(0, dataset.num_segments - 1, count).astype(np.int64)
    totals: dict[str, torch.Tensor] = {}
    for part in np.array_split(chosen, max(1, count // BATCH)):
        batch = dataset.batch(part).to(agent.device)
        with torch.inference_mode():
            found = foreseen(agent, batch) | decided(agent, batch, gamma)
        for name, share in found.items():
            totals[name] = totals.get(name, torch.zeros(2)) + share.cpu()
    shares = {name: float(right / among) for name, (right, among) in totals.items() if among}
    return {"segments": count, **{name: round(value, 4) for name, value in shares.items()}}


def encode(agent: Agent, batch: Batch) -> torch.Tensor:
    """Tokens (B, L, 36)."""
    B, L = batch.actions.shape
    frames = batch.observations.flatten(0, 1).unsqueeze(1)
    return agent.tokenizer.encode(frames, batch.games.repeat_interleave(L)).view(B, L, -1)


def foreseen(agent: Agent, batch: Batch) -> dict[str, torch.Tensor]:
    """Of tokens and rewards: (how many are right, how many there are) by name."""
    tokens = encode(agent, batch)
    output = agent.model(tokens, batch.actions, batch.games, q=False)
    assert output.observation_logits is not None and output.reward_logits is not None
    predicted = output.observation_logits.argmax(-1).view(len(tokens), -1)
    shares = world_model_accuracy(predicted, output.reward_logits, tokens, batch)
    likeliest = output.reward_logits.argmax(-1) - 1
    said, rewarded = batch.real & (likeliest != 0), batch.real & (batch.rewards != 0)
    right = said & (likeliest == batch.rewards.sign())
    return {
        "tokens": shares["accuracy/tokens"],
        "changed_tokens": shares["accuracy/changed_tokens"],
        "reward_rate": torch.stack([rewarded.sum(), batch.real.sum()]).float(),
        "reward_recall": torch.stack([right.sum(), rewarded.sum()]).float(),
        "reward_precision": torch.stack([right.sum(), said.sum()]).float(),
    }


def decided(agent: Agent, batch: Batch, gamma: float) -> dict[str, torch.Tensor]:
    """Of the decisions at frame CONTEXT of whole segments, likewise."""
    whole = batch.select(batch.real.all(1))
    if not len(whole.actions):
        return {}
    tokens, data = encode(agent, whole), whole.actions[:, CONTEXT - 1]
    args = (agent.model, tokens[:, :CONTEXT], whole.actions[:, : CONTEXT - 1], whole.games)
    greedy = plan(*args, 1, 0, gamma).actions
    trace = Trace()
    planned = plan(*args, 2, 1, gamma, trace=trace).actions
    frames = [[future.frames[0] for future in trace.futures(row)] for row in range(len(data))]
    same = torch.tensor([bool((pair[0] == pair[-1]).all()) for pair in frames])

    def share(right: torch.Tensor) -> torch.Tensor:
        return torch.tensor([float(right.sum()), float(len(right))])

    return {
        "same_imagined_frame": share(same),
        "plan_differs": share(planned != greedy),
        "greedy_is_data_action": share(greedy == data),
        "planned_is_data_action": share(planned == data),
    }


if __name__ == "__main__":
    main()
