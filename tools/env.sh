# Sourced by tools/demo, tools/test and tools/check: finds Python, makes the environment, installs
# the project into it, and says which system packages are missing before half the work is done.
#
#   environment EXTRA...         afterwards $PYTHON runs with the project and those extras installed
#   packages COMMAND:PACKAGE...  system packages wanted; installed for root, named for everyone else
#   step TEXT                    a numbered line of progress
#
# The environment is `.venv` beside pyproject.toml, or $COLO_VENV.  A stamp in it holds a digest of
# pyproject.toml, this directory and the extra, so that a second start installs nothing.
# COLO_NO_APT=1 keeps root's runs from installing system packages.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${COLO_VENV:-$ROOT/.venv}
PYTHON=$VENV/bin/python
PYTHON_MIN=3.11
ENVIRONMENT_MIB=1200  # what numpy, LLVM and the test tools occupy once installed, with room to unpack
APT_LOCK_S=120        # another apt may be at work; longer than that, it hangs
PATH=$PATH:/usr/sbin:/sbin # mkfs.ext4 and ip live there, and a user's PATH may not hold them
export COLO_STEP=${COLO_STEP:-0}

step() {
    COLO_STEP=$((COLO_STEP + 1))
    printf '%2d %s\n' "$COLO_STEP" "$*"
}

note() { printf '   %s\n' "$@"; }

