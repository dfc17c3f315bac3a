"""The commands, one a file. The one place that names concrete classes everywhere; nothing imports it."""
