"""Names and shapes of other systems' weights."""
