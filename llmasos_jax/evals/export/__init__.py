"""Models into other programs' formats, each opened there and compared before it is kept."""