# fail WHAT-WAS-BEING-DONE: WHAT-WAS-FOUND, then lines that say what to do.
fail() {
    printf '\n%s: %s\n' "$(basename "$0")" "$1" >&2
    shift
    [ $# -eq 0 ] || printf '  %s\n' "$@" >&2
    exit 3
}

can_apt() { [ -z "${COLO_NO_APT:-}" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

# sudo where there is one: what we print should work when pasted.
as_root() { [ "$(id -u)" = 0 ] || ! command -v sudo >/dev/null || printf 'sudo '; }

apt_install() {
    local log
    log=$(mktemp)
    note "apt-get install $*"
    export DEBIAN_FRONTEND=noninteractive
    # Old lists may still be good enough, so that `update` fails is no reason to stop.
    if (
        apt-get -qq update || true
        apt-get -qq -o DPkg::Lock::Timeout=$APT_LOCK_S install -y --no-install-recommends "$@"
    ) >"$log" 2>&1 </dev/null; then
        rm -f "$log"
        return 0
    fi
    note "apt-get failed; its last lines:"
    tail -n 5 "$log" | sed 's/^/     /'
    rm -f "$log"
    return 1
}

# A name on PATH may be a broken shim, so each candidate must run and say its version.
usable_python() {
    "$1" -c 'import sys; sys.exit(sys.version_info < tuple(map(int, sys.argv[1].split("."))))' \
        "$PYTHON_MIN" 2>/dev/null </dev/null
}

find_python() {
    local name
    for name in ${COLO_PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
        if command -v "$name" >/dev/null && usable_python "$name"; then
            command -v "$name"
            return 0
        fi
    done
    return 1
}

python_or_fail() {
    HOST_PYTHON=$(find_python) && return 0
    if can_apt && apt_install python3 python3-venv && HOST_PYTHON=$(find_python); then return 0; fi
    fail "looking for Python: no Python $PYTHON_MIN or newer on PATH${COLO_PYTHON:+ (COLO_PYTHON=$COLO_PYTHON)}" \
        "Debian 12, Ubuntu 24.04 and newer:  $(as_root)apt install python3 python3-venv" \
        "Ubuntu 22.04:                       $(as_root)apt install python3.11 python3.11-venv" \
        "or name one yourself:               COLO_PYTHON=/path/to/python3.12 $0"
}

# Debian ships the standard library's venv and ensurepip in a package of their own.
venv_module_or_fail() {
    local version package
    "$HOST_PYTHON" -c 'import venv, ensurepip' 2>/dev/null && return 0
    version=$("$HOST_PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    package=python3-venv
    [ "$(readlink -f "$HOST_PYTHON")" = "$(readlink -f /usr/bin/python3)" ] || package=python$version-venv
    if can_apt && apt_install "$package" && "$HOST_PYTHON" -c 'import venv, ensurepip'; then return 0; fi
    fail "making the environment: $HOST_PYTHON has no venv and ensurepip modules" \
        "$(as_root)apt install $package"
}

space_or_fail() { # DIRECTORY MIB FOR-WHAT
    local at=$1 free
    while [ ! -d "$at" ]; do at=$(dirname "$at"); done
    free=$(df -Pm "$at" | awk 'NR == 2 { print $4 }')
    [ "$free" -ge "$2" ] || fail "$3: $free MiB are free in $at, and $2 MiB are needed" \
        "make room, or put it elsewhere with COLO_VENV (environment) or COLO_CACHE (guests)"
}

platform_or_fail() {
    [ "$(uname -sm)" = "Linux x86_64" ] || fail "this is $(uname -sm): colo-vmm runs on Linux x86_64 only" \
        "the engine's exported internals that vmm.cpu uses exist in that build alone"
}

make_venv() {
    # Checked before anything is made; a directory without a working Python is made anew.
    "$PYTHON" -c '' 2>/dev/null && return 0
    python_or_fail
    venv_module_or_fail
    if [ -e "$VENV" ] && [ ! -e "$VENV/pyvenv.cfg" ]; then
        fail "making the environment: $VENV exists and is not a Python environment" "move it, or set COLO_VENV"
    fi
    mkdir -p "$(dirname "$VENV")" 2>/dev/null && [ -w "$(dirname "$VENV")" ] ||
        fail "making the environment: $(dirname "$VENV") is not writable for $(id -un)" \
            "set COLO_VENV to a directory that is, for example COLO_VENV=~/.cache/colo-venv"
    space_or_fail "$VENV" $ENVIRONMENT_MIB "making the environment"
    step "environment: $VENV, $("$HOST_PYTHON" -V)"
    "$HOST_PYTHON" -m venv --clear "$VENV" || fail "making the environment: $HOST_PYTHON -m venv failed"
}

# One line for each package that pip fetches; what went wrong if it fails.
pip_install() { # PIP-ARGUMENT...
    local log
    log=$(mktemp)
    if "$PYTHON" -m pip install --disable-pip-version-check --no-input --no-color --progress-bar off \
        "$@" 2>&1 </dev/null | tee "$log" |
        awk '/^ *Downloading/ { print "   " $2, $3, $4; fflush() } /^Installing collected/ { print "   unpacking"; fflush() }'; then
        rm -f "$log"
        return 0
    fi
    # pip says the cause in its first errors and much about itself after them.
    { grep -E '^ *ERROR' "$log" || tail -n 10 "$log"; } | head -n 8 | sed 's/^ */     /'
    rm -f "$log"
    return 1
}

install_extras() { # EXTRA...
    local wanted='' extra stamp digest missing=''
    digest=$(cat "$ROOT/pyproject.toml" - <<<"$ROOT" | sha256sum | cut -c1-32)
    stamp=$VENV/.colo-installed
    for extra in base "$@"; do
        grep -qsx "$digest $extra" "$stamp" || missing=1
        [ "$extra" = base ] || wanted=${wanted:+$wanted,}$extra
    done
    [ -n "$missing" ] || return 0
    step "installing colo-vmm${wanted:+ [$wanted]} (a few hundred MiB the first time)"
    pip_install --editable "$ROOT${wanted:+[$wanted]}" ||
        fail "installing colo-vmm: pip failed, see above" \
            "without a network, point pip at a directory of wheels: PIP_NO_INDEX=1 PIP_FIND_LINKS=DIR $0"
    for extra in base "$@"; do echo "$digest $extra"; done >>"$stamp"
}

environment() { # EXTRA...
    platform_or_fail
    mkdir -p "$(dirname "$VENV")" 2>/dev/null || true
    # Two tools started at once must not build one environment twice.  Someone who may not write
    # here can still use an environment that is complete.
    if touch "$VENV.lock" 2>/dev/null; then
        exec 9>"$VENV.lock"
        flock 9
    fi
    make_venv
    install_extras "$@"
    exec 9>&-
}

# The packages of those COMMAND:PACKAGE pairs whose command is not there.
missing_packages() {
    local pair
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || printf '%s\n' "${pair#*:}"
    done | sort -u
}

packages() { # COMMAND:PACKAGE...
    local missing
    missing=$(missing_packages "$@" | tr '\n' ' ')
    missing=${missing% }
    [ -n "$missing" ] || return 0
    if can_apt; then
        step "system packages: $missing"
        # shellcheck disable=SC2086 # one word a package
        if apt_install $missing; then return 0; fi
    fi
    note "not installed: $missing" "what needs them is skipped, and says so;  to have it:" \
        "  $(as_root)apt install $missing"
}
