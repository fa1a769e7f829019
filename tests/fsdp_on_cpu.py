"""cream.training.launch as accelerate runs it with launch/fsdp.yaml, on processors.

accelerate shards a model on GPUs only. Here it is told that this is one, and the rest is its own code and torch's.
"""

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from cream.training import launch

PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
torch.distributed.init_process_group("gloo")
save = launch.save_trained


def save_what_is_sharded(trainer, *args):
    assert all(isinstance(weight, DTensor) for weight in trainer.model.parameters())
    save(trainer, *args)


launch.save_trained = save_what_is_sharded
launch.main()
