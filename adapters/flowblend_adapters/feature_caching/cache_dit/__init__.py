"""cache-dit on both denoisers, put on by us or adopted from the user's set-up."""
