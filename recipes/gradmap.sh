#!/usr/bin/env bash
# GradMAP (arXiv 2602.14649): layers of the smallest gradients go, one backward per decision, and one projection of the largest shift of
# the mean activation is folded into a down projection. No training. 128 samples of Wikipedia; here 6 of 32 layers of Llama-2-7B.
# Its formulas are public at the level of the abstract only: what is done here is the reconstruction in docs/methods.md.
# Published: pruning about four times as fast as SLEB (make bench-quality measures that), and better than SLEB and ShortGPT.
# Needs: a GPU with 24 GB (the model runs layer by layer), minutes.

source "$(dirname "$0")/common.sh"
if [ -n "$TINY" ]; then
  HOW="--text $DATA/wikitext2.valid.txt --samples 8 --length 128 --compensate-samples 32"
else
  MODEL=meta-llama/Llama-2-7b-hf
  HOW="--dataset Salesforce/wikitext:wikitext-2-raw-v1:train --samples 128 --length 2048"
fi

# shellcheck disable=SC2086
for repair in projection sequential; do # the paper's repair, and ours beside it
  step "$OUT/$repair" shallower prune "$MODEL" --criterion gradient --iterative --remove 6 $HOW --compensate $repair --out "$OUT/$repair"
  measure "$OUT/$repair" "$OUT/$repair-quality.json"
done
shallower report "$OUT"
