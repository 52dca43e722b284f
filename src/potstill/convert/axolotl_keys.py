"""The keys of axolotl that need no rule of their own, by what is said of them."""

OURS = {
    "attention is chosen for the machine": (
        "flash_attention flash_attn_cross_entropy flash_attn_fuse_mlp flash_attn_rms_norm flash_optimum "
        "xformers_attention sdp_attention flex_attention flex_attn_compile_kwargs sage_attention "
        "eager_attention attn_implementation s2_attention experts_implementation"
    ),
    "rows are always packed, without seeing each other; nothing is padded": (
        "sample_packing eval_sample_packing pad_to_sequence_len sample_packing_group_size "
        "sample_packing_bin_size sample_packing_sequentially multipack_real_batches batch_flattening "
        "pad_to_multiple_of sample_packing_eff_est total_num_tokens group_by_length max_packed_sequence_len "
        "dpo_padding_free sample_packing_seq_len_multiplier"
    ),
    "a matter of speed or memory": (
        "use_scattermoe use_sonicmoe fused_attn_kernel device_map device world_size local_rank "
        "liger_rms_norm_gated use_ray ray_num_workers gradient_checkpointing_kwargs "
        "torch_compile torch_compile_backend torch_compile_mode dataloader_num_workers "
        "dataloader_pin_memory dataloader_prefetch_factor dataset_processes dataset_num_proc gc_steps "
        "lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel low_cpu_mem_usage "
        "activation_offloading chunked_cross_entropy cut_cross_entropy liger_rope liger_rms_norm "
        "liger_glu_activation liger_layer_norm liger_fused_linear_cross_entropy liger_swiglu "
        "unsloth_cross_entropy_loss lora_on_cpu use_kernels tiled_mlp gpu_memory_limit max_memory "
        "eval_batch_size auto_find_batch_size dpo_use_liger_kernel precompute_ref_log_probs "
        "qlora_sharded_model_loading ddp ddp_timeout ddp_bucket_cap_mb ddp_broadcast_buffers "
        "ddp_find_unused_parameters accelerator_config bnb_config_kwargs remove_unused_columns "
        "embeddings_skip_upcast dataset_keep_in_memory"
    ),
    "a run's folder is named on the command line, tokens are cached in it": (
        "dataset_prepared_path push_dataset_to_hub skip_prepare_dataset dataset_shard_num dataset_shard_idx streaming"
    ),
    "models are sealed when they are done, merged, as safetensors, and pushed by nobody": (
        "hub_model_id hub_strategy hub_revision hf_use_auth_token save_safetensors merge_lora "
        "tokenizer_save_jinja_files push_to_hub"
    ),
    "checkpoints are written every ten minutes (checkpoint_minutes); a run goes on by itself": (
        "saves_per_epoch save_steps save_strategy save_total_limit save_only_model save_first_step "
        "resume_from_checkpoint auto_resume_from_checkpoints"
    ),
    "held-out rows are scored as often as `evaluations` says": (
        "evals_per_epoch eval_steps eval_strategy evaluation_strategy eval_table_size eval_max_new_tokens "
        "eval_sequence_len do_causal_lm_eval do_bench_eval"
    ),
    "every step stands in the curves": (
        "logging_steps include_tokens_per_second include_tkps wandb_entity wandb_watch wandb_name "
        "wandb_run_id wandb_log_model wandb_mode trackio_project_name trackio_run_name trackio_space_id "
        "profiler_steps debug axolotl_config_path"
    ),
    "the model's own files say it": (
        "model_type tokenizer_type tokenizer_use_fast tokenizer_legacy type_of_model "
        "is_falcon_derived_model is_llama_derived_model is_mistral_derived_model is_qwen_derived_model "
        "base_model_config base_model_ignore_patterns trust_remote_code_dataset"
    ),
    "unknown keys are always refused": ("strict"),
    "rows are shuffled anew each epoch, by seed": ("shuffle_merged_datasets shuffle_before_merging_datasets"),
    "a diverging loss stops with one line": ("loss_watchdog_threshold loss_watchdog_patience"),
    "room for new tokens is made as it is needed": (
        "resize_token_embeddings_to_32x mean_resizing_embeddings shrink_embeddings"
    ),
}
"""Keys that say how axolotl works, and what potstill does there."""
LEFT = {
    "the token that the template ends a turn with ends an answer; words of their own go to new_tokens": (
        "special_tokens eot_tokens added_tokens_overrides"
    ),
    "the chat template writes it, or the rows have it": ("default_system_message chat_template_kwargs"),
    "an adapter starts anew; name the merged model as base_model": ("lora_model_dir"),
    "schedules end at 0": ("cosine_min_lr_ratio cosine_constant_lr_ratio lr_scheduler_kwargs lr_div_factor"),
    "one learning rate for all that is trained": (
        "embedding_lr embedding_lr_scale lr_groups loraplus_lr_ratio loraplus_lr_embedding"
    ),
    "all weights are trained, or an adapter": (
        "unfrozen_parameters lisa_n_layers lisa_step_interval relora freeze_mm_modules"
    ),
    "weights are rounded after training, by a stage `quantize`": ("qat quantization gptq"),
    "pairs are never cut: longer ones are left out and counted": ("max_prompt_len"),
    "`curate` and `import` choose rows; there is no lower bound of tokens": ("min_sample_len"),
    "packages that change the model are not loaded; kernels for speed are not needed": ("plugins"),
    "tokenizers come with their model": ("tokenizer_config tokenizer_use_mistral_common"),
    "trackers are tensorboard, trackio and wandb": (
        "use_mlflow mlflow_tracking_uri mlflow_experiment_name mlflow_run_name hf_mlflow_log_artifacts "
        "use_comet comet_api_key comet_workspace comet_project_name comet_experiment_key comet_mode "
        "use_swanlab swanlab_project swanlab_experiment_name swanlab_description swanlab_mode "
        "swanlab_workspace"
    ),
    "models read text alone": ("processor_type processor_kwargs"),
    "it has an effect on the loss that no recipe has": (
        "use_eaft eaft_alpha eaft_k dpo_use_weighting dpo_loss_weights"
    ),
    "sequences are not cut over devices; sharding and activation_checkpointing make room": (
        "sequence_parallel_degree context_parallel_size tensor_parallel_size dp_shard_size "
        "dp_replicate_size expert_parallel_size"
    ),
}
"""Keys that a recipe has no place for, and why."""
