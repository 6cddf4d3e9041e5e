"""The commands `flowblend matrix run`, `report` and `diff`."""
