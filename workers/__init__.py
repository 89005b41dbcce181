"""The workers: the only room where Redis and the model meet."""
