"""The recipes for big machines are the published one, and run at tiny sizes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from jowa.cli import composed, main
from jowa.learning.checkpoint import find, load
from jowa.learning.checks import check_phase, check_sizes
from jowa.learning.loss_config import check_losses
from jowa.learning.monitor import check_log
from jowa.models.released import PRETRAINED_GAMES

PAPER = ("paper_40m", "paper_70m", "paper_150m")
BIG = (*PAPER, "learner_15")
GPUS = 8
GIVEN = {
    "tokenize": ["run=-"],
    "pretrain": ["run=-"],
    "finetune": ["run=-", "checkpoint=-", "game=Pong"],
    "evaluate": ["checkpoint=-"],
}


def filled(verb: str, name: str, *overrides: str) -> Any:
    """A verb's configuration as an experiment makes it."""
    changes = [f"experiment={name}", *GIVEN[verb], *overrides]
    return OmegaConf.to_object(composed(verb, changes))


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_runs_are_the_published_recipe_on_gpus(name: str) -> None:
    size = name.replace("paper", "model=jowa")
    for verb in ("pretrain", "finetune", "evaluate"):
        ours = filled(verb, name)
        published = filled(verb, "published", *([size] if verb == "pretrain" else []))
        assert ours.compute.device == "cuda"  # no such run falls back to a CPU unnoticed
        ours.compute = published.compute
        if verb == "finetune":
            ours.root = published.root
        if verb == "evaluate":
            ours.envs_per_batch = published.envs_per_batch
        assert dataclasses.asdict(ours) == dataclasses.asdict(published)


def test_the_paper_reads_the_data_that_its_recipes_make() -> None:
    made = composed("convert dqn_replay", ["experiment=dqn_replay"])
    expert = composed("convert dqn_replay", ["experiment=dqn_replay_expert"])
    for name in PAPER:
        pretrain = filled("pretrain", name)
        assert pretrain.data.root == made.root and pretrain.data.games == list(made.games)
        assert filled("finetune", name).root == expert.root


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        *((name, []) for name in BIG),
        ("learner_15", ["model=jowa_70m"]),
        ("learner_15", ["model=jowa_150m"]),
    ],
)
def test_pretraining_is_whole_and_can_be_shared_by_eight_gpus(
    name: str, overrides: list[str]
) -> None:
    config = filled("pretrain", name, *overrides)
    check_sizes(config)
    check_log(config.log)
    for stage in ("stage1", "stage2"):
        phase = getattr(config, stage)
        check_phase(stage, phase)
        check_losses(stage, phase.losses, config.model)
        assert phase.steps > 0 and phase.batch_size % GPUS == 0
    assert tuple(config.data.games) == PRETRAINED_GAMES
    check_phase("training", filled("finetune", name).training)


def test_learner_15_reads_its_own_data_with_one_tokenizer() -> None:
    pretrain, tokenize = (filled(verb, "learner_15") for verb in ("pretrain", "tokenize"))
    assert tokenize.tokenizer == pretrain.tokenizer
    assert (tokenize.data.root, tokenize.data.games) == (pretrain.data.root, pretrain.data.games)
    roots = {
        name: composed("collect", [f"experiment={name}"]).root
        for name in ("learner_15", "learner_15_expert")
    }
    assert pretrain.data.root == filled("evaluate", "learner_15").data_root == roots["learner_15"]
    assert filled("finetune", "learner_15").root == roots["learner_15_expert"]


def test_learner_15_runs_from_tokenizer_to_scores(data_root: Path, tmp_path: Path) -> None:
    cpu = ["experiment=learner_15", "compute.device=cpu", "compute.dtype=float32"]
    cpu += ["compute.threads=1"]
    data = [f"data.root={data_root}", "data.games=[Pong,Freeway]"]
    small = ["tokenizer.vocabulary=24", "tokenizer.code_width=4", "tokenizer.hidden=8"]
    sizes = ["model.vocabulary=24", "model.codebook_width=4", "model.q_width=16"]
    sizes += [f"model.transformer.{key}" for key in ("layers=1", "width=16", "heads=2")]
    steps = [
        f"{stage}.{key}=2" for stage in ("stage1", "stage2") for key in ("steps", "batch_size")
    ]
    tokenizer, pretrained, tuned = (tmp_path / name for name in ("tokenizer", "pretrain", "tuned"))
    two = ["training.steps=2", "training.batch_size=2"]
    assert main(["tokenize", *cpu, *data, *small, *two, f"run={tokenizer}"]) == 0
    command = ["pretrain", *cpu, *data, *small, *sizes, *steps, f"run={pretrained}"]
    assert main([*command, f"tokenizer_from={tokenizer}"]) == 0
    state = load(find(pretrained)).state
    assert state["tokenizer"]["kind"] == "patch" and state["model"]["copy_previous"]
    command = ["finetune", *cpu, *two, f"run={tuned}", f"checkpoint={pretrained}"]
    assert main([*command, "game=Breakout", f"root={data_root}"]) == 0
    command = ["evaluate", *cpu, f"checkpoint={pretrained}", f"data_root={data_root}"]
    command += ["episodes=1", "max_frames=40", "baselines=false", f"out={tmp_path}/scores.json"]
    assert main(command) == 0
