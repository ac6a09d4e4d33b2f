"""Byte rings, the locks that guard their two ends, and the bells that wake a sleeping end."""
