"""What an engine says of itself: one reading of its metrics."""

from dataclasses import dataclass

CALM = 4
"""While nothing waits, no limit holds anyone back, and engines can be read so many times less often.

A reading is not free: rendering its page took vLLM 0.32 about 6 ms, in the process that also streams its answers.
"""


@dataclass(frozen=True, slots=True)
class EngineSample:
    """One reading of an engine's metrics; what an engine does not tell is None.

    Attributes:
        running: Requests in the engine's batch (`vllm:num_requests_running`).
        waiting: Requests in the engine's own queue (`vllm:num_requests_waiting`).
        kv_usage: Share of the KV cache that active requests hold, 0 to 1 (`vllm:kv_cache_usage_perc`).
            Blocks that are only cached count as free, so a prefix cache can thrash at a low usage.
        kv_tokens: Tokens that the KV cache holds (from `vllm:cache_config_info`).
        preemptions: Requests put back for want of KV blocks, since the engine's start
            (`vllm:num_preemptions_total`).
        prefix_queries: Prompt tokens looked up in the prefix cache, since the start
            (`vllm:prefix_cache_queries_total`).
        prefix_hits: Of these, tokens found (`vllm:prefix_cache_hits_total`).
        tokens: Tokens computed, of prompts and answers, since the start
            (`vllm:prompt_tokens_total` and `vllm:generation_tokens_total`). No limit uses it: it shows whether the
            engine makes progress.
    """

    running: int
    waiting: int
    kv_usage: float | None = None
    kv_tokens: int | None = None
    preemptions: int | None = None
    prefix_queries: int | None = None
    prefix_hits: int | None = None
    tokens: int | None = None
