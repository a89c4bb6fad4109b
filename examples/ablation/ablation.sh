#!/usr/bin/env bash
# The ablation of the paper's Figure 4 and Table 5 on the small world, from nothing. Each stage continues where it was stopped.
#   examples/ablation/ablation.sh [bin folder of the environment] [quick]
# "quick" takes one seed, CogVideoX alone, and few steps: the same axes in some minutes, no result.
set -euo pipefail
bin=${1:-.venv/bin}
root=outputs/ablation
bases="cogvideox modelscope"
clips=1500
frames=20000
text_steps=1000
base_clips=3000
seeds="0 1 2"
declare -A settings=([cogvideox]="" [modelscope]="--train_batch_size 8 --max_train_steps 300 --validation_steps 150 --curve_prompts 8 --final_prompts 20")
declare -A frame_steps=([cogvideox]=1300 [modelscope]=350) base_steps=([cogvideox]=1600 [modelscope]=450)
if [[ ${2:-} == quick ]]; then
    root=outputs/ablation-quick
    bases=cogvideox
    clips=200
    frames=3000
    text_steps=200
    base_clips=200
    frame_steps[cogvideox]=200
    base_steps[cogvideox]=240
    seeds=0
    settings[cogvideox]="--max_train_steps 40 --validation_steps 20 --curve_prompts 4 --final_prompts 8"
fi

precision=$("$bin/python" examples/shapes/precision.py)
declare -A shipped=([cogvideox]=joint [modelscope]=joint_modelscope) suffix=([cogvideox]="" [modelscope]=_modelscope)
"$bin/python" examples/shapes/make_dataset.py --output_dir $root/dataset --num_clips $clips --relations --signals --cmi
for base in $bases; do
    out=$root/$base
    num_frames=$("$bin/python" -c "from diffusers_jdm.bases.base import base_named; print(base_named('$base').shapes_frames)")
    mkdir -p $out
    rm -rf $out/vae && cp -r examples/shapes/${shipped[$base]}/vae $out/vae
    # A base from before binding is complete, so that attributes leak, as in the paper's Figure 1
    "$bin/python" examples/shapes/train_text_encoder${suffix[$base]}.py --output_dir $out --relations --max_train_steps $text_steps
    "$bin/python" examples/shapes/train_base${suffix[$base]}.py --model_dir $out --output_dir $out/base --relations \
        --num_single_frames $frames --num_clips $base_clips \
        --frame_steps ${frame_steps[$base]} --max_train_steps ${base_steps[$base]}
    for signal in mask hed depth; do
        "$bin/accelerate" launch --cpu --num_processes 1 --num_cpu_threads_per_process 2 train_scripts/precompute_latents.py \
            --pretrained_model_name_or_path $out/base/pipeline --train_data_dir $root/dataset --output_dir $out/latents_$signal \
            --regional_signal $signal --num_frames $num_frames \
            --num_subsets 7 --batch_size 8 --shard_size 100 --mixed_precision "$precision" --disable_vae_tiling
    done
    export ACCELERATE_USE_CPU=true
    run=("$bin/python" examples/ablation/run.py --root $root --base_name $base --mixed_precision "$precision" ${settings[$base]})
    "${run[@]}" --variants  # the base alone
    # Two runs of one thread each get more done than one after another with two; each pair continues where it was stopped
    for seed in $seeds; do
        for variant in direct jdm jdm_no_cmi jdm_hed jdm_depth direct_partial jdm_whole; do echo "--seeds $seed --variants $variant"; done
    done | OMP_NUM_THREADS=1 xargs -P 2 -L 1 "${run[@]}"
done
"$bin/python" examples/ablation/summarise.py --root $root
