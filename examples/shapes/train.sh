#!/usr/bin/env bash
# Everything that made the checkpoints in this folder, from nothing. Each stage continues where it was stopped.
#   examples/shapes/train.sh [bin folder of the environment] [joint]
# With "joint" only CogVideoX's joint model, from the shipped base: stages 4 to 8.
set -euo pipefail
bin=${1:-.venv/bin}
precision=$("$bin/python" examples/shapes/precision.py)
launch=("$bin/accelerate" launch --cpu --num_processes 1 --num_cpu_threads_per_process 2)
# All 7 subsets of up to 3 objects; frames of 48×48 pixels need no tiles.
precompute=(--num_subsets 7 --batch_size 8 --shard_size 100 --mixed_precision "$precision" --disable_vae_tiling)
joint=(--loss_weight 0.5 --learning_rate 1e-3 --use_ema --ema_decay 0.998 --mixed_precision "$precision" --disable_vae_tiling
    --heldout_samples 48 --validation_prompt "a red circle and a blue square" --validation_inference_steps 25
    --guidance_scale 3 --checkpoints_total_limit 2 --logging_steps 25 --resume_from_checkpoint latest)

# CogVideoX: base/ and joint/
out=outputs/shapes
if [[ ${2:-} == joint ]]; then
    base=examples/shapes/base
else
    base=$out/base/pipeline
    "$bin/python" examples/shapes/train_vae.py --output_dir $out/vae
    "$bin/python" examples/shapes/train_text_encoder.py --output_dir $out
    "$bin/python" examples/shapes/train_base.py --model_dir $out --output_dir $out/base
fi
"$bin/python" examples/shapes/make_dataset.py --output_dir $out/dataset --num_clips 3000
"${launch[@]}" train_scripts/precompute_latents.py --pretrained_model_name_or_path $base \
    --train_data_dir $out/dataset --output_dir $out/jdm_latents "${precompute[@]}"
"${launch[@]}" train_scripts/train_jdm_cogvideox.py --pretrained_model_name_or_path $base \
    --train_data_dir $out/jdm_latents --output_dir $out/joint "${joint[@]}" \
    --train_batch_size 48 --max_train_steps 2400 --lr_scheduler cosine --lr_warmup_steps 100 \
    --checkpointing_steps 300 --validation_steps 600
# Roles in two runs: 1,500 steps were not enough.
roles=(--train_batch_size 48 --lr_scheduler cosine --lr_warmup_steps 100 --checkpointing_steps 300 --validation_steps 300)
"${launch[@]}" train_scripts/train_jdm_cogvideox.py --pretrained_model_name_or_path $out/joint \
    --train_data_dir $out/jdm_latents --output_dir $out/roles "${joint[@]}" "${roles[@]}" \
    --max_train_steps 1500 --segment_probability 0.25 --layout_probability 0.25
"${launch[@]}" train_scripts/train_jdm_cogvideox.py --pretrained_model_name_or_path $out/roles \
    --train_data_dir $out/jdm_latents --output_dir $out/roles_longer "${joint[@]}" "${roles[@]}" --seed 1 \
    --max_train_steps 3000 --segment_probability 0.3 --layout_probability 0.3
"$bin/python" train_scripts/train_mask_decoder.py --pretrained_model_name_or_path $out/roles_longer --train_data_dir $out/dataset \
    --output_dir $out/mask_decoder --disable_vae_tiling --mixed_precision "$precision" --resume_from_checkpoint latest
if [[ ${2:-} == joint ]]; then
    exit
fi
"$bin/python" examples/shapes/ship.py

# ModelScope: joint_modelscope/, on the same clips
out=outputs/shapes_modelscope
"$bin/python" examples/shapes/train_vae_modelscope.py --output_dir $out/vae
"$bin/python" examples/shapes/train_text_encoder_modelscope.py --output_dir $out
"$bin/python" examples/shapes/train_base_modelscope.py --model_dir $out --output_dir $out/base
"${launch[@]}" train_scripts/precompute_latents.py --pretrained_model_name_or_path $out/base/pipeline \
    --train_data_dir outputs/shapes/dataset --output_dir $out/jdm_latents "${precompute[@]}" --num_frames 5
"${launch[@]}" train_scripts/train_jdm_modelscope.py --pretrained_model_name_or_path $out/base/pipeline \
    --train_data_dir $out/jdm_latents --output_dir $out/joint "${joint[@]}" \
    --train_batch_size 24 --max_train_steps 1000 --lr_scheduler onecycle --checkpointing_steps 250 --validation_steps 250
"$bin/python" examples/shapes/ship.py --base_name modelscope
