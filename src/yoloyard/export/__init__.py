"""From a weights file to files for other runtimes, each compared with the weights before it is trusted."""
