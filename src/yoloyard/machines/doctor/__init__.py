"""Is this machine fit to train? Facts come from `machines.environment`. Each file here judges one subject."""
