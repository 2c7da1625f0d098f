"""Engines' pages of metrics become samples, whatever is in them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_batching import EngineSample
from muster_batching.testing import H200_8B
from muster_proxy import engine_metrics
from muster_proxy.testing.engine_metrics import EngineReading, text_of

VLLM = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a } b"} 3.0
vllm:num_requests_waiting{engine="0",model_name="a } b"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 40.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:num_preemptions_total{engine="0"} 7.0
vllm:num_preemptions_created{engine="0"} 1.7e9
vllm:prefix_cache_queries_total{engine="0"} 1.5e+06
vllm:prefix_cache_hits_total{engine="0"} 1.25e+06
vllm:cache_config_info{block_size="16",engine="0",kv_cache_size_tokens="463459",num_gpu_blocks="320"} 1.0
"""

OLD_VLLM = b"""vllm:num_requests_running{model_name="m"} 3
vllm:num_requests_waiting{model_name="m"} 0
vllm:gpu_cache_usage_perc{model_name="m"} 0.5
vllm:num_preemptions{model_name="m"} 7
vllm:gpu_prefix_cache_queries_total{model_name="m"} 9
vllm:cache_config_info{block_size="16",mamba_block_size="32",num_gpu_blocks="573",num_cpu_blocks="1024"} 1.0
"""

TWO_RANKS = b"""vllm:num_requests_running{engine="0"} 3
vllm:num_requests_running{engine="1"} 4
vllm:num_requests_waiting{engine="0"} 0
vllm:num_requests_waiting{engine="1"} 5
vllm:kv_cache_usage_perc{engine="0"} 0.2
vllm:kv_cache_usage_perc{engine="1"} 0.6
vllm:cache_config_info{engine="0",kv_cache_size_tokens="1000"} 1
vllm:cache_config_info{engine="1",kv_cache_size_tokens="1000"} 1
"""

SGLANG = b"""sglang:num_running_reqs{model_name="m",priority=""} 5.0
sglang:num_running_reqs{model_name="m",priority="10"} 5.0
sglang:num_running_reqs_offline_batch{model_name="m"} 9.0
sglang:num_queue_reqs{model_name="m",priority=""} 4.0
sglang:num_queue_reqs{model_name="m",priority="0"} 3.0
sglang:num_queue_reqs{model_name="m",priority="10"} 1.0
sglang:token_usage{model_name="m"} 0.37
sglang:max_total_num_tokens{model_name="m"} 500000.0
sglang:num_retracted_requests_total{model_name="m"} 2.0
sglang:prompt_tokens_total{model_name="m"} 5000.0
sglang:cached_tokens_total{cache_source="device",model_name="m"} 1000.0
sglang:cached_tokens_total{cache_source="host",model_name="m"} 200.0
"""

LLAMA_CPP = b"""# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 4
llamacpp:requests_deferred 46
llamacpp:kv_cache_usage_ratio 0.75
"""


@pytest.mark.parametrize(
    ("page", "sample"),
    [
        pytest.param(VLLM, EngineSample(3, 2, 0.25, 463459, 7, 1_500_000, 1_250_000), id="vLLM"),
        pytest.param(OLD_VLLM, EngineSample(3, 0, 0.5, 573 * 16, 7), id="older vLLM"),
        pytest.param(TWO_RANKS, EngineSample(7, 5, 0.4, 2000), id="two data-parallel ranks"),
        pytest.param(SGLANG, EngineSample(5, 4, 0.37, 500_000, 2, 5000, 1200), id="SGLang"),
        pytest.param(LLAMA_CPP, EngineSample(4, 46, 0.75), id="llama.cpp"),
    ],
)
def test_an_engines_page_is_understood(page: bytes, sample: EngineSample) -> None:
    """Names, label sets and units of each engine; with either kind of line's end, and without the last."""
    assert engine_metrics.read(page) == sample
    assert engine_metrics.read(page.replace(b"\n", b"\r\n")) == sample
    assert engine_metrics.read(page.rstrip(b"\n")) == sample


def test_what_the_fake_engine_tells_is_what_is_read() -> None:
    """A sample survives the way through the text format."""
    sample = EngineSample(12, 3, 0.5, H200_8B.kv_tokens, 1, 2000, 1000, tokens=0)

    assert engine_metrics.read(text_of(EngineReading("m", sample, H200_8B))) == sample


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"<html>404</html>",
        b"process_cpu_seconds_total 1\n",
        b"vllm:num_requests_running 1\n",
        b"vllm:num_requests_running 1\nvllm:num_requests_waiting\n",
        b"vllm:num_requests_running 1\nvllm:num_requests_waiting many\n",
        b"vllm:num_requests_running 1\nvllm:num_requests_waiting NaN\n",
        b"vllm:num_requests_running 1\nvllm:num_requests_waiting -1\n",
        b"vllm:num_requests_running 1\nvllm:num_requests_waiting +Inf\n",
        b"sglang:num_running_reqs 1e300\nsglang:num_queue_reqs 0\n",
        b"llamacpp:requests_processing{ 1\nllamacpp:requests_deferred}\n",
    ],
)
def test_a_page_without_both_counts_is_no_sample(page: bytes) -> None:
    """What runs and what waits are what a limit is found by."""
    assert engine_metrics.read(page) is None


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (b"vllm:kv_cache_usage_perc NaN", "kv_usage"),
        (b"vllm:kv_cache_usage_perc -0.5", "kv_usage"),
        (b"vllm:num_preemptions_total 1e400", "preemptions"),
        (b"vllm:prefix_cache_hits_total x", "prefix_hits"),
        (b'vllm:cache_config_info{kv_cache_size_tokens="None",num_gpu_blocks="None"} 1', "kv_tokens"),
        (b'vllm:cache_config_info{num_gpu_blocks="0",block_size="16"} 1', "kv_tokens"),
        (b'vllm:cache_config_info{my_kv_cache_size_tokens="7"} 1', "kv_tokens"),
    ],
)
def test_what_makes_no_sense_counts_as_not_told(line: bytes, name: str) -> None:
    """The rest of the sample stands."""
    page = b"vllm:num_requests_running 1\nvllm:num_requests_waiting 2\n" + line + b"\n"

    sample = engine_metrics.read(page)

    assert sample == EngineSample(1, 2)
    assert getattr(sample, name) is None


def test_a_share_above_one_is_one() -> None:
    """Engines round."""
    page = b"vllm:num_requests_running 1\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 1.0001\n"

    assert engine_metrics.read(page) == EngineSample(1, 0, kv_usage=1.0)


@given(st.binary(), st.sampled_from([VLLM, SGLANG, LLAMA_CPP]), st.data())
def test_no_page_raises(noise: bytes, page: bytes, data: st.DataObject) -> None:
    """Bytes of any kind, anywhere in a page: a sample of counts or none."""
    at = data.draw(st.integers(0, len(page)))
    until = data.draw(st.integers(at, len(page)))

    sample = engine_metrics.read(page[:at] + noise + page[until:])

    assert sample is None or (sample.running >= 0 and sample.waiting >= 0)
