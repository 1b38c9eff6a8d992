"""Building blocks of the models; nothing here imports from the rest of the program."""
