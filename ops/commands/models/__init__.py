"""The commands that train, judge, fit and promote models."""
