"""Measurements that anybody can repeat. Not installed with the package."""
