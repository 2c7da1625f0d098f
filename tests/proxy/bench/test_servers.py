"""The servers that a benchmark starts end with it, in whatever way it ends."""

import socket
import subprocess
import sys
from urllib.parse import urlsplit

BENCHMARK = """
import time
from muster_proxy.bench import servers

with servers.muster("proxy", "--upstream", "http://127.0.0.1:1", ready_path="/health/live") as url:
    print(url, flush=True)
    time.sleep(60)
"""


def test_a_proxy_does_not_outlive_a_benchmark_that_is_killed() -> None:
    """When the benchmark is killed outright, the proxy that it started ends, and with it its connections."""
    with subprocess.Popen([sys.executable, "-c", BENCHMARK], stdout=subprocess.PIPE, text=True) as benchmark:
        assert benchmark.stdout is not None
        url = urlsplit(benchmark.stdout.readline().strip())
        with socket.create_connection((url.hostname, url.port)) as connection:
            benchmark.kill()
            assert connection.recv(1) == b""
