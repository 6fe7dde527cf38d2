"""`python -m darner` is the console script `darner`."""

from darner.cli import main

main()
