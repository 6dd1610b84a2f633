#!/usr/bin/env bash
# Shortened LLaMA (arXiv 2402.02834), severe: 15 of 32 layers of Vicuna-7B v1.3 ("45 %", 3.7B left) by PPL, then a chain:
# continued pre-training of all weights on SlimPajama, then LoRA on instructions on top of it.
# The first 4 and the last 2 layers stay. 512 x 2048 tokens a batch, 74B tokens (the authors' model card); 2B show most of it.
# Published: continued pre-training beats LoRA alone clearly where much is removed, and LoRA on top of it helps again.
# Needs: eight GPUs with 80 GB and weeks for all of it; TOKENS=2B is a day. The data set is read on the way.

source "$(dirname "$0")/common.sh"
if [ -n "$TINY" ]; then
  REMOVE=13 SCORE="--text $DATA/wikitext2.valid.txt --samples 4"
  CPT="$BOOKS --train-tokens ${TOKENS:-8K} --batch-tokens 1024 --length 256"
  LORA="--data $DATA/../instruct/alpaca_format.jsonl --train-tokens 4K --batch-tokens 1024 --length 512"
else
  MODEL=lmsys/vicuna-7b-v1.3 REMOVE=15
  SCORE="--dataset Salesforce/wikitext:wikitext-2-raw-v1:train --samples 10"
  CPT="--dataset cerebras/SlimPajama-627B --train-tokens ${TOKENS:-74B} --batch-tokens 1048576 --length 2048 --gradient-checkpointing"
  LORA="--dataset yahma/alpaca-cleaned --train-tokens 15M --batch-tokens 16384 --length 512"
fi
[ -n "${EVAL_TEXT:-}" ] && CPT="$CPT --eval-text $EVAL_TEXT"

# shellcheck disable=SC2086
{
  step "$OUT/scores.json" $LAUNCH score "$MODEL" --criterion perplexity $SCORE --length 128 --seed 1234 --out "$OUT/scores.json"
  step "$OUT/plan.json" shallower plan "$OUT/scores.json" --remove $REMOVE --keep-first 4 --keep-last 2 --out "$OUT/plan.json"
  step "$OUT/pruned" shallower prune "$MODEL" --plan "$OUT/plan.json" --out "$OUT/pruned"
  step "$OUT/continued" $LAUNCH heal "$OUT/pruned" --method continued $CPT ${TINY:+--max-tokens 2048} --resume --out "$OUT/continued"
  step "$OUT/continued-lora" $LAUNCH heal "$OUT/continued" --method lora $LORA --resume --out "$OUT/continued-lora"
  step "$OUT/lora" $LAUNCH heal "$OUT/pruned" --method lora $LORA --resume --out "$OUT/lora" # beside it: LoRA alone
}
for model in pruned continued continued-lora lora; do measure "$OUT/$model" "$OUT/$model-quality.json"; done
shallower report "$OUT"
