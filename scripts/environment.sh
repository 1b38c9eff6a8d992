# Sourced: changes to the project's root and sets up its virtual environment if needed.
# PYTHON=/path/to/python uses an interpreter that already has the packages. Without it, VENV=FOLDER is the environment
# (.venv by default) and BASE_PYTHON=COMMAND the Python that creates it (python3 by default). Relative paths in these, in
# DATASET_ROOT, CHECKPOINTS and PRETRAINED are meant from the folder in which the script is started.
# --help among the arguments of the script prints its usage, before anything is installed: $arguments as they are to be
# shown, the comment at the top of the script, and $about.
set -euo pipefail

show_usage() {
  echo "usage: bash $0 ${arguments:-}"
  awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"
  [ -z "${about:-}" ] || echo "$about"
}
for argument in "$@"; do
  case $argument in -h|--help) show_usage; exit 0 ;; esac
done

# from_here VARIABLES...: makes the paths in them absolute; a command without a slash stays one
from_here() {
  local name
  for name in "$@"; do
    case ${!name:-} in
      ''|/*) ;;
      *) printf -v "$name" %s "$PWD/${!name#./}" ;;
    esac
  done
}
from_here DATASET_ROOT CHECKPOINTS VENV PRETRAINED
for name in PYTHON BASE_PYTHON; do
  case ${!name:-} in */*) from_here "$name" ;; esac
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-.venv}
BASE_PYTHON=${BASE_PYTHON:-python3}
CPU_WHEELS=https://download.pytorch.org/whl/cpu

fail() { echo "error: $*" >&2; exit 2; }

has_nvidia_gpu() { nvidia-smi -L >/dev/null 2>&1 || compgen -G '/dev/nvidia[0-9]*' >/dev/null; }

pip_install() { "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

# make_venv: does nothing if the environment has a working pip
make_venv() {
  local clear=()
  if "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then return; fi
  "$BASE_PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
    || fail "Python >= 3.10 is needed, $BASE_PYTHON is older or missing: name one with BASE_PYTHON=COMMAND"
  # venv would keep a link to a Python that is gone; if the environment's Python runs, only pip is missing
  [ -x "$VENV/bin/python" ] || clear=(--clear)
  "$BASE_PYTHON" -m venv ${clear[@]+"${clear[@]}"} "$VENV" \
    || fail "$BASE_PYTHON -m venv failed: install the venv module (Debian: python3-venv)"
  rm -f "$VENV"/installed-*
  echo '*' > "$VENV/.gitignore"  # as venv itself does from Python 3.13 on
}

# install_cpu_torch REQUIREMENTS_FILE: torch from the default index brings gigabytes of CUDA, useless without such a
# GPU. Not on macOS, whose default wheels are CPU wheels.
install_cpu_torch() {
  local pin
  pin=$(sed -n 's/^\(torch==[^ ;]*\).*/\1/p' "$1")
  if [ -z "$pin" ] || [ "$(uname -s)" = Darwin ] || has_nvidia_gpu; then return; fi
  # many networks reach only the default index: one short attempt. Torch's dependencies come from the default index.
  pip_install --no-deps --timeout 10 --retries 0 --index-url "$CPU_WHEELS" "$pin" >/dev/null 2>&1 \
    || echo "note: no $pin from $CPU_WHEELS: using the default index, which may install gigabytes of CUDA"
}

# pins REQUIREMENTS_FILE: its text and that of the files it includes
pins() {
  local included
  cat "$1"
  for included in $(sed -n 's/^-r //p' "$1"); do cat "$included"; done
}

# install REQUIREMENTS_FILE: does nothing if the same pins were installed before
install() {
  local stamp=$VENV/installed-$(basename "$1")
  if [ -n "${PYTHON:-}" ]; then return; fi
  if [ -x "$VENV/bin/python" ] && pins "$1" | cmp -s - "$stamp" 2>/dev/null; then return; fi
  make_venv
  echo "installing $1 into $VENV ..."
  rm -f "$stamp"  # an interrupted installation leaves neither the old state nor the new one
  trap 'exit 130' INT  # pip ends on Ctrl-C with an ordinary exit code, after which bash would go on
  install_cpu_torch "$1"
  pip_install -r "$1" || fail "$1 could not be installed into $VENV"
  trap - INT
  pins "$1" > "$stamp"
}

# importable MODULES...: a PYTHON that lacks one of them would fail later, with a traceback in the middle of a script
importable() {
  local missing program='import importlib.util as u, sys; print(*(m for m in sys.argv[1:] if not u.find_spec(m)))'
  missing=$("$python" -c "$program" "$@") || fail "PYTHON=$python does not run"
  [ -z "$missing" ] || fail "PYTHON=$python lacks $missing: install requirements.txt there, or leave PYTHON unset"
}

install "${requirements:-requirements.txt}"
python=${PYTHON:-$VENV/bin/python}
if [ -n "${PYTHON:-}" ]; then importable torch numpy pandas sklearn matplotlib tqdm; fi
