"""How well would each label-free criterion have chosen?"""

from one_table import main

from captune.results.selection_tables import selection_table

if __name__ == "__main__":
    main("How well would each label-free criterion have chosen?", selection_table)
