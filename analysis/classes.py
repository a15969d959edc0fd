"""Which classes did adaptation improve, and which did it make worse?"""

from one_table import main

from captune.results.classes import classes_table

if __name__ == "__main__":
    main("Which classes did adaptation improve, and which did it make worse?", classes_table)
