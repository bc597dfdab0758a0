#!/usr/bin/env bash
# Creates .venv from the pinned lock, or does nothing when it is up to date. `make setup` runs it.
#
#   RLVR_DEVICE=cpu|gpu   which lock; by default gpu where `nvidia-smi` lists a GPU
#   RLVR_PYTHON=PATH      which Python; by default the first of 3.11 to 3.13 on PATH
#   --dry-run             print what would be used, change nothing
#
# pip's own options come from its usual variables and files (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, pip.conf).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PYTHONUNBUFFERED=1
stamp=.venv/.lock-sha
installing=.venv/.installing
log=.venv/setup.log

fail() { printf 'set-up: %s\n' "$@" >&2; exit 1; }

pick_device() {
    case "${RLVR_DEVICE:-}" in
        cpu | gpu) echo "$RLVR_DEVICE" ;;
        "") if nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then echo gpu; else echo cpu; fi ;;
        *) fail "RLVR_DEVICE must be cpu or gpu; got '$RLVR_DEVICE'." ;;
    esac
}

pick_python() {
    local candidate found="" without_venv=""
    for candidate in ${RLVR_PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
        local version
        version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        found="$found $candidate ($version)"
        case "$version" in 3.11 | 3.12 | 3.13) ;; *) continue ;; esac
        if "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
        without_venv=$version
    done
    [ -z "$without_venv" ] || fail "Python $without_venv has no venv module: Debian and Ubuntu ship it apart." \
        "Install it with: apt-get install python3-venv   (or python$without_venv-venv)"
    fail "needs Python 3.11, 3.12 or 3.13; found:${found:- none} (searched: ${RLVR_PYTHON:-PATH})." \
        "Install one, or name it with RLVR_PYTHON=/path/to/python3."
}

# The stamp covers all that decides what is installed, and where.
wanted_stamp() {
    { cat "launch/requirements/build.txt" "$lock" pyproject.toml; .venv/bin/python -V; pwd; } | sha256sum | cut -d' ' -f1
}

state() {
    if [ ! -e .venv ]; then echo "absent"
    elif [ -e "$installing" ]; then echo "interrupted"
    elif ! .venv/bin/python -c '' 2>/dev/null; then echo "broken"
    elif [ -e .venv/.device ] && [ "$(cat .venv/.device)" != "$device" ]; then echo "for another device"
    elif [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$(wanted_stamp)" ]; then echo "up to date"
    else echo "out of date"; fi
}

# pip's output goes to the log; the terminal gets one moving line, and a pipe (CI) gets every 25th package.
show_progress() {
    local terminal=0 count
    [ ! -t 1 ] || terminal=1
    count=$(grep -cE '^[A-Za-z0-9]' "$lock")
    tee -a "$log" | awk -v total="$count" -v terminal="$terminal" '
        /^(Collecting|Processing|Requirement already satisfied) / {
            done++
            if (!terminal && done % 25 == 0) { printf "  %d of %d packages\n", done, total; fflush() }
        }
        /^Installing collected packages/ { if (!terminal) { print "  installing"; fflush() } }
        terminal && !/^ERROR|^WARNING/ && NF { printf "\r\033[K  [%d/%d] %.90s", done, total, $0; fflush() }
        END { if (terminal) printf "\r\033[K" }'
}

explain_failure() {
    echo "set-up: pip failed; the end of $log:" >&2
    grep -v '^WARNING' "$log" | tail -n 15 | sed 's/^/  | /' >&2
    # before pip installs anything, an environment that was there is still whole
    if [ "$before" = "out of date" ] && ! grep -q '^Installing collected packages' "$log"; then rm -f "$installing"; fi
    local torch_pin
    torch_pin=$(grep -oE '^torch==[^ ;]+\+cpu' "$lock" || true)
    if [ -n "$torch_pin" ] && grep -qF "No matching distribution found for $torch_pin" "$log"; then
        fail "this machine's pip does not find the CPU build of PyTorch, $torch_pin, which is not on PyPI." \
            "(PyPI's own torch is a CUDA build of several gigabytes, so it is not taken instead.)" \
            "Name PyTorch's index of CPU builds and run the same command again, for instance:" \
            "    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make quickstart"
    fi
    exit 1
}

install() {
    local pip=(.venv/bin/python -m pip install --no-deps)
    # -q: the log must not say "Installing collected packages" before the lock itself is being installed
    "${pip[@]}" -q -r launch/requirements/build.txt >>"$log" 2>&1 || return
    "${pip[@]}" --no-build-isolation --use-pep517 -r "$lock" 2>&1 | show_progress || return
    "${pip[@]}" -q --no-build-isolation -e . >>"$log" 2>&1
}

[ "$(uname -sm)" = "Linux x86_64" ] || fail "the locks are for Linux on x86-64; this is $(uname -sm)." \
    "Install by hand: python -m pip install -e '.[cpu,dev]'"
device=$(pick_device)
lock=launch/requirements/$device.txt
# one set-up at a time in a checkout: `make test` beside `make quickstart` waits here
exec 9<launch/requirements
command -v flock >/dev/null && flock 9
before=$(state)

if [ "${1:-}" = "--dry-run" ]; then
    python=$(pick_python)
    printf 'device: %s\nlock: %s\npython: %s\n.venv: %s\n' "$device" "$lock" "$python" "$before"
    exit
fi
[ "$before" != "up to date" ] || exit 0

started=$SECONDS
if [ "$before" = "out of date" ]; then
    echo "set-up: bringing .venv up to date with $lock"
else
    python=$(pick_python)
    [ "$before" = "absent" ] || echo "set-up: .venv is $before: making it anew"
    echo "set-up: creating .venv with $("$python" -V) from $lock (about 3 GB on disk; log: $log)"
    rm -rf .venv
    mkdir .venv
    touch "$installing"
    "$python" -m venv .venv
fi
touch "$installing"
rm -f "$stamp"
: >"$log"
install || explain_failure
echo "$device" >.venv/.device
wanted_stamp >"$stamp"
rm -f "$installing"
echo "set-up: done in $((SECONDS - started)) s"
