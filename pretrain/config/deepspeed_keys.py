"""What DeepSpeed 0.19.8 accepts in its JSON, as data. A test compares these tables with the installed DeepSpeed."""

from __future__ import annotations

# Keys that pass through: they tune the engine and do not decide what is learned.
TOP_LEVEL = frozenset(
    {
        "activation_checkpointing",
        "aio",
        "bf16",
        "comms_logger",
        "communication_data_type",
        "data_types",
        "disable_allgather",
        "disable_python_gc",
        "dump_state",
        "flops_profiler",
        "fp16",
        "gradient_accumulation_steps",
        "gradient_allreduce_op",
        "gradient_clipping",
        "gradient_predivide_factor",
        "log_level",
        "managed_gradient_accumulation",
        "memory_breakdown",
        "pipeline",
        "prescale_gradients",
        "steps_per_print",
        "timers",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "vocabulary_size",
        "wall_clock_breakdown",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "zero_optimization",
    }
)

# Keys below the sections; DeepSpeed ignores an unknown one in most of them, which hides a misspelling.
SECTIONS: dict[str, frozenset[str]] = {
    "activation_checkpointing": frozenset(
        {
            "contiguous_memory_optimization",
            "cpu_checkpointing",
            "number_checkpoints",
            "partition_activations",
            "profile",
            "synchronize_checkpoint_boundary",
        }
    ),
    "aio": frozenset(
        {"block_size", "intra_op_parallelism", "overlap_events", "queue_depth", "single_submit", "use_gds"}
    ),
    "bf16": frozenset(
        {
            "bf16_master_weights_and_grads",
            "bf16_optimizer_states",
            "check_grad_overflow",
            "enabled",
            "immediate_grad_update",
        }
    ),
    "comms_logger": frozenset({"debug", "enabled", "prof_all", "prof_ops", "verbose"}),
    "data_types": frozenset({"buffer_dtype", "grad_accum_dtype", "keep_in_fp32_modules", "param_dtype"}),
    "flops_profiler": frozenset(
        {
            "detailed",
            "enabled",
            "module_depth",
            "output_file",
            "profile_step",
            "recompute_fwd_factor",
            "top_modules",
        }
    ),
    "fp16": frozenset(
        {
            "auto_cast",
            "consecutive_hysteresis",
            "enabled",
            "fp16_master_weights_and_grads",
            "hysteresis",
            "initial_scale_power",
            "loss_scale",
            "loss_scale_window",
            "min_loss_scale",
        }
    ),
    "pipeline": frozenset(
        {"activation_checkpoint_interval", "grad_partitioned", "pipe_partitioned", "stages", "use_reentrant"}
    ),
    "timers": frozenset({"throughput"}),
    "zero_optimization": frozenset(
        {
            "allgather_bucket_size",
            "allgather_partitions",
            "compute_grad_norm",
            "contiguous_gradients",
            "enable_sanity_checks",
            "ignore_unused_parameters",
            "leaf_module",
            "load_from_fp32_weights",
            "log_trace_cache_warnings",
            "memory_efficient_linear",
            "offload_optimizer",
            "overlap_comm",
            "override_module_apply",
            "parameter_alignment",
            "pipeline_loading_checkpoint",
            "reduce_bucket_size",
            "reduce_scatter",
            "round_robin_gradients",
            "save_muon_momentum_buffer_in_memory",
            "stage",
            "stage3_allgather_sequential",
            "stage3_gather_16bit_weights_on_model_save",
            "stage3_max_live_parameters",
            "stage3_max_reuse_distance",
            "stage3_model_persistence_threshold",
            "stage3_module_granularity_threshold",
            "stage3_param_persistence_threshold",
            "stage3_prefetch_bucket_size",
            "stage3_use_all_reduce_for_fetch_params",
            "sub_group_size",
            "use_multi_rank_bucket_allreduce",
            "zero_hpz_partition_size",
            "zero_quantized_gradients",
            "zero_quantized_nontrainable_weights",
            "zero_quantized_weights",
        }
    ),
}

_USE_ZERO = "set parallel.zero_stage"
_OWN_METRICS = "metrics go to RUN/metrics.jsonl and, with monitors.tensorboard, to TensorBoard"
_NO_OFFLOAD = "kilolayer offloads the optimizer's state alone: set parallel.offload_optimizer"

# Keys that DeepSpeed removed: dotted name -> what to use. It would raise on them, after the processes have started.
REMOVED: dict[str, str] = {
    "amp": "use train.precision",
    "compression_training": "there is no substitute",
    "curriculum_learning": "there is no substitute",
    "eigenvalue": "there is no substitute",
    "elasticity": "state batch.global_batch_size and batch.micro_batch_size",
    "graph_harvesting": "there is no substitute",
    "nebula": "checkpoints are kilolayer's own",
    "progressive_layer_drop": "there is no substitute",
    "quantize_training": "there is no substitute",
    "sparse_attention": "there is no substitute",
    "sparse_gradients": "there is no substitute",
    "zero_optimization.mics_hierarchical_params_gather": _USE_ZERO,
    "zero_optimization.mics_shard_size": _USE_ZERO,
    "zero_optimization.zeropp_loco_param": "there is no substitute",
}

# Keys that DeepSpeed knows and that an experiment here decides in another way or cannot use: dotted name -> the mend.
REFUSED: dict[str, str] = {
    "autotuning": "choose batch.micro_batch_size in the experiment",
    "bfloat16": "set train.precision=bf16",
    "checkpoint": "checkpoints are kilolayer's own: set checkpoint.interval and checkpoint.keep_last",
    "comet": _OWN_METRICS,
    "compile": "kilolayer does not run DeepCompile",
    "csv_monitor": _OWN_METRICS,
    "data_efficiency": "the experiment's data section decides which samples are read",
    "dataloader_drop_last": "the experiment's data section decides which samples are read",
    "datastates_ckpt": "checkpoints are kilolayer's own: set checkpoint.interval and checkpoint.keep_last",
    "expert_parallel": "kilolayer has no experts",
    "hybrid_engine": "kilolayer trains only",
    "optimizer": "set optimizer.lr, optimizer.betas, optimizer.eps and optimizer.weight_decay in the experiment",
    "scheduler": "set schedule.kind and its keys in the experiment",
    "seq_parallel_communication_data_type": "kilolayer does not shard sequences",
    "sequence_parallel_size": "kilolayer does not shard sequences",
    "tensor_parallel": "kilolayer does not shard layers",
    "tensorboard": _OWN_METRICS,
    "torch_autocast": "set train.precision in the experiment",
    "use_data_before_expert_parallelism": "kilolayer has no experts",
    "wandb": _OWN_METRICS,
    "weight_quantization": "set train.precision in the experiment",
    "pipeline.partition": "kilolayer cuts the stages by cost",
    "pipeline.seed_layers": "kilolayer seeds each parameter by its name",
    "zero_optimization.cpu_offload": _NO_OFFLOAD,
    "zero_optimization.cpu_offload_param": _NO_OFFLOAD,
    "zero_optimization.cpu_offload_use_pin_memory": _NO_OFFLOAD,
    "zero_optimization.elastic_checkpoint": "checkpoints are kilolayer's own and fit any layout",
    "zero_optimization.legacy_stage1": "DeepSpeed no longer has it",
    "zero_optimization.offload_param": _NO_OFFLOAD,
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": "DeepSpeed calls it deprecated",
    "zero_optimization.zenflow": _NO_OFFLOAD,
}
