#!/usr/bin/env bash
# Does it learn? Five games in one small network, greedy and planned, against cloning of the same data
# by the same network and by pixels; then two games that it never saw, from 5,000 transitions each.
# Usage: scripts/nano_multigame.sh [FOLDER] [SEEDS]   (default runs/nano_multigame "0 1 2")
# JOBS=8 does so many things at once, for a GPU with many cores.
# Stopped at any moment, the same command goes on: finished stages are not done again.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/nano_multigame}
seeds=${2:-0 1 2}
. scripts/stages.sh
data=$out/data
recipe=experiment=nano_multigame
decode=auto # of plans; on a GPU native is as auto
! command -v g++ >/dev/null || decode=native
held_out=(Enduro Frostbite)

collect() {
    jowa collect "$recipe" root="$data"
    jowa collect experiment=nano_heldout root="$data"
}

probe() {
    jowa data probe "$recipe" root="$data" out="$out/scores/probe.json"
}

pretrain() { # pretrain SEED NAME [OPTION...]
    local from=$out/seed_$1
    stage "pretrain $2 $1" jowa pretrain "$recipe" run="$from/$2" data.root="$data" seed="$1" \
        tokenizer_from="$from/tokenizer" "${@:3}"
}

play() { # play LABEL RUN [OPTION...]
    stage "play ${1//\// }" jowa evaluate "$recipe" label="'$1'" checkpoint="$2" \
        out="$out/scores/${1//\//_}.json" data_root="$data" "${@:3}"
}

few_shot() { # few_shot SEED NAME [OPTION...]: fine-tunes to each game and plays it
    local game run baselines=false # which one plays
    [ "$2 $1" != "fine-tuned ${seeds%% *}" ] || baselines=true
    for game in "${held_out[@]}"; do
        run=$out/seed_$1/${game}_$2
        stage "few-shot $2 $game $1" jowa finetune "$recipe" run="$run" game="$game" seed="$1" \
            root="$data" checkpoint="$out/seed_$1/pretrain" "${@:3}"
        stage "play $2 $game $1" jowa evaluate "$recipe" label="'$game $2/$1'" \
            checkpoint="$run" out="$out/scores/$2_$1.json" data_root="$data" planner=greedy games="[$game]" \
            baselines="$baselines" max_frames=20000
    done
}

run_stage install scripts/install.sh
stage collect collect
stage probe probe
for seed in $seeds; do
    beside "tokenize_$seed" stage "tokenize $seed" jowa tokenize "$recipe" data.root="$data" \
        run="$out/seed_$seed/tokenizer" seed="$seed"
done
together
for seed in $seeds; do
    beside "pretrain_$seed" pretrain "$seed" pretrain
    beside "cloning_$seed" pretrain "$seed" cloning objective=cloning
done
together
for seed in $seeds; do
    run=$out/seed_$seed
    baselines=false # which one plays
    [ "$seed" != "${seeds%% *}" ] || baselines=true
    beside "greedy_$seed" play "greedy/$seed" "$run/pretrain" planner=greedy baselines="$baselines"
    beside "cloning_played_$seed" play "cloning/$seed" "$run/cloning" planner=greedy
    beside "few_shot_$seed" few_shot "$seed" fine-tuned
    beside "scratch_$seed" few_shot "$seed" from-scratch from_scratch=true
    beside "few_cloned_$seed" few_shot "$seed" fine-tuned-cloning training.losses.q=0 \
        training.losses.cloning=1
    beside "scratch_cloned_$seed" few_shot "$seed" from-scratch-cloning from_scratch=true \
        training.losses.q=0 training.losses.cloning=1
    # A plan takes several times as long: seven episodes of each seed are 21.
    for horizon in 1 2; do
        beside "planned_${horizon}_$seed" play "planned-H$horizon/$seed" "$run/pretrain" \
            planner=cautious planner.horizon="$horizon" planner.decode="$decode" episodes=7 \
            envs_per_game=7
    done
done
together
runs=() scores=()
for seed in $seeds; do runs+=("$out/seed_$seed/pretrain"); done
for file in "$out"/scores/*.json; do scores+=("$file"); done
jowa report "$recipe" out="$out" scores="[$(IFS=, && echo "${scores[*]}")]" \
    timings="$out/timings.txt" runs="[$(IFS=, && echo "${runs[*]}")]"
echo "Report: $out/report.html (and report.md); scores: $out/scores/"
