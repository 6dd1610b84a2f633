#!/usr/bin/env bash
# The whole story: a fifth of the parameters of MODEL goes, as whole layers (of a small model that is a quarter of them or more), chosen
# for the model as it will be after its repair. What is left is repaired layer by layer, trained with LoRA on text, then on the unpruned
# model's own words, towards that model; every model is proven and measured, and a report tells all of it.
# Usage: quarter.sh MODEL [OUT], or quarter.sh --tiny [OUT]. MODEL is a folder, a Hub id or a .gguf file.
# Needs: for half a billion parameters 2 cores, 16 GB and two hours; the same commands serve a larger model on a GPU.
#
# Environment, beside that of all recipes (unset: what stands in brackets):
#   RATIO      share of the parameters that goes [20%]
#   CHOICE     samples of 128 tokens that the choice looks at [64]
#   REPAIR     time for the repair [25m], SAMPLES of 128 tokens that it is fitted on at most [256]
#   TEXTS      files without blanks in their names, to choose and repair by, such as "wiki.txt novels.txt" [the shipped prose]
#   TRAIN      texts to train on [TEXTS; without either that step is left out], TOKENS of them [40K]
#   PROMPTS    .jsonl of prompts or instructions that the unpruned model answers [beginnings of the shipped calibration prose]
#   OWN        tokens of its answers to train on [20K]
#   EVAL       texts to measure perplexity on [the shipped prose]
#   TASKS      tasks [arc_easy,lambada_openai,gsm8k], LIMIT items of each [40], TASK_DATA their folder of NAME.jsonl [the Hub's data]
#   LLAMA_CPP_ROOT, SHALLOWER_QUANTIZE_PYTHON   llama.cpp's sources, and the Python of an environment with llm-compressor: without the
#              first only a model that was a .gguf file becomes one again, without the second nothing is quantised

USES_MODEL=yes
source "$(dirname "$0")/common.sh"
if [ -n "$TINY" ]; then
  RATIO=10% CHOICE=4 REPAIR=3m SAMPLES=32 TOKENS=1K OWN=1K LIMIT=4 TASKS=lambada_openai
  TEXTS=$DATA/wikitext2.valid.txt TRAIN=$DATA/books/bleak-house_1023.txt EVAL=$EVAL_TEXT
  PROMPTS=$DATA/../instruct/alpaca_format.jsonl TASK_DATA=$DATA/../tasks
  LEARN="--batch-tokens 512 --length 128 --max-tokens 512" ANSWERS="--answer-tokens 16 --max-prompts 8"
  SHORT="--max-tokens 1024" AGREEING="--max-prompts 2 --answer-tokens 8" SPEED="--prompt 16 --new 4 --repeats 1"
else
  LEARN="--batch-tokens 2048 --length 256 --max-tokens 4096" ANSWERS="--answer-tokens 96"
  SHORT="--max-tokens 4096" AGREEING="--answer-tokens 64" SPEED="--batch 1,8 --prompt 128 --new 32"
fi
TASKS=${TASKS:-arc_easy,lambada_openai,gsm8k}
same "$MODEL, ${RATIO:-20%}, ${REPAIR:-25m}, ${SAMPLES:-256}, ${TEXTS:-}, ${TRAIN:-}, ${TOKENS:-40K}, ${PROMPTS:-}, ${OWN:-20K}, ${EVAL:-}, $TASKS, ${LIMIT:-40}"

if [ -z "${PROMPTS:-}" ]; then # beginnings to go on with; evaluate asks other things
  PROMPTS=$OUT/prompts.jsonl
  [ -e "$PROMPTS" ] || { PYTHON - > "$PROMPTS.part" << 'END' && mv "$PROMPTS.part" "$PROMPTS"; }
import json, shallower, pathlib
for path in sorted(pathlib.Path(shallower.__file__).parent.glob("data/prose/calibration/*.txt")):
    for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
        words = paragraph.split()
        if len(words) >= 40:
            print(json.dumps({"text": " ".join(words[:30])}))
END
fi

# each OPTION WORDS: the option before every word
each() { local word; for word in $2; do printf '%s %s ' "$1" "$word"; done; }

