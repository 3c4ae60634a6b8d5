"""A row of numbers in shared memory, which one process writes and others read."""

from array import array


class SharedRow:
    """A row of words in shared memory that is seen whole, whenever its writer dies."""

    __slots__ = ("_copies", "_words")

    def __init__(self, words: memoryview, width: int) -> None:
        self._words = words
        self._copies = (words[1 : 1 + width], words[1 + width : 1 + 2 * width])

    @staticmethod
    def size(width: int) -> int:
        """Return the words that a row of `width` words takes up."""
        return 1 + 2 * width

    def publish(self, row: "array[int]") -> None:
        """Make `row` what readers see."""
        sequence = self._words[0] + 1
        self._copies[sequence & 1][:] = row
        self._words[0] = sequence

    def read(self) -> tuple[int, "array[int]"]:
        """Return the sequence number and the row that it stands for."""
        while True:
            sequence = self._words[0]
            row = array("q", self._copies[sequence & 1].tobytes())
            if self._words[0] == sequence:
                return sequence, row

    def sequence(self) -> int:
        """Return the sequence number of what is published now."""
        number: int = self._words[0]
        return number
