"""Training and measuring the UNet reference pair."""
