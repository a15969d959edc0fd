"""`python -m captune`: the command line."""

from captune.cli.main import command_line

if __name__ == "__main__":
    command_line()
