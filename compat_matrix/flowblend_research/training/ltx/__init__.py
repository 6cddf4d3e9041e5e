"""Training of the LTX pair: codec, text encoder, judge and the two denoisers."""
