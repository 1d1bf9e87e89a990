"""How much this process has shipped, or read to ship it: for those who ask whether that goes on."""


class Tally:
    """A count of bytes that only grows. Any thread may add; what two add in one moment may count once."""

    def __init__(self) -> None:
        self._bytes = 0

    def read(self, number: int) -> None:
        """Count so many bytes of a file that were read."""
        self._bytes += number

    def answered(self, *messages: object) -> None:
        """Count the bytes of files in messages that were answered, and in their answers; one where there are none."""
        self._bytes += max(1, sum(_bytes_in(message) for message in messages))

    def bytes(self) -> int:
        """Give how many there were."""
        return self._bytes


SHIPPED = Tally()


def _bytes_in(value: object) -> int:
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(_bytes_in(one) for one in value.values())
    return sum(_bytes_in(one) for one in value) if isinstance(value, list) else 0
