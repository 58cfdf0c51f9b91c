# Sourced by scripts that do long work in stages in the folder $out: a stage that is done is not done
# again, and timings.txt holds the seconds of each.
mkdir -p "$out/done"

jowa() { .venv/bin/jowa "$@"; }

is_done() { [ -f "$out/done/$1" ]; }

run_stage() { # run_stage NAME COMMAND...
    local name=$1 started=$SECONDS
    "${@:2}"
    is_done "$name" || echo "$((SECONDS - started)) $name" >>"$out/timings.txt"
    touch "$out/done/$name"
}
