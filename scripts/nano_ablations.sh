#!/usr/bin/env bash
# What each part of the small network's recipe is worth: one seed and a third of the steps each, the
# data and the tokenizer of scripts/nano_multigame.sh, greedy play but where said.
# Usage: scripts/nano_ablations.sh [FOLDER] [SEED]   (default runs/nano_multigame 0)
# JOBS=8 does so many things at once. Stopped at any moment, the same command goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/nano_multigame}
seed=${2:-0}
. scripts/stages.sh
recipe=experiment=nano_multigame
runs=$out/ablations_$seed
decode=auto # of plans; on a GPU native is as auto
! command -v g++ >/dev/null || decode=native

play() { # play LABEL RUN [OPTION...]; cut short, as there are many
    stage "play ablation $1 $seed" jowa evaluate "$recipe" label="'$1'" checkpoint="$2" \
        out="$out/ablation_scores/$1_$seed.json" data_root="$out/data" \
        episodes=10 envs_per_game=10 max_frames=4000 "${@:3}"
}

try() { # try NAME OPTION...: trains and plays
    local name=$1
    stage "ablation $name $seed" jowa pretrain "$recipe" run="$runs/$name" seed="$seed" \
        data.root="$out/data" tokenizer_from="$out/seed_$seed/tokenizer" stage2.steps=5000 "${@:2}"
    play "$name" "$runs/$name" planner=greedy
}

ablation() { # ablation NAME OPTION...
    beside "$1" try "$@"
}

world() { # world NAME OPTION...: trains the world model alone
    beside "$1" stage "ablation $1 $seed" jowa pretrain "$recipe" run="$runs/$1" seed="$seed" \
        data.root="$out/data" tokenizer_from="$out/seed_$seed/tokenizer" stage2.steps=5000 \
        stage2.losses.q=0 "${@:2}"
}

foresight() {
    local names=(whole world_alone no_code_vectors no_copying no_reward_weight full_reward)
    .venv/bin/python scripts/foresight.py "${names[@]/#/$runs/}" --root "$out/data" \
        --out "$out/ablation_scores/foresight_$seed.json"
}

search() { # search NAME OPTION...: plays the agent of scripts/nano_multigame.sh by a plan
    beside "$1" play "$1" "$out/seed_$seed/pretrain" episodes=5 envs_per_game=5 "${@:2}"
}

# Q reads frames by itself, so that what concerns Q alone is compared without a world model, and what
# concerns the world model without Q.
ablation cloning objective=cloning
for weight in 1 3; do
    ablation "cql_$weight" objective=no_world_model stage2.losses.cql_weight="$weight"
done
ablation no_world_model objective=no_world_model
ablation no_bell objective=no_world_model model.bell_start=0
ablation no_temperature objective=no_world_model stage2.losses.cql_temperature=1.0
ablation one_step objective=no_world_model stage2.losses.n_step=1
ablation rewards_drawn objective=no_world_model stage2.reward_fraction=0.25
ablation data_40 objective=no_world_model data.share=0.4
ablation double_width objective=no_world_model model.q_width=384 model.reader_width=512
ablation whole
world world_alone
world no_code_vectors model.codebook_width=0
world no_copying model.copy_previous=false
world no_reward_weight stage2.losses.reward_weight=1.0
world full_reward stage2.losses.reward=1.0
together
stage "foresight $seed" foresight
search no_plan planner=greedy
search epsilon_0.01 planner=greedy epsilon=0.01
for width in 2 4; do
    for horizon in 1 2; do
        search "W${width}_H$horizon" planner=cautious planner.beam_width="$width" \
            planner.horizon="$horizon" planner.decode="$decode"
    done
done
search published planner=beam planner.horizon=1 planner.decode="$decode"
search no_caution planner=cautious planner.caution=0 planner.decode="$decode"
search likeliest_rewards planner=cautious planner.rewards=likeliest \
    planner.reward_weight=1 planner.decode="$decode"
search mcts planner=mcts planner.horizon=1 planner.simulations=8 planner.temperature=0.1 \
    planner.choice=visits planner.rewards=expected
together
echo "Scores: $out/ablation_scores/"
