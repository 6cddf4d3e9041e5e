"""What corrections, forecasts and refreshes gain on the WAN reference pair, measured."""
