# Sourced by the scripts beside it: a virtual environment with the wanted extras, made once and renewed when pyproject.toml changes.
#   . scripts/environment.sh EXTRAS        for example: . scripts/environment.sh dev
# $OPTML_VENV says where it is (default: .venv in the checkout), $PYTHON which Python makes it.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${OPTML_VENV:-$root/.venv}
extras=$1

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "optml needs Python 3.11 or newer, and none was found on the PATH. Install one, or name it: PYTHON=/path/to/python3.12 $0" >&2
    return 1
}

project=$(cksum <"$root/pyproject.toml")
installed=$(cat "$venv/.optml-extras" 2>/dev/null || true)
if [ "$installed" != "$extras $project" ] && [ "$installed" != "dev $project" ]; then # dev has all the others
    python=$(find_python)
    echo "Installing optml[$extras] into $venv (once; a minute or less) ..."
    if ! "$python" -m venv "$venv" 2>/tmp/optml-venv.$$; then
        cat /tmp/optml-venv.$$ >&2
        rm -f /tmp/optml-venv.$$
        echo "Python's venv module is incomplete here. On Debian and Ubuntu: apt-get install python3-venv" >&2
        exit 1
    fi
    rm -f /tmp/optml-venv.$$
    # Compiling takes as long as unpacking: on all processors at once, not in pip on one. (Some packages ship files of other Pythons.)
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --editable "$root[$extras]"
    "$venv/bin/python" -m compileall -q -j 0 "$venv/lib" >/dev/null 2>&1 || true
    echo "$extras $project" >"$venv/.optml-extras"
fi
PATH=$venv/bin:$PATH
