"""What every forked test process needs, imported once in the fork server."""

import gc

import torch

torch.set_num_threads(1)

import deepspeed  # noqa: E402
import deepspeed.pipe  # noqa: E402

# Imported by the first optimizer and the first engine, for seconds: torch's compiler, which nothing here runs.
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: E402
import torch._dynamo  # noqa: E402
import torch.utils.tensorboard  # noqa: E402

import pretrain.analysis.bench_hf  # noqa: E402
import pretrain.build  # noqa: E402
import pretrain.parallel.pipeline  # noqa: E402
import pretrain.parallel.plain  # noqa: E402
import pretrain.train  # noqa: E402

_ = deepspeed.ops.__compatible_ops__  # looked up by trying the C compiler, for half a second
pretrain.train.PATIENCE = 0.5  # forked ranks start together
gc.freeze()  # a collection in a child would copy all of this
