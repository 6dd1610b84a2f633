#!/usr/bin/env bash
# Shortened LLaMA (arXiv 2402.02834), "20 %", criterion Taylor+: 6 of 32 layers of LLaMA-7B (18 % of the parameters), then LoRA.
# All but the criterion is as in shortened-llama-ppl-lora.sh.
# Published: WikiText2 perplexity 20.2 (12.6 dense, segments of 128), 63.5 on the seven tasks.
# Needs: a GPU with 80 GB (or LAUNCH with several), some hours.

CRITERION=taylor
source "$(dirname "$0")/shortened-llama-ppl-lora.sh"
