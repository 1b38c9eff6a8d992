# Sourced: goes to the project's root and into its virtual environment (.venv), made and filled when needed.
# PYTHON=/path/to/python uses an interpreter that has the packages already.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "error: $*" >&2; exit 2; }

# install REQUIREMENTS_FILE: nothing to do where the same file was installed before
install() {
  local stamp=.venv/installed-$(basename "$1")
  if [ -n "${PYTHON:-}" ] || cmp -s "$1" "$stamp" 2>/dev/null; then return; fi
  if [ ! -x .venv/bin/python ]; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || fail "python3 >= 3.10 is needed"
    python3 -m venv .venv || fail "python3 -m venv failed: install the venv module (Debian: python3-venv)"
  fi
  echo "installing $1 into .venv ..."
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1"
  cp "$1" "$stamp"
}

# importable MODULES...: a PYTHON without one of them would fail later, with a traceback in the middle of a script
importable() {
  local missing
  missing=$("$python" -c 'import importlib.util as u, sys; print(*(m for m in sys.argv[1:] if not u.find_spec(m)))' "$@") \
    || fail "PYTHON=$python does not run"
  [ -z "$missing" ] || fail "PYTHON=$python lacks $missing: install requirements.txt there, or leave PYTHON unset"
}

install requirements.txt
python=${PYTHON:-.venv/bin/python}
if [ -n "${PYTHON:-}" ]; then importable torch numpy pandas sklearn matplotlib tqdm; fi
