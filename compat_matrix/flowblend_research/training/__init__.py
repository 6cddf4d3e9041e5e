"""Training the embedded reference pairs from nothing, with stages that resume."""
