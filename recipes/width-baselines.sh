#!/usr/bin/env bash
# Width at 20 % of the parameters of LLaMA-7B, to stand beside shortened-llama-taylor-lora.sh: Wanda-sp (arXiv 2306.11695; 128 x 128
# tokens of C4), FLAP (2312.11983; 1024 x 128 of WikiText-2, repaired by its bias) and LLM-Pruner (2305.11627; 10 x 64 tokens, blocks 4
# to N-3), then the LoRA of Shortened LLaMA on each. What is not uniform is written with its own modelling file (trust_remote_code).
# Published (2402.02834): at equal parameters width keeps about the quality of depth, and does not speed up small batches.
# Needs: a GPU with 80 GB (or LAUNCH with several), some hours.

source "$(dirname "$0")/common.sh"
if [ -n "$TINY" ]; then
  WIKI="--text $DATA/wikitext2.valid.txt --samples 8" C4=$WIKI BOOK=$WIKI
  HEAL="--data $DATA/../instruct/alpaca_format.jsonl --train-tokens 2K --batch-tokens 1024 --length 512"
else
  MODEL=huggyllama/llama-7b
  WIKI="--dataset Salesforce/wikitext:wikitext-2-raw-v1:train --samples 1024"
  C4="--dataset allenai/c4:en --samples 128"
  BOOK="--dataset Salesforce/wikitext:wikitext-2-raw-v1:train --samples 10 --length 64" # BookCorpus can no longer be had
  HEAL="--dataset yahma/alpaca-cleaned --train-tokens 15M --batch-tokens 16384 --length 512"
fi

# narrow NAME CRITERION SELECTION CALIBRATION [REPAIR]: scores, the plan, the model, and the model trained
narrow() {
  local at="$OUT/$1"
  # shellcheck disable=SC2086
  {
    step "$at-scores.json" $LAUNCH score "$MODEL" --units width --criterion $2 $4 --out "$at-scores.json"
    step "$at-plan.json" shallower plan "$at-scores.json" --selection $3 --ratio 20% --out "$at-plan.json"
    step "$at" shallower prune "$MODEL" --plan "$at-plan.json" $5 --format custom --out "$at"
    step "$at-healed" $LAUNCH heal "$at" --method lora $HEAL --resume --out "$at-healed"
  }
}

narrow wanda-sp wanda uniform "$C4" ""
narrow flap flap standardised "$WIKI" "--compensate bias --compensate-samples 64"
narrow llm-pruner taylor "uniform --keep-first 4 --keep-last 2" "$BOOK" ""
for model in wanda-sp flap llm-pruner; do
  measure "$OUT/$model" "$OUT/$model-quality.json"
  measure "$OUT/$model-healed" "$OUT/$model-healed-quality.json"
done
shallower report "$OUT"
