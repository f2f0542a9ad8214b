"""The align step in two gloo processes against one, on the same work."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.aligning import OurStep, Work
from benchmarks.timing import alternate, median, ratio_of_turns

ROOT = Path(__file__).parents[1]


def measure(work: Work, rounds: int, repetitions: int) -> dict[str, Any]:
    """Sampled tokens per second of both and their ratio; two processes share the machine's cores."""
    turns = {"alone": lambda: _seconds(work, rounds, 1), "together": lambda: _seconds(work, rounds, 2)}
    seconds = alternate(turns, repetitions)
    return {
        "name": f"align step {work.size}, 2 processes",
        "unit": "sampled tokens/s",
        "ours": work.sampled_tokens / median(seconds["together"]),
        "peer": work.sampled_tokens / median(seconds["alone"]),
        "peer_name": "1 process",
        **ratio_of_turns(seconds["alone"], seconds["together"]),
        "seconds": seconds,
    }


def _seconds(work: Work, rounds: int, count: int) -> float:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    started = []
    for rank in range(count):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if count > 1:
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            environment |= {name: str(value) for name, value in ranks.items()}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, "-m", "benchmarks.processes", json.dumps(vars(work)), str(rounds)]
        started.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate(timeout=1200)[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError(f"a process of {count} failed: {outputs}")
    return float(outputs[0].splitlines()[-1])


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    print(OurStep(Work(**json.loads(sys.argv[1]))).seconds(int(sys.argv[2])))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
