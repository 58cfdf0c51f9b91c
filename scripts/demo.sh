#!/usr/bin/env bash
# From a bare machine with Python to a trained, scored and fine-tuned agent, on real Atari games.
# Usage: scripts/demo.sh [FOLDER]   (default runs/demo; 9 to 19 minutes on two cores)
# Stopped at any moment, the same command goes on: finished stages are not done again.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/demo}
. scripts/stages.sh
pretrained=$out/pretrain
data=$out/data

# Stages in order, with their usual seconds on two cores, from which the time left is estimated.
names=(install collect tokenize pretrain evaluate-greedy evaluate-planned
    finetune finetune-from-scratch evaluate-finetuned film report)
usual=(50 55 110 400 85 125 75 70 40 20 10)

left() { # seconds of stage $1 and all after it
    local sum=0 i
    for ((i = $1; i < ${#usual[@]}; i++)); do sum=$((sum + usual[i])); done
    echo "$sum"
}

number=0
next() { # next COMMAND...: runs the next stage unless it is finished
    local name=${names[$number]} remaining
    remaining=$(left "$number")
    number=$((number + 1))
    if is_done "$name" && [ "$name" != install ]; then
        echo "[$number/${#names[@]}] $name: done before"
        return
    fi
    echo "[$number/${#names[@]}] $name (about $((remaining / 60)) min $((remaining % 60)) s left in all)"
    run_stage "$name" "$@"
}

collect() {
    jowa collect experiment=demo root="$data"
    jowa collect experiment=demo_heldout root="$data"
}

evaluate() { # evaluate LABEL RUN [OPTION...]
    jowa evaluate experiment=demo label="'$1'" checkpoint="$2" out="$out/scores.json" \
        data_root="$data" "${@:3}"
}

evaluate_finetuned() {
    evaluate "fine-tuned" "$out/finetune" planner=greedy games=[Pong]
    evaluate "from scratch" "$out/scratch" planner=greedy games=[Pong]
}

next scripts/install.sh
next collect
next jowa tokenize experiment=demo run="$out/tokenizer" data.root="$data"
next jowa pretrain experiment=demo run="$pretrained" tokenizer_from="$out/tokenizer" \
    data.root="$data"
next evaluate "greedy" "$pretrained" planner=greedy
next evaluate "planned" "$pretrained" planner=cautious
next jowa finetune experiment=demo run="$out/finetune" checkpoint="$pretrained" root="$data"
next jowa finetune experiment=demo run="$out/scratch" checkpoint="$pretrained" root="$data" \
    from_scratch=true
next evaluate_finetuned
next jowa watch experiment=demo checkpoint="$pretrained" out="$out/film.mp4"
next jowa report experiment=demo out="$out" scores="[$out/scores.json]" film="$out/film.mp4" \
    runs="[$out/tokenizer,$pretrained,$out/finetune,$out/scratch]" timings="$out/timings.txt"

echo
echo "Scores:     $out/scores.json"
echo "Report:     $out/report.html (and report.md)"
echo "Film:       $out/film.mp4"
echo "Curves:     .venv/bin/tensorboard --logdir $out"
