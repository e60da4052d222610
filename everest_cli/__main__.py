"""`python -m everest_cli` is `everest`."""

from everest_cli.main import main

main()
