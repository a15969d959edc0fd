"""`python -m captune`: the command line."""

from captune.cli.main import main

if __name__ == "__main__":
    main()
