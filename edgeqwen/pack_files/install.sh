#!/bin/sh
# Install edgeqwen and the model of this folder, without a network and without a compiler.
#
#   sh install.sh [--to FOLDER] [--python PROGRAM] [--service]
#
#   --to FOLDER       where to put it       [default: ~/edgeqwen, with --service /opt/edgeqwen]
#   --python PROGRAM  the Python to use                     [default: the first that fits]
#   --service         also start it with the system (systemd; needs root: sudo sh install.sh --service)
#
# It can be run again: what it installed is replaced, and nothing else.
set -eu

MACHINE='@MACHINE@'
PYTHONS='@PYTHONS@'
GLIBC='@GLIBC@'

fail() {
  echo "install.sh: $1" >&2
  exit 1
}

here=$(cd "$(dirname "$0")" && pwd)
folder='' python='' service=''
while [ $# -gt 0 ]; do
  case $1 in
    --to | --python) [ $# -gt 1 ] || fail "$1 needs a value"
      if [ "$1" = --to ]; then folder=$2; else python=$2; fi; shift ;;
    --service) service=1 ;;
    -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit ;;
    *) fail "$1 is no option; there are --to FOLDER, --python PROGRAM, --service" ;;
  esac
  shift
done
[ -z "$service" ] || [ "$(id -u)" = 0 ] || fail "--service needs root: sudo sh install.sh --service"
if [ -z "$folder" ]; then
  [ -z "$service" ] && folder="${HOME:-/opt}/edgeqwen" || folder=/opt/edgeqwen
fi
case $folder in
  /*) ;;
  *) folder=$(pwd)/$folder ;;
esac
case $folder in
  *[!A-Za-z0-9_./+@-]*) fail "$folder: give --to a folder without spaces and signs" ;;
esac
for name in venv model venv.new model.new; do
  [ ! -e "$folder/$name" ] || [ -e "$folder/.edgeqwen-installed" ] ||
    fail "$folder holds a $name that this did not install: give --to a new folder"
done

# The machine.
[ "$(uname -s)" = Linux ] || fail "this pack is for Linux, and this is $(uname -s)"
if [ "$(getconf LONG_BIT)" = 32 ]; then
  fail "this is a 32-bit system, for which no engine is built: install the 64-bit system (on a Raspberry Pi: Raspberry Pi OS, 64-bit)"
fi
[ "$(uname -m)" = "$MACHINE" ] || fail "this pack is for $MACHINE, and this is $(uname -m): pack again with --for linux-$(uname -m)"
libc=$(getconf GNU_LIBC_VERSION 2>/dev/null) || fail "this system has no glibc, which the wheels need: use Debian, Ubuntu or Raspberry Pi OS"
minor=${libc##*.}
[ "$minor" -ge "$GLIBC" ] || fail "this system has $libc, and the wheels need glibc 2.$GLIBC: install a newer system"

# The pack: a stick that was pulled out too early shows here.
(cd "$here" && sha256sum --check --quiet SHA256SUMS) || fail "the pack is damaged: copy it again"

# A Python that there are wheels for.
if [ -z "$python" ]; then
  for version in $PYTHONS; do
    for name in "python$version" python3; do
      [ -n "$python" ] || ! command -v "$name" >/dev/null ||
        [ "$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" != "$version" ] || python=$name
    done
  done
fi
[ -n "$python" ] || fail "no Python here is one of $PYTHONS: pack again with --python $(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || echo 3.11)"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case " $PYTHONS " in
  *" $version "*) ;;
  *) fail "$python is Python $version, and this pack has wheels for $PYTHONS: pack again with --python $version" ;;
esac
"$python" -c 'import sys; sys.exit(sys.maxsize < 2**32)' || fail "$python is a 32-bit Python: install the 64-bit system"

# Into a folder: environment and model; pip runs from its own wheel, for Debian's Python comes without.
echo "installing into $folder with Python $version ..."
mkdir -p "$folder"
: >"$folder/.edgeqwen-installed" # the venv and the model in here are ours
rm -rf "$folder/venv.new" "$folder/model.new"
"$python" -m venv --without-pip "$folder/venv.new"
for pip in "$here"/wheels/pip-*.whl; do
  PYTHONDONTWRITEBYTECODE=1 "$folder/venv.new/bin/python" "$pip/pip" --isolated --no-cache-dir --disable-pip-version-check install \
    --quiet --no-index --only-binary :all: --find-links "$here/wheels" "$pip" @REQUIREMENTS@
done
cp -R "$here/model" "$folder/model.new"
rm -rf "$folder/venv" "$folder/model"
mv "$folder/venv.new" "$folder/venv"
mv "$folder/model.new" "$folder/model"
# The programs name the environment that they were installed into.
for program in "$folder"/venv/bin/*; do
  [ -L "$program" ] || sed -i "s|venv\.new|venv|g" "$program"
done

# The service.
user=${SUDO_USER:-$(id -un 2>/dev/null)} || user=$(id -u) # systemd takes the number of a user who has no name
sed -e "s|@FOLDER@|$folder|g" -e "s|@USER@|$user|g" "$here/edgeqwen.service" >"$folder/edgeqwen.service"
mkdir -p "$folder/home"
if [ -n "$service" ]; then
  chown -R "$user" "$folder/home"
  cp "$folder/edgeqwen.service" /etc/systemd/system/edgeqwen.service
  systemctl daemon-reload
  systemctl enable --now edgeqwen.service
fi

echo "installed. Ask it:
  $folder/venv/bin/edgeqwen run $folder/model \"What is 123 + 456?\"
What this machine has and lacks:
  $folder/venv/bin/edgeqwen doctor $folder/model"
