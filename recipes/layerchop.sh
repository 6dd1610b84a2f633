#!/usr/bin/env bash
# LayerCHOP, "Just CHOP" (arXiv 2305.14864): half of the layers of Llama-2-7B, those next to the input, go at once and without scores;
# some steps before the cut build the optimiser's state, which goes across it; then long training of all weights. Beside it the
# distillation that the paper compares with, on the same tokens; the report shows both against tokens and against seconds.
# AdamW (0.9, 0.95), 3e-4, cosine to 10 %, 4M tokens a batch; 500 steps before the cut, up to 160B tokens of C4 behind it.
# Published: removing next to the input is best at 1.1B and above, distillation is worse per hour than plain training.
# Needs: eight GPUs with 80 GB; TOKENS=4B is two days, and shows most of it. The data set is read on the way.

source "$(dirname "$0")/common.sh"
if [ -n "$TINY" ]; then
  REMOVE=15 WARM=2K TEXT="$BOOKS --batch-tokens 1024 --length 256 --eval-text $EVAL_TEXT --max-tokens 2048 --lr 3e-4"
  TOKENS=${TOKENS:-8K}
else
  MODEL=meta-llama/Llama-2-7b-hf REMOVE=16 WARM=2B TOKENS=${TOKENS:-160B}
  TEXT="--dataset allenai/c4:en --batch-tokens 4000000 --length 2048 --gradient-checkpointing ${EVAL_TEXT:+--eval-text $EVAL_TEXT}"
fi
CONTINUED="--method continued --set recipe=layerchop"
DISTILL="--method distill --set recipe=layerchop --set objective=layerchop --set relative=true --set teacher=$MODEL"

# shellcheck disable=SC2086
{
  step "$OUT/warm" $LAUNCH heal "$MODEL" $CONTINUED $TEXT --train-tokens $WARM --keep-optimizer --resume --out "$OUT/warm"
  step "$OUT/chopped" shallower prune "$OUT/warm" --selection positional --set strategy=input --remove $REMOVE --out "$OUT/chopped"
  step "$OUT/trained" $LAUNCH heal "$OUT/chopped" $CONTINUED $TEXT --train-tokens $TOKENS \
    --optimizer-from "$OUT/warm" --resume --out "$OUT/trained"
  step "$OUT/distilled" $LAUNCH heal "$OUT/chopped" $DISTILL $TEXT --train-tokens $TOKENS \
    --optimizer-from "$OUT/warm" --resume --out "$OUT/distilled"
}
for model in chopped trained distilled; do measure "$OUT/$model" "$OUT/$model-quality.json"; done
shallower report "$OUT"
