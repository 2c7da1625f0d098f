"""What engines the model of an engine can be: how big, and how long a step takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """What engine is simulated. Times are in seconds.

    Attributes:
        max_num_seqs: Most requests in a step.
        max_num_batched_tokens: Most tokens in a step, `max_num_seqs` or more.
        kv_blocks: Blocks in the KV cache.
        step_s: Of any step: reading the weights, starting the kernels, scheduling.
        decode_s: More for each sequence that decodes.
        context_s: More for each token of context that these read.
        prefill_s: More for each prompt token that is computed.
        attention_s: More for each token that one of these attends to.
        request_s: More for each request that the step takes up.
        block_size: Tokens in a block.
        policy: `priority` serves a lower `EngineRequest.priority` first, `fcfs` heeds none.

    Raises:
        ValueError: A number is out of its range.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    kv_blocks: int
    step_s: float
    decode_s: float
    context_s: float
    prefill_s: float
    attention_s: float = 0.0
    request_s: float = 0.0
    block_size: int = 16
    policy: Literal["fcfs", "priority"] = "fcfs"

    def __post_init__(self) -> None:
        if min(self.max_num_seqs, self.kv_blocks, self.block_size) < 1:
            raise ValueError(f"expected positive sizes, got {self}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(f"expected max_num_batched_tokens of at least max_num_seqs, got {self}")
        if self.step_s <= 0 or min(self._more_s()) < 0:
            raise ValueError(f"expected a positive step_s and no negative times, got {self}")

    def _more_s(self) -> tuple[float, ...]:
        return self.decode_s, self.context_s, self.prefill_s, self.attention_s, self.request_s

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self.kv_blocks * self.block_size

    def blocks_for(self, tokens: int) -> int:
        """Blocks that so many tokens take."""
        return -(-tokens // self.block_size)


H200_8B = EngineProfile(
    max_num_seqs=256,
    max_num_batched_tokens=8192,
    kv_blocks=57_200,
    step_s=0.0062,
    decode_s=30e-6,
    context_s=40e-9,
    prefill_s=36e-6,
    attention_s=1.2e-9,
    request_s=100e-6,
)
"""An 8B model with grouped-query attention (32 layers, 8 KV heads of 128) in bf16 on one H200: reckoned, not measured.

`step_s`: 16 GB of weights at 80 % of 4.8 TB/s are 4.2 ms; 2 ms for kernels and scheduler.
`decode_s`, `prefill_s`: 16 GFLOP a token at 45 % of 989 TFLOPS are 36 us, thus 28,000 prompt tokens a second;
a decoding sequence's share is a little less, for its weights are being read anyway.
`attention_s`: likewise 0.5 MFLOP, 4 * 4096 in each layer, for each of the tokens that a prompt token attends to.
`context_s`: 128 KiB of KV a token at 70 % of 4.8 TB/s are 40 ns.
`request_s`: making ready a sequence in scheduler and model runner.
`kv_blocks`: 120 GB that are free beside weights and activations, at 2 MiB a block, are 915,000 tokens.
"""

CPU_135M = EngineProfile(
    max_num_seqs=16,
    max_num_batched_tokens=2048,
    kv_blocks=727,
    step_s=0.0294,
    decode_s=1.62e-3,
    context_s=1.68e-6,
    prefill_s=1.47e-3,
    attention_s=1.6e-7,
    block_size=128,
)
"""SmolLM2-135M-Instruct in bf16 on vLLM 0.32 on two cores: measured (`tests/benchmarks/calibrate_engine_model.py`).

Over traces of 200 requests, `--seed 1` and `--seed 2`, the model was off the real engine by these shares:

    load             throughput        TTFT p50          TTFT p95
    75 % of capacity -0.6 %, -0.9 %    +3.7 %, +5.1 %    +2.8 %, +11.1 %
    150 %            -2.4 %, +1.0 %    +4.4 %, -6.3 %    +6.5 %, -2.2 %
"""

PROFILES: Mapping[str, EngineProfile] = {"h200-8b": H200_8B, "cpu-135m": CPU_135M}
"""By name."""
