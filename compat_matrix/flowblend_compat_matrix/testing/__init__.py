"""Tests that adapter authors get: a contract and a benchmark on an embedded pair."""
