"""Generated from proto/walcast/v1 by scripts/generate.sh."""
