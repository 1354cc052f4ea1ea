"""``python -m dpipe``: the same as the command ``dpipe``."""

from dpipe.cli import main

if __name__ == "__main__":
    main(prog_name="python -m dpipe")
