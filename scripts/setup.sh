#!/bin/sh
# Makes DIR a virtual environment with the locked dependencies and the muster command: setup.sh DIR
set -eu
dir=$1
wanted=$(cat .python-version)

usable() {
  # The oldest Python supported is 3.11; an environment can only be made where venv and pip are whole.
  "$1" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

python=
for candidate in "${PYTHON:-}" "python$wanted" python3 python3.13 python3.14 python3.12 python3.11 python; do
  [ -n "$candidate" ] || continue
  if usable "$candidate"; then python=$candidate; break; fi
done

if [ -z "$python" ]; then
  cat >&2 <<'EOF'
muster needs Python 3.11 or newer (3.13 is what it is developed on), with venv, and found none.
  Debian, Ubuntu:  sudo apt-get install python3 python3-venv
  macOS:           brew install python@3.13
  anywhere:        pyenv install 3.13, or an installer from python.org
Then run make again. To choose one yourself: make setup PYTHON=/path/to/python3
EOF
  exit 1
fi

echo "setup: $("$python" --version) in $dir"
[ -x "$dir/bin/python" ] || "$python" -m venv "$dir"
"$dir/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r scripts/bootstrap.lock
echo "setup: installing the locked dependencies"
VIRTUAL_ENV=$dir "$dir/bin/uv" pip install --quiet --require-hashes -r requirements.lock
VIRTUAL_ENV=$dir "$dir/bin/uv" pip install --quiet --no-deps --editable .
echo "setup: done"
