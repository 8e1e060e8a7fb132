"""A search over the settings of one entry: its space, its study, what it leaves behind."""
