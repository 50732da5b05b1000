#!/usr/bin/env bash
# What the tests of the C++, C and Fortran front ends compile with: installed where that is possible, else named.
# Without it those tests are skipped; in continuous integration (CI set) that is an error.
set -euo pipefail

packages=(g++ cmake make gfortran libzmq3-dev)
say() { printf '\033[1m[setup]\033[0m %s\n' "$*" >&2; }

complete() {
    for program in g++ cmake gfortran; do command -v "$program" >/dev/null || return 1; done
    printf '#include <zmq.h>\nint main(void) { return zmq_errno(); }\n' |
        g++ -x c++ - -o /dev/null -lzmq 2>/dev/null
}

complete && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing the system packages ${packages[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -q "${packages[@]}" >&2 || { apt-get update -q >&2 && apt-get install -y -q "${packages[@]}" >&2; } || true
    complete && exit 0
fi
say "the front ends for C++, C and Fortran can't be tested here. On Debian or Ubuntu: sudo apt-get install ${packages[*]}"
test -z "${CI:-}"
