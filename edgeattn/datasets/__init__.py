"""Labelled pictures: class folders, boxes, masks, their split, and the built-in data set `cards`. No torch in here.

`cards` and `backgrounds` need scikit-learn and scikit-image (the extra `train`) for their data, but only when called.
"""
