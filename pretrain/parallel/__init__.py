"""Everything that knows DeepSpeed or a process group: partition, engines, collectives."""
