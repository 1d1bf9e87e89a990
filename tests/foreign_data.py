"""Where the directories made for other systems are, and the data that their experiments read."""

from pathlib import Path

FOREIGN = Path(__file__).parent / "foreign"


def give_data(inputs: Path) -> None:
    """Put the data of each below its name into a place for inputs."""
    (inputs / "modular" / "primes").mkdir(parents=True)
    (inputs / "modular" / "primes" / "prime.json").write_text('{"prime": 11}')
    (inputs / "tinytext" / "data").mkdir(parents=True)
    (inputs / "tinytext" / "data" / "train.txt").write_text("the cat sat on the mat. " * 200)
    (inputs / "tinytext" / "data" / "val.txt").write_text("the mat sat on the cat. " * 20)
