#!/usr/bin/env bash
# Create the virtual environment VENV and install etalumis into it (editable), with one extra.
#   scripts/setup.sh VENV EXTRA
# Environment: PYTHON       interpreter to build on (default: the first suitable one found)
#              TORCH_BUILD  cpu (default), or a CUDA build of https://download.pytorch.org/whl, such as cu128
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 extra=$2
cpu_index=https://download.pytorch.org/whl/cpu

say() { printf '\033[1m[setup]\033[0m %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

suitable() { # runs, not merely exists: version managers put stubs of uninstalled versions on the path
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

find_python() {
    for candidate in ${PYTHON:-python3 python3.11 python3.12 python3.13 python3.10 python}; do
        if suitable "$candidate"; then echo "$candidate"; return; fi
    done
    fail "No Python 3.10-3.13 found${PYTHON:+ at PYTHON=$PYTHON}. Install one, or name it: make ... PYTHON=/path/to/python3"
}

create_venv() {
    local python; python=$(find_python)
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        # Debian and Ubuntu ship these two modules apart from the interpreter.
        local package; package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            say "installing the system package $package"
            DEBIAN_FRONTEND=noninteractive apt-get install -y -q "$package" >&2 ||
                { apt-get update -q >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -y -q "$package" >&2; } ||
                fail "could not install $package; $python cannot make virtual environments without it"
        else
            fail "$python lacks its venv module. Install it first: sudo apt-get install $package"
        fi
    fi
    say "creating $venv with $("$python" --version) ($python)"
    "$python" -m venv "$venv"
    # Releases before 23 read neither package metadata on its own nor today's wheel tags.
    "$venv/bin/python" -m pip install -qq --no-input --upgrade 'pip>=23.2'
}

# The tag +cpu can only be met by a CPU build. A plain requirement would, on Linux, bring gigabytes of CUDA.
install_torch() {
    local build=${TORCH_BUILD:-cpu} wanted
    wanted=$(grep '^torch==' constraints.txt)
    if [ "$(uname -s)" = Linux ]; then wanted=$wanted+$build; fi
    if [ "$("$venv/bin/python" -m pip freeze 2>/dev/null | grep '^torch==')" = "$wanted" ]; then return; fi
    say "installing $wanted"
    # The dependencies follow with etalumis. PyPI has no builds with a tag: there this is expected to fail.
    if run_pip install --no-deps "$wanted" 2>/dev/null; then return; fi
    say "not on the configured package indexes; trying https://download.pytorch.org/whl/$build"
    run_pip install --no-deps --index-url "https://download.pytorch.org/whl/$build" "$wanted" ||
        fail "could not get $wanted for this Python and platform: see pip's message above, and check the network."
}

quiet=-qq; if [ -t 2 ]; then quiet=; fi # in a terminal pip shows its own progress, in a log only errors
run_pip() { "$venv/bin/python" -m pip --no-input $quiet "$@"; }

"$venv/bin/python" -m pip --version >/dev/null 2>&1 || create_venv
install_torch
say "installing etalumis[$extra] and what it needs"
run_pip install --constraint constraints.txt --editable ".[$extra]" ||
    fail "could not install etalumis[$extra] (see pip's message above)." \
        "Behind a proxy, set PIP_INDEX_URL or PIP_PROXY and run make again."
