# What the recipes share; they source it. Each takes [--tiny] [OUT]; one that says USES_MODEL=yes first takes MODEL [OUT].
#
#   --tiny   SmolLM2-135M and a few thousand tokens of local text, minutes on a laptop: to see that every step works, and what
#            comes out of it. The figures of a tiny run say nothing about the method.
#   OUT      folder for all that is made, by default runs/NAME. What is complete in it is not made again, and training goes
#            on from its last checkpoint, so a recipe that was stopped is simply started again.
#
# Environment:
#   LAUNCH         how to start shallower for what may be split: "torchrun --nproc_per_node 8 -m shallower"; by default shallower
#   EVAL_TEXT      a file to measure perplexity on, such as the raw test split of WikiText-2
#   SHALLOWER_DATA folder with the texts of the tiny variants (books/, wikitext2.valid.txt, ...)
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
NAME=$(basename "$0" .sh)
TINY="" WORDS=()
for word in "$@"; do
  case "$word" in
    --tiny) TINY=yes ;;
    -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) echo "error: $word: give --tiny, --help or a folder" >&2; exit 2 ;;
    *) WORDS+=("$word") ;;
  esac
done
if [ -n "${USES_MODEL:-}" ] && [ -z "$TINY" ]; then
  [ ${#WORDS[@]} -ge 1 ] || { echo "error: no model: give MODEL [OUT], or --tiny [OUT]" >&2; exit 2; }
  MODEL=${WORDS[0]} WORDS=("${WORDS[@]:1}")
fi
[ ${#WORDS[@]} -le 1 ] || { echo "error: ${WORDS[*]}: one folder is enough" >&2; exit 2; }
OUT=${WORDS[0]:-runs/$NAME${TINY:+-tiny}${USES_MODEL:+-$(basename "${MODEL:-demo}" .gguf)}}
# PYTHON ARGUMENTS...: that of the environment that shallower is in, be it linked from elsewhere
PYTHON() { "$(dirname "$(readlink -f "$(command -v shallower)")")/python" "$@"; }
PATH="$PATH:$HERE/../.venv/bin" # where make setup puts it
LAUNCH=${LAUNCH:-shallower}
command -v shallower > /dev/null || { echo "error: no shallower: make setup, or pip install 'shallower[data,heal,eval]'" >&2; exit 2; }
mkdir -p "$OUT"

if [ -n "$TINY" ]; then
  DATA=${SHALLOWER_DATA:-$HERE/../../shared/data/text}
  [ -d "$DATA/books" ] || { echo "error: no books in $DATA: say with SHALLOWER_DATA where the texts are" >&2; exit 2; }
  MODEL=$(PYTHON -c 'from shallower.cli.demo import demo_model; print(demo_model())')
  BOOKS="--data $DATA/books/bleak-house_1023.txt --data $DATA/books/the-moonstone_155.txt"
  EVAL_TEXT=${EVAL_TEXT:-$DATA/books/emma_158.txt}
  export PYTHONWARNINGS=ignore
fi

# same SETTINGS: what the folder was begun with, so that a later start does not mix two
same() {
  if [ -e "$OUT/recipe.txt" ] && [ "$(cat "$OUT/recipe.txt")" != "$*" ]; then
    echo "error: $OUT was begun with other settings ($(cat "$OUT/recipe.txt")): give another folder, or the same settings" >&2
    exit 2
  fi
  echo "$*" > "$OUT/recipe.txt"
}

# step FILE COMMAND...: unless FILE is there already. Every command writes it only when it is complete.
step() {
  local made=$1
  shift
  if [ -e "$made" ]; then
    echo "== $made is there" >&2
  else
    echo "== $*" >&2
    "$@"
  fi
}

# measure MODEL FILE: perplexity, and the seven zero-shot tasks unless it is a tiny run
measure() {
  local what=()
  [ -n "${EVAL_TEXT:-}" ] && what+=(--text "$EVAL_TEXT" --protocol shortened-llama)
  [ -z "$TINY" ] && what+=(--tasks commonsense7)
  [ -n "$TINY" ] && what+=(--max-tokens 2048)
  step "$2" shallower evaluate "$1" "${what[@]}" --out "$2"
}
