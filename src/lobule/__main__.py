"""`python -m lobule` is the command `lobule`."""

from lobule.cli import main

if __name__ == "__main__":
    main()
