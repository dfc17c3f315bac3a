"""Model-predictive control on a V-JEPA world model.

Importing this package has no effect beyond its version: sub-packages are imported where used.
"""

__version__ = "0.1.0"
