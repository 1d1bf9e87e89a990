"""Servers to test against: real llama.cpp inference on a tiny model, an Ollama node, LM Studio, a hostile one.

Each module runs by itself, too: `python -m tests.servers` lists them.
"""
