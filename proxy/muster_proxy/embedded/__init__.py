"""The engine that needs no GPU and no account: llama.cpp in a process of its own, and its weights.

`weights.fetch_weights` gets the model file, `engine.serve_engine` serves it, `command.engine` is the command.
"""
