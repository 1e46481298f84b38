r"""Scripts for the shell of a host; everything here is a function of its arguments.

A pilot has a folder of its own under ``FOLDER/LABEL/pilots``. A keeper, a shell that leads a
session and a process group of its own, notes in ``start`` who it is: process id, time of its start,
boot of the host, name of the host. So a process that happens to have the same id later is not taken
for it, nor another host behind the same name. It runs the pilot and notes its exit code in
``code``.

Answers are lines that begin with a random mark, so that what the login prints besides does no harm,
and the last one says ``end``: without it an answer is no answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from shlex import quote
from typing import TYPE_CHECKING

from pandaflow.harvester.carried import AUTHORITIES, TOKEN
from pandaflow.harvester.submitter import Order

if TYPE_CHECKING:
    from pandaflow.harvester.ssh.settings import SshSettings

#: What all scripts know. After "pid (command) " the 20th field of a process' stat is its start.
_KNOWN = r"""
LC_ALL=C; export LC_ALL; umask 077
host=$(uname -n)
boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null || echo -)
born() {
  if [ -r /proc/self/stat ]; then
    seen=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
    set -f; set -- ${seen##*) }; set +f
    [ "$1" = Z ] || echo "${20}"
  else
    ps -o lstart= -p "$1" 2>/dev/null | tr -s ' ' _
  fi
}
"""
#: Runs a pilot in the folder $1 and the work directory $2.
_KEEPER = r"""
d=$1 w=$2; shift 2
trap '' HUP
trap : INT TERM
cd "$w" || exit 1
echo "$$ $(born $$) $boot $host" >"$d/start.part" && mv "$d/start.part" "$d/start" || exit 1
echo begun
exec >>"$d/log" 2>&1
"""
_KEPT = r"""
"$@"
code=$?
echo "$code" >"$d/code.part" && mv "$d/code.part" "$d/code"
"""
#: Ends the process $1 that was born at $2, with its group, and after $3 seconds by force with all
#: that descend from it: payloads have groups of their own. The second SIGTERM asks the pilot not
#: to wait for them.
_ENDER = r"""
mine() { [ "$(born "$1")" = "$2" ]; }
tree() {
  ps -A -o pid= -o ppid= | awk -v first="$1" '
    function walk(one, parts, n, i) {
      print one; n = split(kids[one], parts, " "); for (i = 1; i <= n; i++) walk(parts[i])
    }
    { kids[$2] = kids[$2] " " $1 } END { walk(first) }'
}
trap '' HUP TERM
left=$3
while mine "$1" "$2"; do
  [ "$left" -gt 0 ] || { kill -KILL $(tree "$1") "-$1"; exit; }
  sleep 1; left=$((left - 1))
  [ "$((left + 1))" -ne "$3" ] || kill -TERM "-$1"
done
"""
_LOOK = r"""
look() {
  d=$base/pilots/$1
  if [ -f "$d/code" ]; then told gone "$1"
  elif [ -f "$d/start" ]; then
    read -r pid start when where <"$d/start"
    if [ "$where" != "$host" ]; then say elsewhere "$1" "$where"
    elif [ "$when" != "$boot" ]; then say rebooted "$1"
    elif [ "$(born "$pid")" = "$start" ]; then say running "$1"
    elif [ -f "$d/code" ]; then told gone "$1"
    else told killed "$1"
    fi
  elif [ -d "$d" ]; then told stillborn "$1"
  else say unknown "$1"
  fi
}
told() {
  code=-; [ ! -f "$base/pilots/$2/code" ] || read -r code <"$base/pilots/$2/code"
  last=$(tail -n 1 "$base/pilots/$2/log" 2>/dev/null | tr -c '[:print:]' ' ' | cut -c 1-300)
  say "$1" "$2" "$code" "$last"
}
"""
_BEGIN = r"""
command -v setsid >/dev/null || { say error 'it has no setsid (util-linux)'; exit; }
begin() {
  n=$1 w=$2 d=$base/pilots/$1; shift 2
  if ! mkdir "$d" 2>/dev/null; then
    if [ -f "$d/start" ]; then say begun "$n"; else say failed "$n" - 'its folder is there'; fi
    return
  fi
  [ -n "$w" ] || w=$d/work
  mkdir -p "$w" 2>>"$d/log"
  said=$(setsid /bin/sh "$base/keeper.sh" "$d" "$w" "$@" </dev/null 2>>"$d/log" &)
  if [ "$said" = begun ]; then say begun "$n"; else told failed "$n"; fi
}
sweep() {
  for d in "$base"/pilots/*/; do
    [ -n "$(find "$d" -prune -mmin "+$1" 2>/dev/null)" ] || continue
    n=${d%/}
    case $(look "${n##*/}") in
      "$mark gone "* | "$mark killed "* | "$mark rebooted "* | "$mark stillborn "*) rm -rf "$d" ;;
    esac
  done
}
"""
_STOP = r"""
stop() {
  case $(look "$1") in "$mark running "*) ;; *) return ;; esac
  read -r pid start when where <"$base/pilots/$1/start"
  kill -TERM "-$pid" 2>/dev/null
  setsid /bin/sh "$base/ender.sh" "$pid" "$start" "$2" </dev/null >/dev/null 2>&1 &
}
"""


def begin(
    settings: SshSettings,
    order: Order,
    names: Sequence[str],
    files: Mapping[str, str],
    mark: str,
) -> str:
    """Return the script that begins pilots.

    Parameters
    ----------
    settings : SshSettings
    order : Order
    names : sequence of str
        Of the pilots.
    files : mapping of str to str
        Texts that they need, by file name; they travel in the script, which goes through the
        standard input of ssh and is seen by nobody else.
    mark : str
        First word of the answers' lines.
    """
    keeper = _KNOWN + _KEEPER + "\n".join(settings.prologue) + _KEPT
    parts = [_opening(settings, order.label, mark), _LOOK, _BEGIN]
    parts += [_file("keeper.sh", keeper, mark), *(_file(*one, mark) for one in files.items())]
    parts += [f"sweep {math.ceil(settings.keep / 60)}\n"]
    parts += [f"begin {quote(name)} {_words(order, name)}\n" for name in names]
    return _closed(parts)


def look(
    settings: SshSettings, label: str, names: Iterable[str], files: Mapping[str, str], mark: str
) -> str:
    """Return the script that tells the states of pilots, after it has written new files."""
    parts = [_opening(settings, label, mark), _LOOK, *(_file(*one, mark) for one in files.items())]
    return _closed([*parts, *(f"look {quote(name)}\n" for name in names)])


def stop(settings: SshSettings, label: str, names: Iterable[str], mark: str) -> str:
    """Return the script that ends pilots."""
    parts = [
        _opening(settings, label, mark),
        _LOOK,
        _STOP,
        _file("ender.sh", _KNOWN + _ENDER, mark),
    ]
    grace = math.ceil(settings.grace)
    return _closed([*parts, *(f"stop {quote(name)} {grace}\n" for name in names)])


def find(settings: SshSettings, label: str, mark: str) -> str:
    """Return the script that tells the states of all pilots there are."""
    every = 'for d in "$base"/pilots/*/; do n=${d%/}; [ ! -d "$d" ] || look "${n##*/}"; done\n'
    return _closed([_opening(settings, label, mark), _LOOK, every])


def _opening(settings: SshSettings, label: str, mark: str) -> str:
    folder = settings.folder.rstrip("/")
    place = f'"$HOME"/{quote(folder[2:])}' if folder.startswith("~/") else quote(folder)
    return (
        f"{_KNOWN}base={place}/{quote(label)} mark={quote(mark)}\n"
        "say() { printf '%s' \"$mark\"; printf ' %s' \"$@\"; echo ' '; }\n"
        'mkdir -p "$base/pilots" && cd "$base" || { say error "$base cannot be made"; exit; }\n'
    )


def _file(name: str, content: str, mark: str) -> str:
    """Return what writes a file so that it appears whole or not at all."""
    end = f"END-{mark}"
    return (
        f"cat >{name}.part <<'{end}'\n{content.rstrip()}\n{end}\n"
        f'mv {name}.part {name} || {{ say error "$base/{name} cannot be written"; exit; }}\n'
    )


def _words(order: Order, name: str) -> str:
    """Return the work directory and the command line of a pilot; quoted, but for "$base"."""
    # No word of an order holds a NUL.
    known = {
        "\0t": f'"$base"/{TOKEN}',
        "\0a": f'"$base"/{AUTHORITIES}',
        "\0w": f'"$base"/pilots/{quote(name)}/work',
    }
    words = order.command(
        name,
        token_file="\0t" if order.token_file else "",
        ca="\0a" if order.ca else "",
        workdir=order.workdir or "\0w",
    )
    env = ["env", *(f"{key}={value}" for key, value in order.env.items())] if order.env else []
    said = [known.get(word) or quote(word) for word in (*env, *words)]
    return f"{quote(order.workdir)} {' '.join(said)}"


def _closed(parts: Iterable[str]) -> str:
    return "".join([*parts, "say end\n"])
