"""What every other folder may import: errors, atomic files, settings, poses and frames."""
