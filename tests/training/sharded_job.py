"""`distributed_job` with weights sharded by FSDP2, on CPU.

accelerate shards only where it sees GPUs; on CPU it would take DistributedDataParallel without a word. So it is told
that these gloo processes are GPUs. All that follows (fully_shard, DTensors, gathering) is the code that GPUs run.
"""

from __future__ import annotations

import sys

from accelerate.state import PartialState
from accelerate.utils import DistributedType
from training.distributed_job import main
from training.helpers import create_accelerator

if __name__ == "__main__":
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    assert create_accelerator("fp32", "cpu").is_fsdp2
    main(sys.argv[1:])
