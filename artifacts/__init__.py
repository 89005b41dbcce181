"""The shipped models of amn-queue as a package of data: weights, bank, calibration, slices, sample.

Nothing imports it: `workers.settings.shipped` finds its folder. The links of `lvm` are folders in a wheel.
"""
