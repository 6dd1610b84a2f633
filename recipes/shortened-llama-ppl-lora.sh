#!/usr/bin/env bash
# Shortened LLaMA (arXiv 2402.02834), "20 %", criterion PPL: 6 of 32 layers of LLaMA-7B (18 % of the parameters), then LoRA.
# The first 4 and the last 2 layers stay; 10 x 128 tokens; instructions with the prompt masked, rank 8.
# Published: WikiText2 perplexity 17.7 (12.6 dense, segments of 128), 61.8 on the seven tasks.
# Needs: a GPU with 80 GB (or LAUNCH with several), some hours.

source "$(dirname "$0")/common.sh"
if [ -n "$TINY" ]; then
  SCORE="--text $DATA/wikitext2.valid.txt --samples 4"
  HEAL="--data $DATA/../instruct/alpaca_format.jsonl --train-tokens 6K --batch-tokens 1024 --length 512"
else
  MODEL=huggyllama/llama-7b
  SCORE="--dataset Salesforce/wikitext:wikitext-2-raw-v1:train --samples 10" # the paper's BookCorpus can no longer be had
  HEAL="--dataset yahma/alpaca-cleaned --train-tokens 15M --batch-tokens 16384 --length 512" # two passes, 64 x 256 tokens a batch
fi

# shellcheck disable=SC2086  # the settings are several words
{
  step "$OUT/scores.json" $LAUNCH score "$MODEL" --criterion ${CRITERION:-perplexity} $SCORE --length 128 --seed 1234 --out "$OUT/scores.json"
  step "$OUT/plan.json" shallower plan "$OUT/scores.json" --remove 6 --keep-first 4 --keep-last 2 --out "$OUT/plan.json"
  step "$OUT/pruned" shallower prune "$MODEL" --plan "$OUT/plan.json" --out "$OUT/pruned"
  step "$OUT/healed" $LAUNCH heal "$OUT/pruned" --method lora $HEAL --resume --out "$OUT/healed"
}
for model in pruned healed; do measure "$OUT/$model" "$OUT/$model-quality.json"; done
shallower report "$OUT"
