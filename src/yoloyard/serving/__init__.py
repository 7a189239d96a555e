"""A server that answers over HTTP what `yoloyard predict` would say."""
