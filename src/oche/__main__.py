"""`python -m oche`: the command line."""

from __future__ import annotations

from oche.cli.main import main

if __name__ == "__main__":
    main()
