"""Units of the numbers in results files."""

#: Milliseconds in a second.
MILLI = 1e3
