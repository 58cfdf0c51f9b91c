#!/usr/bin/env bash
# Does it learn? Five games in one small network, greedy and planned, against cloning of the same data
# by the same network and by pixels; then two games that it never saw, from 5,000 transitions each.
# Usage: scripts/nano_multigame.sh [FOLDER] [SEEDS]   (default runs/nano_multigame "0 1 2")
# Stopped at any moment, the same command goes on: finished stages are not done again.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/nano_multigame}
seeds=${2:-0 1 2}
. scripts/stages.sh
data=$out/data
recipe=experiment=nano_multigame
held_out=(Pong Tennis)

stage() { # stage NAME COMMAND...
    if is_done "$1"; then
        echo "$1: done before"
    else
        echo "$1 ..."
        run_stage "$@"
    fi
}

collect() {
    jowa collect "$recipe" root="$data"
    jowa collect experiment=nano_heldout root="$data"
}

evaluate() { # evaluate LABEL RUN [OPTION...]
    jowa evaluate "$recipe" label="'$1'" checkpoint="$2" out="$out/scores.json" data_root="$data" \
        "${@:3}"
}

few_shot() { # few_shot SEED GAME NAME [OPTION...]: fine-tunes and evaluates
    local run=$out/seed_$1/$2_$3
    jowa finetune "$recipe" run="$run" checkpoint="$out/seed_$1/pretrain" game="$2" root="$data" \
        seed="$1" "${@:4}"
    evaluate "$3/$1" "$run" planner=greedy games="[$2]"
}

run_stage install scripts/install.sh
stage collect collect
stage probe jowa data probe "$recipe" root="$data" out="$out/scores.json"
for seed in $seeds; do
    run=$out/seed_$seed
    stage "tokenize $seed" jowa tokenize "$recipe" run="$run/tokenizer" data.root="$data" seed="$seed"
    from=(data.root="$data" seed="$seed" tokenizer_from="$run/tokenizer")
    stage "pretrain $seed" jowa pretrain "$recipe" run="$run/pretrain" "${from[@]}"
    stage "clone $seed" jowa pretrain "$recipe" run="$run/cloning" objective=cloning "${from[@]}"
    stage "play greedily $seed" evaluate "greedy/$seed" "$run/pretrain" planner=greedy
    stage "play with a plan $seed" evaluate "planned/$seed" "$run/pretrain" planner=beam
    stage "play the clone $seed" evaluate "cloning/$seed" "$run/cloning" planner=greedy
    for game in "${held_out[@]}"; do
        stage "fine-tune $game $seed" few_shot "$seed" "$game" fine-tuned
        stage "from scratch $game $seed" few_shot "$seed" "$game" "from-scratch" from_scratch=true
        stage "clone $game $seed" few_shot "$seed" "$game" "fine-tuned-cloning" \
            training.losses.q=0 training.losses.cloning=1
    done
done
runs=()
for seed in $seeds; do runs+=("$out/seed_$seed/pretrain"); done
jowa report "$recipe" out="$out" scores="[$out/scores.json]" timings="$out/timings.txt" \
    runs="[$(IFS=, && echo "${runs[*]}")]"
echo "Report: $out/report.html (and report.md); scores: $out/scores.json"
