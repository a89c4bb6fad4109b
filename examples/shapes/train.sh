#!/usr/bin/env bash
# Everything that made the checkpoints in this folder, from nothing. Each stage continues where it was stopped.
#   examples/shapes/train.sh [bin folder of the environment]
set -euo pipefail
bin=${1:-.venv/bin}
out=outputs/shapes

"$bin/python" examples/shapes/train_vae.py --output_dir $out/vae
"$bin/python" examples/shapes/train_text_encoder.py --output_dir $out
"$bin/python" examples/shapes/train_base.py --model_dir $out --output_dir $out/base
"$bin/python" examples/shapes/precompute_latents.py --model_dir $out --output_dir $out/jdm_latents
"$bin/accelerate" launch --cpu --num_processes 1 --num_cpu_threads_per_process 2 train_scripts/train_jdm_cogvideox.py \
    --pretrained_model_name_or_path $out/base/pipeline --data_dir $out/jdm_latents --output_dir $out/joint \
    --train_batch_size 48 --max_train_steps 4200 --learning_rate 1e-3 --lr_scheduler cosine --lr_warmup_steps 100 \
    --loss_weight 0.5 --mixed_precision bf16 --use_ema --ema_decay 0.998 --resume_from_checkpoint latest
"$bin/python" examples/shapes/ship.py --model_dir $out --output_dir examples/shapes
