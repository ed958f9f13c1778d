"""`python -m ssah_lens` is the command line."""

from ssah_lens.cli import main

main()
