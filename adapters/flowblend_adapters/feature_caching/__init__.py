"""Adapters that reuse features of earlier steps, one folder for each library or technique."""
