"""What did each study choose, how good is it on the sealed test, and how sure is that?"""

from one_table import main

from captune.results.best_configs import best_configs_table

if __name__ == "__main__":
    main("What did each study choose, how good is it on the sealed test, and how sure is that?", best_configs_table)
