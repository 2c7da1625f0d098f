"""What engines say of themselves: a page of metrics in Prometheus' text becomes a sample for the scheduler.

    engine      running, waiting                          KV cache                       since the start
    vLLM        num_requests_running, _waiting            kv_cache_usage_perc (before    num_preemptions,
                                                          0.10 gpu_cache_usage_perc),    prefix_cache_queries,
                                                          cache_config_info              prefix_cache_hits,
                                                                                         prompt_ and
                                                                                         generation_tokens
    SGLang      num_running_reqs, num_queue_reqs          token_usage,                   num_retracted_requests,
                                                          max_total_num_tokens           prompt_tokens, cached_tokens,
                                                                                         generation_tokens
    llama.cpp   requests_processing, requests_deferred    kv_cache_usage_ratio (older)   prompt_tokens,
                                                                                         tokens_predicted

Names begin with `vllm:`, `sglang:` or `llamacpp:`; counters are taken with and without `_total`. Where a metric has
several label sets, there are several engines behind one address (data-parallel ranks): counts are summed, shares
are averaged.

Only the wanted lines are looked for: a page of vLLM's has some hundred kilobytes, and is read four times a second.
Whatever the page holds, nothing here raises; what is malformed, negative, infinite or no number counts as not told.
"""

import re
from collections.abc import Callable, Iterator

from muster_batching import EngineSample

_MOST = 2.0**53
"""Above it a float, which is what the text format has, does not count by ones."""

_KV_TOKENS = re.compile(rb'[{,]kv_cache_size_tokens="(\d{1,15})"')
_BLOCKS = re.compile(rb'[{,]num_gpu_blocks="(\d{1,15})"')
_BLOCK_SIZE = re.compile(rb'[{,]block_size="(\d{1,15})"')

# With priority scheduling SGLang shows each queue's total under an empty priority, and its parts beside it.
_PART = re.compile(rb'[{,]priority="[^"]')


def read(page: bytes) -> EngineSample | None:
    """The sample that a page of metrics gives; None where no engine is known by it.

    Args:
        page: The body of `/metrics`, of any size. Cost: O(its bytes), some 0.15 ms for 100 KB.
    """
    lines = b"\n" + page
    return next((sample for adapter in _ADAPTERS if (sample := adapter(lines)) is not None), None)


def _vllm(page: bytes) -> EngineSample | None:
    running, waiting = _count(page, b"vllm:num_requests_running"), _count(page, b"vllm:num_requests_waiting")
    if running is None or waiting is None:
        return None
    kv_usage = _share(page, b"vllm:kv_cache_usage_perc")
    return EngineSample(
        running,
        waiting,
        kv_usage=_share(page, b"vllm:gpu_cache_usage_perc") if kv_usage is None else kv_usage,
        kv_tokens=_vllm_kv_tokens(page),
        preemptions=_total(page, b"vllm:num_preemptions"),
        prefix_queries=_total(page, b"vllm:prefix_cache_queries"),
        prefix_hits=_total(page, b"vllm:prefix_cache_hits"),
        tokens=_sum(page, b"vllm:prompt_tokens", b"vllm:generation_tokens"),
    )


def _vllm_kv_tokens(page: bytes) -> int | None:
    """What the labels of `cache_config_info` tell; versions before 0.11 tell blocks alone."""
    sizes = [size for line in _lines(page, b"vllm:cache_config_info") if (size := _kv_tokens(line))]
    return sum(sizes) or None


def _kv_tokens(line: bytes) -> int:
    if told := _KV_TOKENS.search(line):
        return int(told[1])
    blocks, block_size = _BLOCKS.search(line), _BLOCK_SIZE.search(line)
    return int(blocks[1]) * int(block_size[1]) if blocks and block_size else 0


def _sglang(page: bytes) -> EngineSample | None:
    running, waiting = _count(page, b"sglang:num_running_reqs"), _count(page, b"sglang:num_queue_reqs")
    if running is None or waiting is None:
        return None
    return EngineSample(
        running,
        waiting,
        kv_usage=_share(page, b"sglang:token_usage"),
        kv_tokens=_count(page, b"sglang:max_total_num_tokens") or None,
        preemptions=_total(page, b"sglang:num_retracted_requests"),
        prefix_queries=_total(page, b"sglang:prompt_tokens"),
        prefix_hits=_total(page, b"sglang:cached_tokens"),
        tokens=_sum(page, b"sglang:prompt_tokens", b"sglang:generation_tokens"),
    )


def _llama_cpp(page: bytes) -> EngineSample | None:
    running, waiting = (
        _count(page, b"llamacpp:requests_processing"),
        _count(page, b"llamacpp:requests_deferred"),
    )
    if running is None or waiting is None:
        return None
    return EngineSample(
        running,
        waiting,
        kv_usage=_share(page, b"llamacpp:kv_cache_usage_ratio"),
        tokens=_sum(page, b"llamacpp:prompt_tokens", b"llamacpp:tokens_predicted"),
    )


_ADAPTERS: tuple[Callable[[bytes], EngineSample | None], ...] = (_vllm, _sglang, _llama_cpp)


def _count(page: bytes, name: bytes) -> int | None:
    values = _values(page, name)
    return int(sum(values)) if values else None


def _total(page: bytes, name: bytes) -> int | None:
    total = _count(page, name + b"_total")
    return _count(page, name) if total is None else total


def _sum(page: bytes, *names: bytes) -> int | None:
    """The sum of counters; None unless all of them are told."""
    totals = [total for name in names if (total := _total(page, name)) is not None]
    return sum(totals) if len(totals) == len(names) else None


def _share(page: bytes, name: bytes) -> float | None:
    values = _values(page, name)
    return min(1.0, sum(values) / len(values)) if values else None


def _values(page: bytes, name: bytes) -> list[float]:
    """The good values of a metric, one for each of its label sets."""
    values = [_value(line) for line in _lines(page, name)]
    return [value for value in values if 0 <= value <= _MOST]


def _lines(page: bytes, name: bytes) -> Iterator[bytes]:
    """What follows a metric's name in each of its lines."""
    wanted = b"\n" + name
    at = page.find(wanted)
    while at >= 0:
        begin = at + len(wanted)
        end = page.find(b"\n", begin)
        end = len(page) if end < 0 else end
        if page[begin : begin + 1] in (b"{", b" ") and not _PART.search(page, begin, end):
            yield page[begin:end]
        at = page.find(wanted, end)


def _value(line: bytes) -> float:
    """The value after the labels, which hold no line's end but anything else; NaN where there is none."""
    try:
        return float(line[line.rfind(b"}") + 1 :].split(None, 1)[0])
    except (ValueError, IndexError):
        return float("nan")
