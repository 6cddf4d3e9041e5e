"""Files that are written and read back: videos, configurations, measurements."""
