"""The pipeline engine: each rank builds one stage's layers; ZeRO-1 shards its optimizer over data parallelism."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from deepspeed import comm
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.pipe import schedule
from deepspeed.runtime.pipe.engine import PipelineEngine as DeepSpeedPipelineEngine
from torch import Tensor, nn

from pretrain.models.layer_list import LayerList
from pretrain.models.layers import ModelSpec, State
from pretrain.objectives.cross_entropy import TokenLoss, count_targets
from pretrain.parallel import collectives
from pretrain.parallel.engine import Batch, StepResult
from pretrain.parallel.zero_engine import ZeroEngine


class Stage(PipelineModule):
    """This rank's stage as DeepSpeed's pipeline wants it, but holding a LayerList.

    DeepSpeed's own building and partitioning are replaced: bounds are handed over, only the stage's layers are
    built, tied weights are those that the descriptors name, and recomputation is the LayerList's.
    """

    def __init__(self, spec: ModelSpec, bounds: Sequence[int], build: Callable[[int, int], LayerList], loss: TokenLoss):
        self.spec = spec
        self.parts = list(bounds)
        self._build_layers = build
        self._loss = loss
        super().__init__(layers=spec.layers, num_stages=len(bounds) - 1, loss_fn=self.scaled_loss)

    def scaled_loss(self, output: State, labels: tuple[Tensor, Tensor]) -> Tensor:
        """Summed loss of one micro-batch times its scale, plain in evaluation; labels are (label ids [B, T], scale)."""
        (logits,), (ids, scale) = output, labels
        return (self._loss if self.training else TokenLoss()).sum(logits, ids) * scale

    def _partition_layers(self, method: str = "uniform") -> None:
        self._set_bounds(start=self.parts[self.stage_id], stop=self.parts[self.stage_id + 1])

    def _build(self) -> None:
        self.layers = self._build_layers(self._local_start, self._local_stop)
        for parameter in self.layers.parameters():
            parameter.ds_pipe_replicated = False  # type: ignore[attr-defined]
        for key, module in self.layers.shared_modules().items():
            self.tied_modules[key] = module
            self.tied_weight_attrs[key] = ["weight"]

    def _index_tied_modules(self) -> dict[str, Any]:
        """Groups of the ranks that hold a copy of each shared module, one a data-parallel index."""
        found: dict[str, Any] = {}
        for key in sorted(self.spec.shared):
            stages = sorted({self.stage_owner(i) for i, layer in enumerate(self.spec.layers) if layer.tie_key == key})
            for data in range(self._grid.data_parallel_size):
                ranks = [self._grid.stage_to_global(stage_id=stage, data=data) for stage in stages]
                group = comm.new_group(ranks=ranks)  # collective: every rank makes every group
                if self.global_rank not in ranks or len(ranks) == 1:
                    continue
                module = self.tied_modules[key]
                found[key] = {"ranks": ranks, "group": group, "weight_attr": ["weight"], "module": module}
                for parameter in module.parameters():
                    parameter.ds_pipe_replicated = self.global_rank != ranks[0]  # type: ignore[attr-defined]
        return found

    def forward(self, state: State) -> State:
        return self.layers(state)


class JointBackwardEngine(DeepSpeedPipelineEngine):
    """DeepSpeed's pipeline engine with ONE backward call over all outputs of a stage.

    DeepSpeed calls backward once an output tensor: a stage holding encoder and decoder layers would traverse its
    encoder part twice, and backward hooks would fire twice with partial gradients.
    """

    def _exec_backward_pass(self, buffer_id: int) -> None:
        if self.is_last_stage():
            super()._exec_backward_pass(buffer_id)
            return
        outputs = [t for t in self.pipe_buffers["outputs"][buffer_id] if t.is_floating_point()]
        if self.using_bf16_optimizer:
            self.optimizer.clear_lp_grads()
        self._running_engine_backward = True
        try:
            torch.autograd.backward(outputs, list(self.grad_layer))
        finally:
            self._running_engine_backward = False
        if self.using_bf16_optimizer and not self._config.bfloat16_config.immediate_grad_update:
            self.optimizer.update_hp_grads(clear_lp_grads=False)
        self.pipe_buffers["output_tensors"][buffer_id] = None
        self.pipe_buffers["outputs"][buffer_id] = None

    def _exec_send_activations(self, buffer_id: int) -> None:
        # gloo's point-to-point is an in-place broadcast, which autograd would record on a live output.
        outputs = self.pipe_buffers["outputs"][buffer_id]
        self.pipe_buffers["outputs"][buffer_id] = tuple(tensor.detach() for tensor in outputs)
        super()._exec_send_activations(buffer_id)
        self.pipe_buffers["outputs"][buffer_id] = outputs

    _INSTRUCTION_MAP = {  # noqa: RUF012 (overrides the base's table, which binds its own methods)
        **DeepSpeedPipelineEngine._INSTRUCTION_MAP,
        schedule.BackwardPass: _exec_backward_pass,
        schedule.SendActivation: _exec_send_activations,
    }


class PipelineEngine(ZeroEngine):
    """Micro-batches through 1F1B over the stages.

    Args:
        spec: the model.
        bounds: stage boundaries as of `stage_bounds`.
        build: (start, stop) -> this stage's layers, built and initialised.
        optimizer: makes the optimizer for a module's parameters.
        config: the complete DeepSpeed configuration.
        loss: what training minimises.
    """

    def __init__(
        self,
        spec: ModelSpec,
        bounds: Sequence[int],
        build: Callable[[int, int], LayerList],
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        config: dict[str, Any],
        loss: TokenLoss,
    ):
        self.spec = spec
        module = Stage(spec, bounds, build, loss)
        self.layers = module.layers
        mpu = module.mpu()
        engine = JointBackwardEngine(
            args=None,
            model=module,
            optimizer=optimizer(module.layers),
            mpu=mpu,
            dist_init_required=False,
            config=config,
            config_class=DeepSpeedConfig(config, mpu),
        )
        self.rank = collectives.rank()
        self.stage, self.num_stages = engine.stage_id, engine.num_stages
        self.data_parallel_rank = mpu.get_data_parallel_rank()
        self.data_parallel_size = mpu.get_data_parallel_world_size()
        self.attach(engine)
        self._data_group = mpu.get_data_parallel_group()

    def _micro_batches(self, batches: Sequence[Batch], scale: float) -> Any:
        factor = torch.tensor(scale, dtype=torch.float32)
        return iter([(self.spec.state(batch), (batch["labels"], factor)) for batch in batches])

    def _count(self, batches: Sequence[Batch]) -> int:
        local = sum(int(count_targets(batch["labels"])) for batch in batches)
        return int(collectives.sum_over(torch.tensor(local), self._data_group).item())

    def train_step(self, micro_batches: Sequence[Batch], lr: float) -> StepResult:
        self.set_lr(lr)
        skipped_before = self.deepspeed.skipped_steps
        targets = self._count(micro_batches)
        # DeepSpeed averages over micro-batches and ranks; the loss is a sum over the global batch's tokens / count.
        scale = len(micro_batches) * self.data_parallel_size / max(targets, 1)
        self._micro_batch_count = len(micro_batches)
        loss = self.deepspeed.train_batch(self._micro_batches(micro_batches, scale))
        return self.result(float(loss), targets, skipped_before)

    def loss_share(self) -> float:
        if self.stage < self.num_stages - 1:
            return 0.0
        # Summed over micro-batches; the scale of each counts on the mean over them and over ranks.
        return float(self.deepspeed.total_loss) / (self._micro_batch_count * self.data_parallel_size)

    def evaluate(self, micro_batches: Sequence[Batch]) -> tuple[float, int]:
        batches, count = len(micro_batches), self._count(micro_batches)
        # eval_batch averages over micro-batches and ranks; the scale turns that into the sum.
        data = self._micro_batches(micro_batches, float(batches * self.data_parallel_size))
        loss = self.deepspeed.eval_batch(data, num_micro_batches=batches)
        return float(loss), count
