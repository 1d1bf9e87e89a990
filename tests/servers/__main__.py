"""`python -m tests.servers`: say which servers there are."""

import importlib

NAMES = ("llama", "ollama", "lmstudio", "hostile", "scripted", "tiny_model")


def main() -> None:
    """Print each module's first line and how to start it."""
    for name in NAMES:
        module = importlib.import_module(f"tests.servers.{name}")
        first_line = (module.__doc__ or "").splitlines()[0]
        print(f"python -m tests.servers.{name} --help\n    {first_line}")


if __name__ == "__main__":
    main()
