"""The ``dualcl`` command: a skin over functions that can be called from Python too."""
