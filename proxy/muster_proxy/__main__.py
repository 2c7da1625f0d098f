"""`python -m muster_proxy` is the `muster` command."""

from muster_proxy.cli import main

main()
