"""The OpenAI-compatible server in front of the engines, and the `muster` command."""
