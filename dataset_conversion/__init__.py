"""From clinical data to nnU-Net's raw format, labeled and unlabeled cases apart.

A module for each source of data finds its cases and says how to load one (``plan``); ``write.write_dataset`` loads,
checks, writes and reports, the same for all. ``docs/data_flow.md`` shows the steps, ``docs/how_to`` has the sources.
"""
