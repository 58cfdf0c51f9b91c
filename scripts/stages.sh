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

stage() { # stage NAME COMMAND...: says what it does
    if is_done "$1"; then
        echo "$1: done before"
    else
        echo "$1 ..."
        run_stage "$@"
    fi
}

# Work side by side: `beside COMMAND...` for each part, then `together`. JOBS at once, by default one
# after the other; a GPU and many cores want as many as there are parts. What one says goes to a log.
# They share the cores: more threads than cores wait for each other most of the time.
jobs=${JOBS:-1}
share=$(($(nproc) / jobs))
share=${OMP_NUM_THREADS:-$((share > 0 ? share : 1))}
parts=()

beside() { # beside NAME COMMAND...
    if [ "$jobs" = 1 ]; then
        "${@:2}"
        return
    fi
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n || true; done
    mkdir -p "$out/logs"
    (export OMP_NUM_THREADS=$share; "${@:2}") >"$out/logs/$1.txt" 2>&1 &
    parts+=("$!:$1")
}

together() { # waits for all parts; fails if one did, and says which
    local part failed=0
    for part in "${parts[@]}"; do
        wait "${part%%:*}" || { echo "failed: see $out/logs/${part#*:}.txt" >&2 && failed=1; }
    done
    parts=()
    return "$failed"
}
