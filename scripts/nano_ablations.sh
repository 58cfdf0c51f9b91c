#!/usr/bin/env bash
# What each part of the small network's recipe is worth: one seed and a third of the steps each, the
# data and the tokenizer of scripts/nano_multigame.sh, greedy play but where said.
# Usage: scripts/nano_ablations.sh [FOLDER] [SEED]   (default runs/nano_multigame 0)
# JOBS=6 does so many things at once. Stopped at any moment, the same command goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/nano_multigame}
seed=${2:-0}
. scripts/stages.sh
recipe=experiment=nano_multigame
runs=$out/ablations_$seed

play() { # play LABEL RUN [OPTION...]; cut short, as there are many
    stage "play ablation $1 $seed" jowa evaluate "$recipe" label="'$1'" checkpoint="$2" \
        out="$out/ablation_scores/$1_$seed.json" data_root="$out/data" baselines=false \
        episodes=10 envs_per_game=10 max_frames=8000 "${@:3}"
}

without() { # without NAME OPTION...: trains and plays
    local name=$1
    stage "ablation $name $seed" jowa pretrain "$recipe" run="$runs/$name" seed="$seed" \
        data.root="$out/data" tokenizer_from="$out/seed_$seed/tokenizer" stage2.steps=7000 "${@:2}"
    play "$name" "$runs/$name" planner=greedy
}

searching() { # searching NAME OPTION...: plays the whole recipe's agent
    play "$1" "$runs/whole" "${@:2}"
}

beside no_world_model without no_world_model objective=no_world_model
beside cloning without cloning objective=cloning
beside whole without whole
beside no_reader without no_reader model.reader_width=0
beside no_code_vectors without no_code_vectors model.codebook_width=0
beside no_copying without no_copying model.copy_previous=false
beside no_bell without no_bell model.bell_start=0
beside no_temperature without no_temperature stage2.losses.cql_temperature=1.0
beside one_step without one_step stage2.losses.n_step=1
beside no_reward_sampling without no_reward_sampling stage2.reward_fraction=0
beside no_reward_weight without no_reward_weight stage2.losses.reward_weight=1.0
beside data_40 without data_40 data.share=0.4
beside double_width without double_width model.transformer.width=256 model.transformer.heads=4 \
    model.q_width=384 model.reader_width=512
together
for width in 2 4; do
    for horizon in 1 2; do
        beside "W${width}_H$horizon" searching "W${width}_H$horizon" planner=beam \
            planner.beam_width="$width" planner.horizon="$horizon"
    done
done
beside mcts searching mcts planner=mcts
beside epsilon searching epsilon_0.01 planner=greedy epsilon=0.01
together
echo "Scores: $out/ablation_scores/"
