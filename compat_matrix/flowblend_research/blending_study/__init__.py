"""Gains of corrections, forecasts and refreshes on the WAN reference pair, measured."""
