#!/usr/bin/env bash
# Progressive removal (SlimQwen, arXiv 2605.08738) on the model's own words (2410.09982): 4 of 32 layers of Llama-3.1-8B-Instruct go, what
# is left learns from the unpruned model (LM and KL) on that model's answers to prompts, 4 more go, it learns again; beside it 8 layers
# in one shot, trained on as many tokens. Runs of neighbours by block influence, repaired before they are trained.
# Published: progressive removal beats one shot at equal tokens; 6 of 32 layers keep 91.2 % on own answers, 81.7 % on ordinary instructions.
# Needs: a GPU with 80 GB for LoRA (RANK=0: all weights, LAUNCH with several), and PROMPTS, a .jsonl or .parquet of instructions.
# Answers are made once and lie in OUT; the second training has a seed of its own, so that it reads other ones than the first.

source "$(dirname "$0")/common.sh"
if [ -n "$TINY" ]; then
  STEP=3 TOKENS=${TOKENS:-8192} PROMPTS=${PROMPTS:-$DATA/../instruct/alpaca_format.jsonl}
  HOW="--text $DATA/wikitext2.valid.txt --samples 8 --length 128 --compensate-samples 32"
  TEXT="--batch-tokens 1024 --length 256 --answer-tokens 48 --max-prompts 32 --lr 1e-4"
else
  MODEL=meta-llama/Llama-3.1-8B-Instruct STEP=4 TOKENS=${TOKENS:-40000000} PROMPTS=${PROMPTS:-prompts.jsonl}
  HOW="--samples 128 --length 512 --compensate-samples 256"
  TEXT="--batch-tokens 65536 --length 1024 --answer-tokens 768 --dtype bf16 --gradient-checkpointing"
fi
CUT="--selection window --criterion block_influence $HOW --compensate sequential"
LEARN="--method distill --set rank=${RANK:-16} --teacher $MODEL --data self:$PROMPTS $TEXT ${EVAL_TEXT:+--eval-text $EVAL_TEXT} ${TINY:+--max-tokens 2048}"

# shellcheck disable=SC2086
{
  step "$OUT/some" shallower prune "$MODEL" $CUT --remove $STEP --out "$OUT/some"
  step "$OUT/some-healed" $LAUNCH heal "$OUT/some" $LEARN --train-tokens $((TOKENS / 2)) --resume --out "$OUT/some-healed"
  step "$OUT/more" shallower prune "$OUT/some-healed" $CUT --remove $STEP --out "$OUT/more"
  step "$OUT/progressive" $LAUNCH heal "$OUT/more" $LEARN --seed 2 --train-tokens $((TOKENS / 2)) --resume --out "$OUT/progressive"
  step "$OUT/at-once" shallower prune "$MODEL" $CUT --remove $((2 * STEP)) --out "$OUT/at-once"
  step "$OUT/one-shot" $LAUNCH heal "$OUT/at-once" $LEARN --train-tokens $TOKENS --resume --out "$OUT/one-shot"
}
for model in some some-healed more progressive at-once one-shot; do measure "$OUT/$model" "$OUT/$model-quality.json"; done
shallower report "$OUT"
