"""Is this machine fit to train? Facts come from `environment`; each file here judges one subject of them."""
