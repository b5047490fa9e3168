"""`python -m agent`: the same as the installed command."""

from agent.cli import main

main()