# told DIR FILE [OPTIONS]: perplexity and tasks, of a pruned model also how far its answers are those of the unpruned one
told() {
  local model=$1 file=$2
  shift 2
  # shellcheck disable=SC2086
  step "$file" shallower evaluate "$model" $(each --text "${EVAL:-}") --tasks "$TASKS" ${TASK_DATA:+--task-data "$TASK_DATA"} \
    --limit "${LIMIT:-40}" $SHORT "$@" --out "$file"
}

# shellcheck disable=SC2086  # the settings are several words
{
  CALIBRATION=$(each --text "${TEXTS:-}")

  # Choose. Runs of layers are compared by the loss on text held out, each after a closed-form repair, and the best one goes.
  step "$OUT/plan.json" $LAUNCH plan "$MODEL" --ratio "${RATIO:-20%}" --objective repaired $CALIBRATION --samples "${CHOICE:-64}" \
    --out "$OUT/plan.json"

  # Prune, once as it is: every further step is held against it. The checkpoint is plain and proven.
  step "$OUT/pruned" shallower prune "$MODEL" --plan "$OUT/plan.json" --out "$OUT/pruned"

  # Repair: each layer that stays learns to hand on what the unpruned model hands on, from the closed form on.
  step "$OUT/repaired" $LAUNCH prune "$MODEL" --plan "$OUT/plan.json" --compensate local --repair-budget "${REPAIR:-25m}" \
    $CALIBRATION --compensate-samples "${SAMPLES:-256}" --out "$OUT/repaired"

  # Heal: on text, then on the unpruned model's answers to prompts, with its probabilities beside them.
  LEARN="$LEARN $(each --eval-text "${EVAL:-}") --resume"
  TRAIN=${TRAIN:-${TEXTS:-}} BEFORE=$OUT/repaired
  if [ -n "$TRAIN" ]; then
    step "$OUT/trained" $LAUNCH heal "$BEFORE" --method lora $(each --data "$TRAIN") --train-tokens "${TOKENS:-40K}" $LEARN \
      --out "$OUT/trained"
    BEFORE=$OUT/trained
  fi
  step "$OUT/healed" $LAUNCH heal "$BEFORE" --method distill --set rank=16 --teacher "$MODEL" --data "self:$PROMPTS" $ANSWERS \
    --train-tokens "${OWN:-20K}" $LEARN --lr 1e-4 --out "$OUT/healed"

  # Measure: what was lost, and what was gained.
  told "$MODEL" "$OUT/dense.json"
  MODELS="pruned repaired${TRAIN:+ trained} healed"
  for model in $MODELS; do told "$OUT/$model" "$OUT/$model.json" --against "$MODEL" $AGREEING; done
  step "$OUT/speed.json" shallower bench "$OUT/healed" --against "$MODEL" $SPEED --out "$OUT/speed.json"
  step "$OUT/comparison" shallower compare "$OUT/dense.json" $(for model in $MODELS; do echo "$OUT/$model.json"; done) \
    --out "$OUT/comparison"
}

# Export: back into the .gguf file's own form, or by llama.cpp's converter.
case "$MODEL" in
  *.gguf) step "$OUT/healed.gguf" shallower export "$OUT/healed" --like "$MODEL" --out "$OUT/healed.gguf" ;;
  *)
    if [ -n "${LLAMA_CPP_ROOT:-}" ]; then
      step "$OUT/healed.gguf" shallower export "$OUT/healed" --type q8_0 --out "$OUT/healed.gguf"
    else
      echo "== no .gguf file: LLAMA_CPP_ROOT names no sources of llama.cpp" >&2
    fi
    ;;
esac

# Quantise to 4 bits; what that costs is measured.
if [ -n "${SHALLOWER_QUANTIZE_PYTHON:-}" ]; then
  step "$OUT/quantised" shallower quantize "$OUT/healed" --method gptq --out "$OUT/quantised"
else
  echo "== not quantised: SHALLOWER_QUANTIZE_PYTHON names no environment with llm-compressor" >&2
fi

shallower report "$OUT"
