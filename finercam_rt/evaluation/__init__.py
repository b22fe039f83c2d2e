"""Is an explanation any good: metrics of maps on a user's own model and photographs."""
