"""Bodies and worlds: observe, apply, reset; rendering; tasks."""
