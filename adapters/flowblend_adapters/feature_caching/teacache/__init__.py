"""TeaCache as an adapter of ours, and as a patch that users bring along."""
