#!/bin/sh
# Reads the json package of this Python into memory and recalls from it. `make demo` calls this when all is installed.
set -eu
store=build/demo
source=$(python -c 'import json; print(json.__path__[0])')

show() {
    printf '\n$ foveal'
    for word in "$@"; do
        case $word in
        *[!A-Za-z0-9_./=-]*) printf " '%s'" "$word" ;;
        *) printf ' %s' "$word" ;;
        esac
    done
    printf '\n'
    foveal "$@"
}

show read "$source" --name json --store "$store" --replace
for cue in 'def raw_decode(self, s, idx=0):' 'def iterencode(self, o, _one_shot=False):' 'class JSONDecodeError(ValueError):'; do
    show recall json "$cue" --max-tokens 64 --lines --store "$store"
done
cat <<END

Everything above came out of the memory in $store; the lines below each recall are the files' own, for you to compare.
Ask it something else, or read your own code:
  .venv/bin/foveal recall json 'def dumps(' --store $store
  .venv/bin/foveal read PATH --name mine
END
