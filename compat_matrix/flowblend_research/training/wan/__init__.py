"""Training and measuring the WAN reference pair."""
